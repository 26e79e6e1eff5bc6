"""Which tiles an epoch shows: lesion and background tiles in an exact mix.

A tile is a function of (seed, epoch, index) alone, so that any number of workers, in any order,
reads the same tiles. Lesions are chosen, not cases: otherwise a small lesion in a scan full of them
would hardly ever be seen, and lesion-free scans would thin the lesions out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.cache.cached_case import CachedCase
from lesionseg.data.tiling import clip_start
from lesionseg.errors import ConfigError

TileKind = Literal["lesion", "background"]

# share of the tile, around its centre, in which a lesion's seed voxel may come to lie
INNER_SHARE = 0.75
# draws for a background tile free of lesions before one with lesions is taken
_BACKGROUND_DRAWS = 10
# lesions from which on an epoch's table no longer takes time in proportion to their number
MANY = 2**15
# as many as ten draws of a case and a place in it need, in up to four dimensions
_NUMBERS = 6 * _BACKGROUND_DRAWS


@dataclass(frozen=True)
class SamplingSettings:
    """The mix of tiles; the fields are those of `TileSampler`."""

    lesion_share: float = 0.5
    size_weight: float = 0.0
    avoid_lesions: bool = True
    patient_cap: float | None = 4.0

    def __post_init__(self) -> None:
        _check_share(self.lesion_share)
        if self.patient_cap is not None and self.patient_cap < 1:
            raise ConfigError(
                "A patient's lesions cannot be held below an equal share.",
                where="sampling.patient_cap",
                seen=self.patient_cap,
                expected="at least 1, or null",
            )


@dataclass(frozen=True)
class TileChoice:
    """One tile: an index into the sampler's cases and its first voxel, negative where it pads."""

    case: int
    start: tuple[int, ...]
    kind: TileKind


