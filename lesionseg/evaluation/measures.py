"""The extent of lesions on their grid: slices, long and short axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

NEAR_RESOLUTION_VOXELS = 8


@dataclass(frozen=True)
class Extent:
    """Extent of one lesion on its grid.

    `slices` along the axis of the coarsest spacing (the first of equals; 1 in 2-D). The long axis
    is the largest diameter within the slice of the most voxels, the short axis the width
    perpendicular to it, both from voxel edge to voxel edge. `near_resolution`: under 8 voxels or
    on one slice (in 2-D: under 8 pixels), where size and outline are uncertain themselves.
    """

    slices: int
    long_axis_mm: float
    short_axis_mm: float
    near_resolution: bool


def through_plane_axis(spacing_mm: Sequence[float]) -> int:
    """The axis of the coarsest spacing; equal within 1 %: the first.

    >>> through_plane_axis((1.0, 1.0, 1.0)), through_plane_axis((0.5, 3.0, 0.5))
    (0, 1)
    """
    spacing = np.asarray(spacing_mm)
    return int(np.argmax(spacing >= 0.99 * spacing.max()))


def measure_extent(voxels: NDArray[np.int64], spacing_mm: Sequence[float]) -> Extent:
    """Measure a lesion by its array indices `[v, dims]`, at least one, in C order."""
    dims, n_slices = len(spacing_mm), 1
    plane, mm = voxels, np.asarray(spacing_mm, dtype=np.float64)
    if dims == 3:
        axis = through_plane_axis(spacing_mm)
        counts = np.bincount(voxels[:, axis] - voxels[:, axis].min())
        n_slices = int((counts > 0).sum())
        fullest = voxels[:, axis].min() + counts.argmax()
        plane = np.delete(voxels[voxels[:, axis] == fullest], axis, axis=1)
        mm = np.delete(mm, axis)
    # first and last pixel of each row: the corners of the hull are among them
    starts = np.flatnonzero(np.diff(plane[:, 0], prepend=-1))
    ends = np.append(starts[1:], len(plane)) - 1
    points = plane[np.concatenate([starts, ends])] * mm
    near = len(voxels) < NEAR_RESOLUTION_VOXELS or (dims == 3 and n_slices == 1)
    return Extent(n_slices, *_axes_mm(points, mm), near)


def _axes_mm(points: NDArray[np.float64], pixel_mm: NDArray[np.float64]) -> tuple[float, float]:
    """Largest distance and the width perpendicular to it, each a pixel wider than the centres."""
    distances = pdist(points, "sqeuclidean")
    if distances.max(initial=0.0) == 0:
        return float(pixel_mm.max()), float(pixel_mm.min())
    place, n = int(distances.argmax()), len(points)
    first = np.searchsorted(np.cumsum(np.arange(n - 1, 0, -1)), place, side="right")
    second = place - first * (2 * n - first - 1) // 2 + first + 1
    length = float(np.sqrt(distances[place]))
    along = (points[first] - points[second]) / length
    across = points @ [-along[1], along[0]]
    long_mm = length + float(np.abs(along) @ pixel_mm)
    return long_mm, float(np.ptp(across) + np.abs(along[::-1]) @ pixel_mm)
