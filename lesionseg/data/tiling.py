"""Positions of overlapping tiles in a volume, and padding, for training and for stitching.

Needs only numpy.

 tile 0        tile 2
├───────────┤├───────────┤
      ├───────────┤              overlap 0.5: each step is at most half a tile
         tile 1
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TileGrid:
    """Evenly spaced tiles of one shape that cover a volume.

    Tiles do not extend beyond the volume, except along an axis shorter than the tile. Such an axis
    is padded on both sides to the tile's length, with 0 after normalisation, as at the border of a
    convolution. `starts` and `slices` refer to the padded array.

    Args:
        shape: Voxels of the volume along each spatial axis, at least 1.
        tile_shape: Voxels of a tile along each spatial axis, at least 1.
        overlap: Smallest share of a tile that its neighbour also covers, in [0, 1). Positions are
            rounded to voxels, so the overlap may be one voxel smaller.
    """

    shape: tuple[int, ...]
    tile_shape: tuple[int, ...]
    overlap: float = 0.5

    @cached_property
    def pad(self) -> tuple[tuple[int, int], ...]:
        """How many voxels to add along each axis, as (before, after); (0, 0) if the tile fits."""
        return tuple(map(_compute_padding, self.shape, self.tile_shape))

    @cached_property
    def padded_shape(self) -> tuple[int, ...]:
        """The shape of the padded array: along each axis, the longer of volume and tile."""
        return tuple(map(max, self.shape, self.tile_shape))

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """The index of the first voxel of every tile in the padded array; tiles are in C order."""
        pairs = zip(self.padded_shape, self.tile_shape, strict=True)
        return tuple(itertools.product(*(_space_starts(*pair, self.overlap) for pair in pairs)))

    @cached_property
    def inside(self) -> tuple[slice, ...]:
        """The slices that cut the volume out of the padded array."""
        pairs = zip(self.shape, self.pad, strict=True)
        return tuple(slice(before, before + n) for n, (before, _) in pairs)

    def __len__(self) -> int:
        return len(self.starts)

    def slices(self, i: int) -> tuple[slice, ...]:
        """Return the slices that cut tile i out of the padded array."""
        pairs = zip(self.starts[i], self.tile_shape, strict=True)
        return tuple(slice(start, start + n) for start, n in pairs)


def clip_start(
    start: Sequence[int], shape: Sequence[int], tile_shape: Sequence[int]
) -> tuple[int, ...]:
    """Return the first voxel of a tile after the tile was shifted into the volume.

    Along each axis, the result is the position nearest to `start` at which the tile is inside the
    volume. Along an axis shorter than the tile, the volume is centred in the tile, as in
    `TileGrid`, and the result is negative or 0.

    >>> clip_start((-3, 90, 5), (64, 100, 10), (32, 32, 32))
    (0, 68, -11)
    """
    return tuple(
        min(max(int(s), 0), n - tile) if n >= tile else -_compute_padding(n, tile)[0]
        for s, n, tile in zip(start, shape, tile_shape, strict=True)
    )


def read_tile(array: NDArray[Any], start: Sequence[int], tile_shape: Sequence[int]) -> NDArray[Any]:
    """Copy one tile of an array `[..., *spatial]`, with zeros outside of the array.

    Only the voxels of the tile are read, so that a memory map is not loaded completely. The dtype
    stays the same.

    Args:
        array: Image or mask. Axes before the spatial axes are copied completely.
        start: First voxel of the tile along each spatial axis. It may be negative, and the tile may
            extend beyond the end of the array.
        tile_shape: Voxels of the tile along each spatial axis.
    """
    shape = array.shape[-len(tile_shape) :]
    source: list[Any] = [...]
    target: list[Any] = [...]
    for first, n, length in zip(start, shape, tile_shape, strict=True):
        low = min(max(first, 0), n)
        high = max(min(first + length, n), low)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    inside = array[tuple(source)]
    if inside.shape[-len(tile_shape) :] == tuple(tile_shape):
        return np.array(inside)  # a copy in memory
    tile = np.zeros((*inside.shape[: -len(tile_shape)], *tile_shape), array.dtype)
    if inside.size:
        tile[tuple(target)] = inside
    return tile


def _compute_padding(n: int, tile: int) -> tuple[int, int]:
    """Return how many voxels to add before and after an axis, so that a tile fits.

    `n` and `tile` are the lengths of the axis and of the tile in voxels. If the number of voxels to
    add is odd, one more is added after the axis.
    """
    n_added = max(tile - n, 0)
    return n_added // 2, n_added - n_added // 2


def _space_starts(n: int, tile: int, overlap: float) -> list[int]:
    """Return the first voxels of evenly spaced tiles that cover an axis of `n` ≥ `tile` voxels.

    The number of tiles is the smallest for which neighbours overlap by at least `overlap`, a share
    of the tile.
    """
    step = max(tile * (1 - overlap), 1.0)  # the largest distance of two tiles
    return [int(s) for s in np.linspace(0, n - tile, math.ceil((n - tile) / step) + 1).round()]
