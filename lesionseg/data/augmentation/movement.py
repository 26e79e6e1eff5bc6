"""How a tile is moved: flips, or one map that rotates, scales, shears, flips and bends at once.

The bend is a cubic B-spline of random displacements on a coarse grid of knots (Rueckert et al.
1999, IEEE TMI 18:712): smooth, nowhere larger than its largest knot, and without folds while that
is below 0.4 knot distances (Choi and Lee 2000).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.ops.warp import Warp

MAX_BEND = 0.4  # in knot distances


@dataclass(frozen=True, eq=False)
class Bend:
    """Displacements in voxels `[dims, *knots]` and the distance of the knots along each axis."""

    knots: NDArray[np.float32]
    spacing: tuple[float, ...]

    def at(self, positions: Sequence[NDArray[np.float64]], device: torch.device) -> Tensor:
        """Displacement `[dims, *grid]` float32 on the grid of these positions along each axis."""
        field = torch.from_numpy(self.knots).to(device)
        return along_axes(field, [torch.from_numpy(w).to(device) for w in self.weights(positions)])

    def weights(self, positions: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float32]]:
        """What each knot counts at these positions, `[n, knots]` of each axis."""
        return [
            _spline_weights(x, distance, n)
            for x, distance, n in zip(positions, self.spacing, self.knots.shape[1:], strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Movement:
    """From where in and around a tile its voxels come.

    `flips`: axes reversed. `linear` `[dims, dims]`: a voxel x from the tile's centre is read
    at linear · x from it, then displaced by `bend`, flips included; None: only flips, exactly.
    """

    flips: tuple[int, ...] = ()
    linear: NDArray[np.float64] | None = None
    bend: Bend | None = None

    def matrix(self, tile_shape: Sequence[int]) -> NDArray[np.float64]:
        """`[dims, dims + 1]` from an index of the moved tile to one of the tile as it lies."""
        linear = self.linear
        if linear is None:
            linear = np.diag([-1.0 if a in self.flips else 1.0 for a in range(len(tile_shape))])
        middle = (np.array(tile_shape) - 1) / 2
        return np.concatenate([linear, (middle - linear @ middle)[:, None]], axis=1)

    def source(self, tile_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Start and stop along each axis of what is read, counted from the tile's first voxel."""
        if self.linear is None:
            return tuple((0, n) for n in tile_shape)
        matrix = self.matrix(tile_shape)
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in tile_shape])))
        reach = corners @ matrix[:, :-1].T + matrix[:, -1]
        bent = 0 if self.bend is None else np.abs(self.bend.knots).max(initial=0)
        low, high = np.floor(reach.min(axis=0) - bent), np.ceil(reach.max(axis=0) + bent)
        return tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))

    def warp(
        self, tile_shape: Sequence[int], out_shape: Sequence[int], device: torch.device
    ) -> Warp:
        """The warp that reads a tile, on a grid of `out_shape` voxels over it, out of its source.

        `out_shape` equal to `tile_shape` is the tile itself; fewer voxels are a coarser one.
        """
        bend = None
        if self.bend is not None:
            bend = self.bend.at(grid_positions(tile_shape, out_shape), device)
        return Warp(self.onto(tile_shape, out_shape), tuple(out_shape), bend)

    def onto(self, tile_shape: Sequence[int], out_shape: Sequence[int]) -> NDArray[np.float64]:
        """`[dims, dims + 1]` from an index of that grid to one of the source, without the bend."""
        step = np.array(tile_shape) / np.array(out_shape)
        matrix = self.matrix(tile_shape)
        coarse = matrix.copy()
        coarse[:, :-1] *= step
        starts = [start for start, _ in self.source(tile_shape)]
        coarse[:, -1] += matrix[:, :-1] @ ((step - 1) / 2) - starts
        return coarse


def grid_positions(
    tile_shape: Sequence[int], out_shape: Sequence[int], n: Sequence[int] | None = None
) -> list[NDArray[np.float64]]:
    """Where in a tile the voxels of a grid of `out_shape` over it lie, along each axis.

    `n`: so many of each axis, beyond the tile if need be.
    """
    steps = [t / m for t, m in zip(tile_shape, out_shape, strict=True)]
    counts = n or out_shape
    return [
        (np.arange(k, dtype=np.float64) + 0.5) * s - 0.5 for k, s in zip(counts, steps, strict=True)
    ]


def rotation_by(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation by angles[a, b] (radians, a < b) from axis a towards b, one plane after another."""
    rotation = np.eye(len(angles))
    for a, b in itertools.combinations(range(len(angles)), 2):
        plane = np.eye(len(angles))
        cos, sin = math.cos(angles[a, b]), math.sin(angles[a, b])
        plane[a, a], plane[b, b], plane[a, b], plane[b, a] = cos, cos, -sin, sin
        rotation = plane @ rotation
    return rotation


def n_knots(n: int, spacing: float) -> int:
    """Knots that determine a cubic B-spline over `n` voxels."""
    return math.floor((n - 1) / spacing) + 4


def along_axes(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply `[C, *inp]` by a matrix `[out, inp]` along each spatial axis."""
    for axis, matrix in enumerate(matrices[:-1], start=1):
        shape = array.shape
        flat = array.reshape(*shape[: axis + 1], -1)
        array = torch.matmul(matrix, flat).reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return torch.matmul(array, matrices[-1].T)


def _spline_weights(x: NDArray[np.float64], spacing: float, n: int) -> NDArray[np.float32]:
    """Weight of each of `n` knots at each position: the uniform cubic B-spline."""
    t = np.abs(x[:, None] / spacing + 1 - np.arange(n))
    inner, outer = 2 / 3 - t**2 + t**3 / 2, (2 - t).clip(0) ** 3 / 6
    return np.where(t < 1, inner, outer).astype(np.float32)