class TileSampler:
    """Chooses tiles for every epoch.

    round(`lesion_share` · n) tiles hold a lesion, the others are background: anywhere in any case,
    free of lesions where ten draws find such a place (unless `avoid_lesions` is False), and around
    a voxel that teaches where some do not. Within an epoch every lesion is chosen equally often (to
    within one, from `MANY` lesions on within two), or in proportion to voxels^−`size_weight`. But
    the lesions of one patient (group) fill at most `patient_cap` times an equal share of the
    patients with lesions, or one with 500 lesions would outweigh 500 with one. The lesion's seed
    voxel lies anywhere in the inner three quarters of the tile, which is then moved into the
    volume. Without a lesion their share goes to the background. Raises `ConfigError` for shares
    outside [0, 1] and for no case.

    Args:
        cases: to take tiles from, at least one.
        tile_shape: voxels (z, y, x), in 2-D (y, x).
        n_tiles: per epoch.
        seed: of the choice, which depends on it and the epoch alone.
        lesion_share: of the tiles, 0 to 1.
        size_weight: 0 chooses lesions equally often, 1 in inverse proportion to their voxels.
        avoid_lesions: whether background tiles are drawn again where they meet a lesion.
        patient_cap: in equal shares; None for whatever a patient's lesions fill.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        tile_shape: Sequence[int],
        *,
        n_tiles: int,
        seed: int,
        lesion_share: float = 0.5,
        size_weight: float = 0.0,
        avoid_lesions: bool = True,
        patient_cap: float | None = 4.0,
    ) -> None:
        _check_share(lesion_share)
        if not cases or n_tiles < 1:
            raise ConfigError(
                "There is nothing to take tiles from.",
                seen=f"{len(cases)} cases, {n_tiles} tiles per epoch",
                expected="at least one of each",
            )
        self.cases = tuple(cases)
        self.tile_shape = tuple(tile_shape)
        self.n_tiles = n_tiles
        self.seed = seed
        self.lesion_share = lesion_share
        self.avoid_lesions = avoid_lesions
        self._tables = [case.lesions for case in self.cases]
        # lesions are counted through all cases: those of case i from _first[i] on
        self._first = np.cumsum([0, *(len(table) for table in self._tables)])
        voxels = np.concatenate([table.voxels for table in self._tables]).astype(np.float64)
        groups = np.unique([case.group for case in self.cases], return_inverse=True)[1]
        group_of = np.repeat(groups, np.diff(self._first))
        equal = voxels ** -float(size_weight)
        self._weights = equal if patient_cap is None else capped(equal, group_of, patient_cap)
        self._upper = np.cumsum(self._weights)
        self._largest = tuple(_largest_share(w, group_of) for w in (equal, self._weights))
        self._table = lru_cache(maxsize=2)(self._epoch_table)
        self._reach = lru_cache(maxsize=256)(self._reach_of)

    def __len__(self) -> int:
        return self.n_tiles

    @property
    def mix(self) -> str:
        """What an epoch shows, in a sentence."""
        n_patients = len({c.group for c, t in zip(self.cases, self._tables, strict=True) if len(t)})
        free, capped_share = self._largest
        capped = (
            f" (held; {free:.0%} by the number of lesions)" if capped_share < free - 1e-9 else ""
        )
        return (
            f"{self.lesion_share:.0%} of {self.n_tiles} hold one of {len(self._weights)} lesions "
            f"of {n_patients} patients, at most {capped_share:.0%} of these one patient's{capped}."
        )

    def choose(self, epoch: int, index: int) -> TileChoice:
        """Tile `index` of 0 … n_tiles−1 in `epoch`."""
        pick = int(self._table(epoch)[index])
        rng = _Numbers([self.seed, epoch, index, 1])
        if pick < 0:
            return self._background(rng)
        case = int(np.searchsorted(self._first, pick, side="right")) - 1
        seeds = self._tables[case].seeds(pick - int(self._first[case]))
        centre = seeds[rng.below(len(seeds))].tolist()
        return TileChoice(case, self._around(case, centre, rng), "lesion")

    def _epoch_table(self, epoch: int) -> NDArray[np.int64]:
        """One number per tile: a lesion or −1."""
        rng = np.random.default_rng([self.seed, epoch])
        n_lesions = len(self._weights)
        lesion_tiles = round(self.lesion_share * self.n_tiles) if n_lesions else 0
        table = np.full(self.n_tiles, -1, dtype=np.int64)
        if n_lesions < MANY:
            table[:lesion_tiles] = spread(self._weights, lesion_tiles, rng)
        else:
            table[:lesion_tiles] = spread_of_many(self._upper, lesion_tiles, rng)
        return rng.permutation(table)

    def _around(self, case: int, centre: Sequence[int], rng: "_Numbers") -> tuple[int, ...]:
        margins = [int(n * (1 - INNER_SHARE) / 2) for n in self.tile_shape]
        places = [m + rng.below(n - 2 * m) for n, m in zip(self.tile_shape, margins, strict=True)]
        start = [int(c) - place for c, place in zip(centre, places, strict=True)]
        return clip_start(start, self.cases[case].shape, self.tile_shape)

    def _background(self, rng: "_Numbers") -> TileChoice:
        start: tuple[int, ...] = ()
        case = 0
        for _ in range(_BACKGROUND_DRAWS):
            case = rng.below(len(self.cases))
            start = self._anywhere(case, rng)
            clear = not (self.avoid_lesions and self._meets_lesion(start, case))
            if clear and self.cases[case].valid_seeds != ():
                break
        return TileChoice(case, start, "background")

    def _anywhere(self, case: int, rng: "_Numbers") -> tuple[int, ...]:
        """A tile anywhere in the case; where not all voxels teach, one around one that does."""
        shape, seeds = self.cases[case].shape, self.cases[case].valid_seeds
        if seeds:
            return self._around(case, seeds[rng.below(len(seeds))], rng)
        room = [max(n - t, 0) for n, t in zip(shape, self.tile_shape, strict=True)]
        return clip_start([rng.below(r + 1) for r in room], shape, self.tile_shape)

    def _meets_lesion(self, start: Sequence[int], case: int) -> bool:
        # first − tile < start < stop along every axis, as one comparison
        reach = np.array((*start, *(-s for s in start)))
        return bool((self._reach(case) < reach).all(axis=1).any())

    def _reach_of(self, case: int) -> NDArray[np.int64]:
        """Where tiles that meet the lesions begin: the last place before, and minus the end."""
        boxes, dims = self._tables[case].boxes, len(self.tile_shape)
        return np.concatenate([boxes[:, :dims] - self.tile_shape, -boxes[:, dims:]], axis=1)


class _Numbers:
    """A tile's random numbers, drawn at once: one at a time they would take as long as reading."""

    def __init__(self, seed: Sequence[int]) -> None:
        self._left = iter(np.random.default_rng(seed).random(_NUMBERS).tolist())

    def below(self, n: int) -> int:
        """A whole number from 0 to n−1."""
        return int(next(self._left) * n)


