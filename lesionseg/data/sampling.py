"""Sampling of training tiles: lesion share of a step, position around a lesion, random streams.

The mix of lesion and background tiles is exact in each step.

A tile depends only on (seed, epoch, index), so that any number of workers reads the same tiles in
any order. The sampler chooses lesions, not cases. Otherwise a small lesion in a scan with many
lesions would be seen rarely, and scans without lesions would reduce the number of lesions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal

import numpy as np

from lesionseg.config import SamplingConfig
from lesionseg.core.arrays import Integers
from lesionseg.data.cache import CachedCase
from lesionseg.data.tiling import clip_start

# the seed voxel of a lesion is within this share of the tile, around its centre
INNER_SHARE = 0.75
# draws for a background tile without lesions before one with lesions is accepted
_BACKGROUND_DRAWS = 10
# random numbers of a tile: a case, and for each draw a seed voxel and a position
_NUMBERS = 6 * _BACKGROUND_DRAWS  # a draw needs 1 + 3 of them, so this is enough


class Stream(IntEnum):
    """The streams of random numbers of a tile, as the last part of their seed.

    Each use has its own stream, so that a change of one setting leaves the other draws as they are.
    """

    POSITION = 1
    AUGMENTATION = 2
    TRANSFORMS = 3
    CHANNEL_DROPOUT = 4


@dataclass(frozen=True)
class TileChoice:
    """The case of a tile, its first voxel, and its kind.

    `case` is an index into the sampler's cases. `start` is negative or 0 along an axis shorter than
    the tile, which is padded.
    """

    case: int
    start: tuple[int, ...]
    kind: Literal["lesion", "background"]


class TileSampler:
    """A sampler of the tiles of every epoch.

    Lesion tiles: an epoch has round(`lesion_share` · `n_tiles`) of them, at equal distances. So
    their number differs by at most one between the steps of a training, and between the processes
    and accumulated batches of a step, whose tiles are consecutive. In an epoch, all lesions are
    chosen equally often, independently of size and patient; their numbers differ by at most one. A
    random seed voxel of the lesion is at a random position in the inner three quarters of the tile.
    The tile is then shifted into the volume.

    Background tiles: all other tiles. All cases with valid background are equally likely or, if
    there are none, all cases. In the chosen case, up to ten positions are drawn, until a tile
    overlaps no lesion's box. If there is none, the tile may show lesions. In a case with ignored
    voxels, the tile is placed around a valid background voxel.

    If no case has a lesion, all tiles are background. For given arguments, the choice depends only
    on the epoch and the number of the tile. There must be at least one case and one tile.
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
        self.cases = tuple(cases)
        self.tile_shape = tuple(tile_shape)
        self.settings = settings
        self.n_tiles = n_tiles
        self.seed = seed
        self._lesions = [case.lesions for case in self.cases]
        # lesions are numbered over all cases; the lesions of case i start at _first_lesion[i]
        self._first_lesion = np.cumsum([0, *(len(table) for table in self._lesions)])
        patients = np.unique([case.group for case in self.cases], return_inverse=True)[1]
        self._patient_of_lesion = np.repeat(patients, np.diff(self._first_lesion))
        # `valid_seeds` is None if all voxels are valid, and () if no background voxel is valid
        with_background = [i for i, case in enumerate(self.cases) if case.valid_seeds != ()]
        self._background_cases = with_background or range(len(self.cases))
        # computed once per epoch (a batch may contain tiles of two epochs), and once per case, for
        # up to 256 cases
        self._lesion_of_tile = lru_cache(maxsize=2)(self._draw_epoch)
        self._box_bounds = lru_cache(maxsize=256)(self._compute_bounds)

    def __len__(self) -> int:
        return self.n_tiles

    @property
    def mix(self) -> str:
        """A sentence for the log: the share of lesion tiles in an epoch, lesions and patients."""
        if not len(self._patient_of_lesion):
            return f"All {self.n_tiles} tiles per epoch are background, as no case has a lesion."
        lesions = np.bincount(self._patient_of_lesion)
        return (
            f"{self.settings.lesion_share:.0%} of the {self.n_tiles} tiles per epoch are around a "
            f"lesion ({lesions.sum()} lesions, {(lesions > 0).sum()} patients; at most "
            f"{lesions.max() / lesions.sum():.0%} from one patient)."
        )

    def choose(self, epoch: int, index: int) -> TileChoice:
        """Choose case, position and kind of tile `index` (0 … n_tiles−1) of an epoch.

        The same epoch and index give the same tile.
        """
        lesion = int(self._lesion_of_tile(epoch)[index])
        rng = _RandomNumbers([self.seed, epoch, index, Stream.POSITION])
        if lesion < 0:  # −1: a background tile
            return self._choose_background(rng)
        case = int(np.searchsorted(self._first_lesion, lesion, side="right")) - 1
        seeds = self._lesions[case].seeds_of(lesion - int(self._first_lesion[case]))
        centre = seeds[rng.below(len(seeds))].tolist()
        return TileChoice(case, self._start_around(case, centre, rng), "lesion")

    def _draw_epoch(self, epoch: int) -> Integers:
        """Draw the lesion of each tile of an epoch, or −1 for a background tile, `[n_tiles]`.

        Lesions are numbered over all cases. Without lesions, all tiles are background. The same
        epoch gives the same result.
        """
        rng = np.random.default_rng([self.seed, epoch])
        lesion_of_tile = np.full(self.n_tiles, -1, np.int64)
        n_lesion_tiles = round(self.settings.lesion_share * self.n_tiles)
        if n_lesion_tiles and len(self._patient_of_lesion):
            lesion_tiles = _draw_indices(self.n_tiles, n_lesion_tiles, rng)
            # Systematic sampling of the shuffled lesions chooses each about equally often.
            lesions = rng.permutation(len(self._patient_of_lesion))
            lesion_of_tile[lesion_tiles] = rng.permutation(
                lesions[_draw_indices(len(lesions), n_lesion_tiles, rng)]
            )
        return lesion_of_tile

    def _start_around(
        self, case: int, centre: Sequence[int], rng: "_RandomNumbers"
    ) -> tuple[int, ...]:
        """Draw the first voxel of a tile that contains the voxel `centre` in its inner region.

        The inner region is `INNER_SHARE` of the tile along each axis. A tile that extends beyond
        the volume is then shifted into it.
        """
        margins = [int(n * (1 - INNER_SHARE) / 2) for n in self.tile_shape]
        offsets = [m + rng.below(n - 2 * m) for n, m in zip(self.tile_shape, margins, strict=True)]
        start = [int(c) - offset for c, offset in zip(centre, offsets, strict=True)]
        return clip_start(start, self.cases[case].shape, self.tile_shape)

    def _choose_background(self, rng: "_RandomNumbers") -> TileChoice:
        """Choose a random tile of a random case, if possible without lesions.

        If a tile overlaps a lesion's box, another position is drawn, up to `_BACKGROUND_DRAWS`
        times. The case is not drawn again, because cases with many lesions would otherwise rarely
        give background tiles.
        """
        case = self._background_cases[rng.below(len(self._background_cases))]
        start: tuple[int, ...] = ()  # replaced by the first draw
        for _ in range(_BACKGROUND_DRAWS):
            start = self._random_start(case, rng)
            if not self._overlaps_lesion(case, start):
                break
        return TileChoice(case, start, "background")

    def _overlaps_lesion(self, case: int, start: Sequence[int]) -> bool:
        """Return True if the tile with the first voxel `start` overlaps the box of any lesion."""
        # The tile overlaps a box if box start − tile shape < start < box stop along every axis.
        # With −start in addition, this is a single comparison with the bounds.
        signed = np.array((*start, *(-s for s in start)))
        return bool((self._box_bounds(case) < signed).all(axis=1).any())

    def _random_start(self, case: int, rng: "_RandomNumbers") -> tuple[int, ...]:
        """Draw the first voxel of a random tile within the volume of a case.

        In a case with ignored voxels, the tile contains a random valid background voxel in its
        inner region, if the case has such a voxel.
        """
        shape = self.cases[case].shape
        seeds = self.cases[case].valid_seeds
        if seeds:
            return self._start_around(case, seeds[rng.below(len(seeds))], rng)
        max_start = [max(n - t, 0) for n, t in zip(shape, self.tile_shape, strict=True)]
        # `clip_start` centres a volume that is shorter than the tile
        return clip_start([rng.below(n + 1) for n in max_start], shape, self.tile_shape)

    def _compute_bounds(self, case: int) -> Integers:
        """Compute the lower bounds of (start, −start) for tiles that overlap a lesion's box.

        A tile with the first voxel `start` overlaps the box if start > box start − tile shape and
        −start > −box stop, along each axis.

        Returns:
            For each lesion of the case, the right sides of these inequations `[lesions, 2·dims]`.
        """
        boxes = self._lesions[case].boxes
        dims = len(self.tile_shape)
        return np.concatenate([boxes[:, :dims] - self.tile_shape, -boxes[:, dims:]], axis=1)


class _RandomNumbers:
    """The random numbers of a tile, drawn in one call, because single draws would be slow.

    There are `_NUMBERS` of them, which a tile never uses up.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        self._unused = iter(np.random.default_rng(seed).random(_NUMBERS).tolist())

    def below(self, n: int) -> int:
        """Convert the next random number to a random integer from 0 to n−1, and return it."""
        return int(next(self._unused) * n)


def _draw_indices(n_indices: int, n: int, rng: np.random.Generator) -> Integers:
    """Draw `n` of the indices 0 … `n_indices` − 1 at equal distances, ascending.

    The first distance is random. This is systematic sampling (Madow 1949). If `n` is larger than
    `n_indices`, indices are drawn several times, and their counts differ by at most one.
    """
    return np.minimum(
        ((np.arange(n) + rng.random()) / n * n_indices).astype(np.int64), n_indices - 1
    )
