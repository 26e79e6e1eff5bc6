"""Distances between the surfaces of two masks: surface Dice and HD95.

Surface elements lie on the corners of voxels and weigh as much as they have area, as Nikolov et
al. 2018 define it; distances are in millimetres along axes taken as orthogonal. Nearest elements
are found exactly, and the cost follows the surfaces, not the box around them
(`ops.kernels.surface_numba`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.case.surfels import Surfels, surfels_of
from lesionseg.ops.kernels import sparse_numba, surface_numba

# Spacings read from float32 headers must not push an element over the tolerance.
_SLACK_MM = 1e-4
_NEAR = 2  # how far steps are looked up one by one, in the finest spacing
_BLOCK = 8  # corners along a block of what is farther, likewise


@dataclass(frozen=True, eq=False)
class Surface:
    """Distance in mm to the other surface and area, of each element, by ascending distance."""

    distances_mm: NDArray[np.float64]
    areas: NDArray[np.float64]

    @classmethod
    def towards(cls, own: Surfels, other: Surfels, spacing_mm: Sequence[float]) -> "Surface":
        """The elements of one surface with their distance to another one."""
        distances = nearest_mm(own.corners, other.corners, spacing_mm)
        order = np.argsort(distances, kind="stable")
        return cls(distances[order], own.areas[order])

    def area_within(self, tolerance_mm: float) -> float:
        """Area of the elements no farther than `tolerance_mm` from the other surface."""
        return float(self.areas[self.distances_mm <= tolerance_mm + _SLACK_MM].sum())

    def percentile_mm(self, percent: float) -> float:
        """The distance within which `percent` of the area lies."""
        share = np.cumsum(self.areas) / self.areas.sum()
        place = min(int(np.searchsorted(share, percent / 100)), len(share) - 1)
        return float(self.distances_mm[place])


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The reference's and the prediction's surface, each with its distances to the other."""

    reference: Surface
    prediction: Surface

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces' area within `tolerance_mm` of the other one."""
        both = (self.reference, self.prediction)
        area = sum(float(s.areas.sum()) for s in both)
        return sum(s.area_within(tolerance_mm) for s in both) / area

    def hd95_mm(self) -> float:
        """The larger of the two directed 95th percentiles, by area."""
        return max(self.reference.percentile_mm(95), self.prediction.percentile_mm(95))


def surface_distances(
    reference: NDArray[np.int64], prediction: NDArray[np.int64], spacing_mm: Sequence[float]
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks given as voxels `[v, dims]`.

    None when either mask is empty: there is no surface to measure from.
    """
    if len(reference) == 0 or len(prediction) == 0:
        return None
    a, b = surfels_of(reference, spacing_mm), surfels_of(prediction, spacing_mm)
    return SurfaceDistances(Surface.towards(a, b, spacing_mm), Surface.towards(b, a, spacing_mm))


def nearest_mm(
    points: NDArray[np.int64], others: NDArray[np.int64], spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Distance `[n]` of each lattice point `[n, dims]` to the nearest of `others` `[m, dims]`.

    Both hold at least one point; no point is twice among the others.
    """
    spacing = np.array([1.0] * (3 - len(spacing_mm)) + [float(s) for s in spacing_mm])
    ends = [surface_numba.bounds(p) for p in (points, others)]
    low = np.minimum(ends[0][0], ends[1][0])
    shape = np.maximum(ends[0][1], ends[1][1]) - low + 1
    points, others = _as_3d(points - low), _as_3d(others - low)
    surface = np.zeros((1,) * (3 - len(shape)) + tuple(shape.tolist()), dtype=np.bool_)
    surface[tuple(others.T)] = True
    steps = _near_steps(tuple(spacing.tolist()))
    found = surface_numba.nearest(points, surface, steps.index, steps.mm)
    far = np.flatnonzero(found < 0)
    if len(far):
        block = np.maximum(np.rint(_BLOCK * spacing.min() / spacing), 1).astype(np.int64)
        ours, theirs = _blocks(points[far], block, spacing), _blocks(others, block, spacing)
        found[far[ours.order]] = surface_numba.nearest_by_block(
            ours.points, ours.bounds, ours.boxes, theirs.points, theirs.bounds, theirs.boxes
        )
    return found


def _as_3d(points: NDArray[np.int64]) -> NDArray[np.int64]:
    dims = points.shape[1]
    return points if dims == 3 else np.pad(points, ((0, 0), (3 - dims, 0)))


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps `[k, 3]` by ascending length `[k]`."""

    index: NDArray[np.int64]
    mm: NDArray[np.float64]


@lru_cache(maxsize=64)
def _near_steps(spacing: tuple[float, float, float]) -> _Steps:
    """All steps of at most `_NEAR` times the finest spacing."""
    reach = _NEAR * min(spacing)
    axes = [np.arange(-int(reach / s), int(reach / s) + 1) for s in spacing]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    mm = np.sqrt(((index * np.array(spacing)) ** 2).sum(axis=1))
    order = np.argsort(mm, kind="stable")
    order = order[mm[order] <= reach * (1 + 1e-9)]
    return _Steps(index[order], mm[order])


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Points in mm `[n, 3]` (in `order` of the given ones), bounds `[blocks + 1]` of each block's
    and boxes `[blocks, 2, 3]` around them; only blocks that hold a point."""

    order: NDArray[np.int64]
    points: NDArray[np.float64]
    bounds: NDArray[np.int64]
    boxes: NDArray[np.float64]


def _blocks(
    points: NDArray[np.int64], block: NDArray[np.int64], spacing: NDArray[np.float64]
) -> _Blocks:
    grid = surface_numba.bounds(points)[1] // block + 1
    number = surface_numba.block_of(points, block, grid)
    order, bounds = sparse_numba.grouped(number, int(np.prod(grid)))
    bounds = np.unique(bounds)  # without the empty ones
    placed = points[order] * spacing
    ends = [f.reduceat(placed, bounds[:-1], axis=0) for f in (np.minimum, np.maximum)]
    return _Blocks(order, placed, bounds, np.stack(ends, axis=1))