def capped(
    weights: NDArray[np.float64], groups: NDArray[np.int64], most: float
) -> NDArray[np.float64]:
    """`weights` `[n]`, lowered so that no group has over `most` times an equal share of the sum.

    `groups` `[n]`: of each weight. Within a group proportions stay. An equal share is one of as
    many groups as occur.

    >>> capped(np.ones(10), np.array([0] * 8 + [1, 2]), 1.5).round(2).tolist()
    [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 1.0, 1.0]
    """
    sums = np.bincount(groups, weights=weights)
    share = most / max(int((sums > 0).sum()), 1)
    is_capped = np.zeros(len(sums), dtype=np.bool_)
    limit = np.inf
    while (over := (sums > limit * (1 + 1e-12)) & ~is_capped).any() or limit == np.inf:
        is_capped |= over
        rest = 1 - share * is_capped.sum()
        if rest <= 0:  # the cap holds all: equal shares
            limit = float(sums[sums > 0].min(initial=np.inf))
            break
        limit = share * sums[~is_capped].sum() / rest
    factor = np.minimum(1.0, limit / np.maximum(sums, 1e-300))
    return np.asarray(weights * factor[groups], dtype=np.float64)


def _largest_share(weights: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    sums = np.bincount(groups, weights=weights)
    return float(sums.max() / sums.sum()) if sums.sum() else 0.0


def spread(weights: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose n indices in proportion to `weights`, each within one of its exact share.

    Systematic sampling: equidistant points with one random offset on the cumulated weights of a
    shuffled order (Madow 1949). No weights or n = 0 give an empty array.
    """
    if n == 0 or len(weights) == 0:
        return np.empty(0, dtype=np.int64)
    order = rng.permutation(len(weights))
    upper = np.cumsum(weights[order])
    points = (np.arange(n) + rng.random()) / n * upper[-1]
    place = np.searchsorted(upper, points, side="right")
    return rng.permutation(order[np.minimum(place, len(order) - 1)])


def spread_of_many(
    upper: NDArray[np.float64], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Choose n indices in proportion to weights whose sums up to each are `upper`, at least one.

    Stratified sampling: a random point in each of n equal parts of the sum (Cochran 1977, ch. 5),
    so that neighbours in the order, the lesions of one case, come rarely together. Takes
    n·log(len) steps, however many there are.
    """
    points = (np.arange(n) + rng.random(n)) / n * upper[-1]
    place = np.searchsorted(upper, points, side="right")
    return rng.permutation(np.minimum(place, len(upper) - 1))


def _check_share(lesion_share: float) -> None:
    if not 0 <= lesion_share <= 1:
        raise ConfigError(
            "The share of tiles with a lesion is a number in [0, 1].",
            where="sampling.lesion_share",
            seen=lesion_share,
        )
