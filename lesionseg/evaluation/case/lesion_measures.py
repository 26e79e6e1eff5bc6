"""What is measured of a lesion beside its volume: its extent, and how well it stands out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Lesions, Volume
from lesionseg.ops.kernels.compiled_code import compiled

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


def measure_extents(
    voxels: NDArray[np.int64], first: NDArray[np.int64], spacing_mm: Sequence[float]
) -> list[Extent | None]:
    """Measure lesions whose array indices `[v, dims]`, in C order, are `first[i]:first[i + 1]`.

    None for a lesion without voxels.
    """
    dims = len(spacing_mm)
    axis = through_plane_axis(spacing_mm) if dims == 3 else 0
    solid = np.pad(voxels, ((0, 0), (3 - dims, 0)))
    spacing = np.array([1.0] * (3 - dims) + [float(s) for s in spacing_mm])
    measured = _extents(solid, first, axis, spacing)
    counts = np.diff(first)
    return [
        Extent(
            int(slices),
            long_mm,
            short_mm,
            n < NEAR_RESOLUTION_VOXELS or (dims == 3 and slices == 1),
        )
        if n
        else None
        for n, (slices, long_mm, short_mm) in zip(counts.tolist(), measured.tolist(), strict=True)
    ]


@compiled
def _row_ends(
    voxels: NDArray[np.int64], axis: int, fullest: int, spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """First and last pixel of a slice's rows, in mm: the corners of the hull are among them."""
    one, two = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
    starts = np.empty((len(voxels), 2))
    stops = np.empty((len(voxels), 2))
    n, row = 0, -1
    for i in range(len(voxels)):
        if voxels[i, axis] != fullest:
            continue
        if n == 0 or voxels[i, one] != row:
            row = voxels[i, one]
            starts[n, 0], starts[n, 1] = row * spacing[one], voxels[i, two] * spacing[two]
            n += 1
        stops[n - 1, 0], stops[n - 1, 1] = row * spacing[one], voxels[i, two] * spacing[two]
    return np.concatenate((starts[:n], stops[:n]))


@compiled
def _axes_mm(points: NDArray[np.float64], pixel_mm: tuple[float, float]) -> tuple[float, float]:
    """Largest distance and the width perpendicular to it, each a pixel wider than the centres."""
    longest, a, b = 0.0, 0, 0
    for i in range(len(points)):
        for j in range(i + 1, len(points)):
            square = (points[i, 0] - points[j, 0]) ** 2 + (points[i, 1] - points[j, 1]) ** 2
            if square > longest:
                longest, a, b = square, i, j
    if longest == 0:
        return max(pixel_mm), min(pixel_mm)
    length = np.sqrt(longest)
    along = (points[a] - points[b]) / length
    least, most = np.inf, -np.inf
    for i in range(len(points)):
        place = points[i, 1] * along[0] - points[i, 0] * along[1]
        least, most = min(least, place), max(most, place)
    long_mm = length + abs(along[0]) * pixel_mm[0] + abs(along[1]) * pixel_mm[1]
    short_mm = most - least + abs(along[1]) * pixel_mm[0] + abs(along[0]) * pixel_mm[1]
    return long_mm, short_mm


@compiled
def _extents(
    voxels: NDArray[np.int64], first: NDArray[np.int64], axis: int, spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Slices, long and short axis `[n, 3]`; nothing sensible without voxels."""
    found = np.zeros((len(first) - 1, 3))
    pixel_mm = (spacing[1 if axis == 0 else 0], spacing[1 if axis == 2 else 2])
    for row in range(len(first) - 1):
        own = voxels[first[row] : first[row + 1]]
        if len(own) == 0:
            continue
        low = own[:, axis].min()
        counts = np.zeros(own[:, axis].max() - low + 1, dtype=np.int64)
        for i in range(len(own)):
            counts[own[i, axis] - low] += 1
        points = _row_ends(own, axis, low + counts.argmax(), spacing)
        found[row, 0] = (counts > 0).sum()
        found[row, 1], found[row, 2] = _axes_mm(points, pixel_mm)
    return found


RING_MM = (2.0, 5.0)
MIN_RING_VOXELS = 10
_TO_SIGMA = 1.4826  # the standard deviation of a normal variable over its MAD


def lesion_contrasts(
    image: Volume, lesions: Lesions, ignored: NDArray[np.bool_] | None = None
) -> list[float | None]:
    """Contrast of each lesion in the image's first channel, signed: brighter is positive.

    (median of the lesion − median of its ring) / (1.4826 · MAD of the ring); the ring is what lies
    over 2 and up to 5 mm from the lesion, over 2 mm from all other lesions, and is not ignored.
    MAD for the noise: Rousseeuw & Croux 1993. None for a bare box, fewer than 10 voxels of ring, or
    a ring without noise (such as air set to 0). The image is on the lesions' grid.
    """
    taken = np.zeros(lesions.geometry.shape, dtype=np.bool_)
    taken[tuple(lesions.voxels.T)] = True
    outside = np.zeros_like(taken) if ignored is None else ignored
    return [
        _contrast(image.array[0], lesions, row, taken, outside) if lesions.masked[row] else None
        for row in range(len(lesions))
    ]


def _contrast(
    image: NDArray[Any],
    lesions: Lesions,
    row: int,
    taken: NDArray[np.bool_],
    outside: NDArray[np.bool_],
) -> float | None:
    voxels, spacing = lesions.voxels_of(row), lesions.geometry.spacing_mm
    # far enough to see the others that come near the ring
    reach = np.ceil(sum(RING_MM) / np.asarray(spacing)).astype(np.int64)
    start = np.maximum(voxels.min(axis=0) - reach, 0)
    stop = np.minimum(voxels.max(axis=0) + reach + 1, taken.shape)
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    own = np.zeros(tuple(stop - start), dtype=np.bool_)
    own[tuple((voxels - start).T)] = True
    near = ndimage.distance_transform_edt(~own, sampling=spacing) <= RING_MM[1]
    clear = ndimage.distance_transform_edt(~taken[inside], sampling=spacing) > RING_MM[0]
    ring = image[inside][near & clear & ~outside[inside]].astype(np.float64)
    if len(ring) < MIN_RING_VOXELS:
        return None
    middle = float(np.median(ring))
    noise = _TO_SIGMA * float(np.median(np.abs(ring - middle)))
    apart = float(np.median(image[inside][own])) - middle
    return apart / noise if noise > 1e-9 * max(abs(middle), abs(apart)) else None
