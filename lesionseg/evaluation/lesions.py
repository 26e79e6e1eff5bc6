"""How large a lesion is, beyond its volume."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    """Measure a lesion given as array indices `[v, dims]` in C order, at least one."""
    plane, slices = voxels, 1
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if voxels.shape[1] == 3:
        axis = through_plane_axis(spacing_mm)
        counts = np.bincount(voxels[:, axis] - voxels[:, axis].min())
        slices = int((counts > 0).sum())
        fullest = voxels[:, axis].min() + int(counts.argmax())
        plane = np.delete(voxels[voxels[:, axis] == fullest], axis, axis=1)
        spacing = np.delete(spacing, axis)
    long_mm, short_mm = _axes_mm(_row_ends(plane) * spacing, spacing)
    few = len(voxels) < NEAR_RESOLUTION_VOXELS
    flat = voxels.shape[1] == 3 and slices == 1
    return Extent(slices, long_mm, short_mm, few or flat)


def _row_ends(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """First and last pixel of each row: the corners of the hull are among them."""
    order = np.lexsort((pixels[:, 1], pixels[:, 0]))
    pixels = pixels[order]
    starts = np.flatnonzero(np.diff(pixels[:, 0], prepend=-1))
    stops = np.append(starts[1:], len(pixels)) - 1
    return np.asarray(pixels[np.concatenate([starts, stops])])


def _axes_mm(points: NDArray[np.float64], pixel_mm: NDArray[np.float64]) -> tuple[float, float]:
    """Largest distance and the width perpendicular to it, each a pixel wider than the centres."""
    apart = points[:, None] - points[None]
    squared = (apart**2).sum(-1)
    longest = np.unravel_index(int(squared.argmax()), squared.shape)
    if squared[longest] == 0:
        return float(pixel_mm.max()), float(pixel_mm.min())
    along = apart[longest] / np.sqrt(squared[longest])
    across = np.array([-along[1], along[0]])
    long_mm = np.sqrt(squared[longest]) + np.abs(along) @ pixel_mm
    short_mm = np.ptp(points @ across) + np.abs(across) @ pixel_mm
    return float(long_mm), float(short_mm)
