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

from lesionseg.config import SamplingConfig
from lesionseg.data.cache import CachedCase
from lesionseg.data.tiling import clip_start
from lesionseg.errors import ConfigError

# share of the tile, around its centre, in which a lesion's seed voxel may come to lie
INNER_SHARE = 0.75
# draws for a background tile free of lesions before one with lesions is taken
_BACKGROUND_DRAWS = 10
# as many as ten draws of a case and a place in it need, in up to four dimensions
_NUMBERS = 6 * _BACKGROUND_DRAWS


@dataclass(frozen=True)
class TileChoice:
    """One tile: an index into the sampler's cases and its first voxel, negative where it pads."""

    case: int
    start: tuple[int, ...]
    kind: Literal["lesion", "background"]


class TileSampler:
    """Chooses the `n_tiles` tiles of `tile_shape` of every epoch.

    round(`lesion_share` · n) of them hold a lesion; the others are background from any case, free
    of lesions where ten draws find such a place, around a voxel that teaches where some do not.
    Within an epoch every lesion is chosen equally often, to within one, whatever its size and
    patient. A lesion's seed voxel lies anywhere in the inner three quarters of the tile, which is
    then moved into the volume. Without a lesion all is background. The choice depends on `seed` and
    the epoch alone. Raises `ConfigError` for no case.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        tile_shape: Sequence[int],
        settings: SamplingConfig,
        *,
        n_tiles: int,
        seed: int,
    ) -> None:
        if not cases or n_tiles < 1:
            raise ConfigError(f"{len(cases)} cases, {n_tiles} tiles: nothing to take tiles from.")
        self.cases, self.tile_shape = tuple(cases), tuple(tile_shape)
        self.settings, self.n_tiles, self.seed = settings, n_tiles, seed
        self._tables = [case.lesions for case in self.cases]
        # lesions are counted through all cases: those of case i from _first[i] on
        self._first = np.cumsum([0, *(len(table) for table in self._tables)])
        groups = np.unique([case.group for case in self.cases], return_inverse=True)[1]
        self._groups = np.repeat(groups, np.diff(self._first))
        self._table = lru_cache(maxsize=2)(self._epoch_table)
        self._bounds = lru_cache(maxsize=256)(self._bounds_of)

    def __len__(self) -> int:
        return self.n_tiles

    @property
    def mix(self) -> str:
        """What an epoch shows, in a sentence."""
        lesions = np.bincount(self._groups)
        largest = lesions.max() / lesions.sum() if len(lesions) else 0.0
        return (
            f"{self.settings.lesion_share:.0%} of the {self.n_tiles} tiles per epoch contain a "
            f"lesion ({lesions.sum()} lesions, {(lesions > 0).sum()} patients; at most "
            f"{largest:.0%} from one patient)."
        )

    def choose(self, epoch: int, index: int) -> TileChoice:
        """Tile `index` of 0 … n_tiles−1 in `epoch`."""
        lesion = int(self._table(epoch)[index])
        rng = _Numbers([self.seed, epoch, index, 1])
        if lesion < 0:
            return self._background(rng)
        case = int(np.searchsorted(self._first, lesion, side="right")) - 1
        seeds = self._tables[case].seeds_of(lesion - int(self._first[case]))
        centre = seeds[rng.below(len(seeds))].tolist()
        return TileChoice(case, self._around(case, centre, rng), "lesion")

    def _epoch_table(self, epoch: int) -> NDArray[np.int64]:
        """One number per tile: a lesion, or −1 for background."""
        rng = np.random.default_rng([self.seed, epoch])
        table = np.full(self.n_tiles, -1, dtype=np.int64)
        if len(self._groups):
            n = round(self.settings.lesion_share * self.n_tiles)
            table[:n] = evenly(len(self._groups), n, rng)
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
            # first − tile < start < stop along every axis, as one comparison
            signed = np.array((*start, *(-s for s in start)))
            meets_lesion = (self._bounds(case) < signed).all(axis=1).any()
            if not meets_lesion and self.cases[case].valid_seeds != ():
                break
        return TileChoice(case, start, "background")

    def _anywhere(self, case: int, rng: "_Numbers") -> tuple[int, ...]:
        """A tile anywhere in the case; where not all voxels teach, one around one that does."""
        shape, seeds = self.cases[case].shape, self.cases[case].valid_seeds
        if seeds:
            return self._around(case, seeds[rng.below(len(seeds))], rng)
        room = [max(n - t, 0) for n, t in zip(shape, self.tile_shape, strict=True)]
        return clip_start([rng.below(r + 1) for r in room], shape, self.tile_shape)

    def _bounds_of(self, case: int) -> NDArray[np.int64]:
        """`[lesions, 2·dims]`: a tile meets a lesion if (start, −start) exceeds all of its row."""
        boxes, dims = self._tables[case].boxes, len(self.tile_shape)
        return np.concatenate([boxes[:, :dims] - self.tile_shape, -boxes[:, dims:]], axis=1)


class _Numbers:
    """A tile's random numbers, drawn at once: one at a time they would take as long as reading."""

    def __init__(self, seed: Sequence[int]) -> None:
        self._left = iter(np.random.default_rng(seed).random(_NUMBERS).tolist())

    def below(self, n: int) -> int:
        """A whole number from 0 to n−1."""
        return int(next(self._left) * n)


def evenly(n_lesions: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`n` of the numbers below `n_lesions`, each as often as any other to within one.

    Equidistant points with one random offset on a shuffled order (Madow 1949).
    """
    order = rng.permutation(n_lesions)
    points = (np.arange(n) + rng.random()) / n * n_lesions
    place = np.minimum(points.astype(np.int64), n_lesions - 1)
    return rng.permutation(order[place])
