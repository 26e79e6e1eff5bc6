"""An image read on the plan's grid, a slab at a time, and its intensities made network input.

No copy of it but the result. Every scheme of `plan.Normalisation` is one straight line for all
voxels of a channel after clipping: air of a brain scan gets a constant below the tissue, and no
edge between air and tissue is bent by it.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.data.adaptor import (
    CANONICAL_AXES,
    as_torch,
    geometry_of,
    import_monai,
    shell,
)
from lesionseg.errors import ContentError
from lesionseg.ops.resample import resample_linear
from lesionseg.plan.plan import Normalisation

# rows made at a time: temporaries of a few per cent of the volume
_SLAB_ROWS = 8
# spacings and grids closer than this (millimetres) are the same
SAME_MM = 1e-3
# percentiles that `range` takes from each case
RANGE_PERCENTILES = (0.5, 99.5)
# percentiles of larger arrays are taken from evenly spaced voxels: sorting copies what it sorts
_MAX_SORTED = 1 << 22
_SLAB_VOXELS = 1 << 18


def turned(volume: Volume) -> Volume:
    """The volume with its axes along +S, +A, +R (closest to it when oblique); a raster as it is.

    A view of the same voxels, whose strides may be negative.
    """
    if volume.geometry.dims != 3:
        return volume
    import_monai()
    from monai.transforms import Orientation  # takes seconds: not where `Predictor` is imported

    # labels=None would guess them from the affine's space; ours is always RAS
    reorient = Orientation(
        axcodes=CANONICAL_AXES, labels=(("L", "R"), ("P", "A"), ("I", "S")), lazy=True
    )
    geometry = geometry_of(reorient(shell(volume.geometry)))
    # which file axis a turned one runs along, and which way
    matrix = np.linalg.inv(volume.geometry.affine) @ geometry.affine
    linear = np.rint(matrix[:-1, :-1]).astype(int)
    axes = np.abs(linear).argmax(axis=0)
    view = volume.array.transpose(0, *(1 + axes))
    ways = tuple(slice(None, None, int(linear[axis, a])) for a, axis in enumerate(axes))
    return Volume(view[(slice(None), *ways)], geometry)


def copy_float32(volume: Volume, *, overwrite: bool = False) -> Volume:
    """The voxels in C order, float32, in memory of their own; in the same with `overwrite`.

    `overwrite` is a leave, not an order: it holds where type and order are right already.
    """
    array = np.ascontiguousarray(volume.array, dtype=np.float32)
    if not overwrite and np.may_share_memory(array, volume.array):
        array = array.copy()
    return Volume(array, volume.geometry)


def read_linear(volume: Volume, geometry: Geometry) -> Volume:
    """Read an image `[C, *spatial]` on another grid that covers about the same place.

    Linear between voxel centres; on a coarser grid the mean over each voxel.

    Where the grid reaches over the volume (its last voxel may, by half of its own size), the
    outermost voxels go on: an edge to nothing would look like air. Temporaries are the input rows
    that one slab of the output needs.
    """
    matrix = np.linalg.inv(volume.geometry.affine) @ geometry.affine
    out = np.empty((len(volume.array), *geometry.shape), dtype=np.float32)
    for start in range(0, geometry.shape[0], _SLAB_ROWS):
        shape = (min(_SLAB_ROWS, geometry.shape[0] - start), *geometry.shape[1:])
        there = matrix.copy()
        there[:-1, -1] += start * matrix[:-1, 0]
        piece, there = _rows_needed(volume.array, there, shape)
        out[:, start : start + shape[0]] = resample_linear(
            as_torch(piece), there, shape, average=True
        ).numpy()
    return Volume(out, geometry)


def _rows_needed(
    array: NDArray[np.generic], matrix: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """The input that output indices of `shape` read, edges repeated, and the matrix to it."""
    # voxels to their edges: a coarser one is a mean over its extent
    corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in shape])))
    reach = corners @ matrix[:-1, :-1].T + matrix[:-1, -1]
    lowest = np.floor(reach.min(axis=0)).astype(int) - 1
    highest = np.ceil(reach.max(axis=0)).astype(int) + 1
    lengths = np.array(array.shape[1:])
    first, last = lowest.clip(0, lengths - 1), highest.clip(0, lengths - 1)
    inside = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    padding = [(0, 0), *zip(first - lowest, highest - last, strict=True)]
    piece = np.pad(array[(slice(None), *inside)], padding, mode="edge")
    matrix = matrix.copy()
    matrix[:-1, -1] -= lowest
    return piece, matrix


@dataclass(frozen=True)
class _Moments:
    mean: float
    std: float


def normalise(array: NDArray[np.float32], schemes: Sequence[Normalisation]) -> None:
    """Normalise `[C, *spatial]` float32 in place, channel c by `schemes[c]`.

    A constant channel becomes 0 under `zscore` and `range`; so does one without a non-zero voxel.
    Temporaries stay under half a copy of one channel. Raises `ContentError` when the number of
    channels is another than the plan's.
    """
    if len(array) != len(schemes):
        raise ContentError(
            "The image's channels are not the plan's.", seen=len(array), expected=len(schemes)
        )
    for channel, scheme in zip(array, schemes, strict=True):
        _normalise_channel(channel, scheme)


def _normalise_channel(channel: NDArray[np.float32], scheme: Normalisation) -> None:
    # zero means air before clipping, so the mask is taken first
    inside = channel != 0 if scheme.scheme == "zscore" else None
    lower, upper = scheme.lower, scheme.upper
    if scheme.scheme == "range":
        lower, upper = _percentiles(channel)
    if lower is not None or upper is not None:
        np.clip(channel, lower, upper, out=channel)
    if scheme.scheme == "dataset":
        moments = _Moments(scheme.mean, scheme.std)
    else:
        moments = _moments(channel, inside)
    channel -= np.float32(moments.mean)
    channel /= np.float32(moments.std if moments.std > 0 else 1.0)


def _moments(channel: NDArray[np.float32], inside: NDArray[np.bool_] | None) -> _Moments:
    """Mean and standard deviation in float64, a slab at a time; std 0 when nothing varies."""
    count, total = 0, 0.0
    for values in _slabs(channel, inside):
        count += values.size
        total += float(values.sum())
    if count == 0:
        return _Moments(0.0, 0.0)
    mean = total / count
    squares = sum(float(np.square(values - mean).sum()) for values in _slabs(channel, inside))
    std = float(np.sqrt(squares / count))
    # rounding of float32 input is no variation
    return _Moments(mean, std if std > 1e-6 * abs(mean) else 0.0)


def _slabs(
    channel: NDArray[np.float32], inside: NDArray[np.bool_] | None
) -> Iterator[NDArray[np.float64]]:
    rows = max(1, _SLAB_VOXELS * len(channel) // max(channel.size, 1))
    for start in range(0, len(channel), rows):
        slab = channel[start : start + rows]
        inner = slab if inside is None else slab[inside[start : start + rows]]
        yield inner.astype(np.float64)


def _percentiles(channel: NDArray[np.float32]) -> tuple[float, float]:
    step = -(-channel.size // _MAX_SORTED)
    lower, upper = np.percentile(channel.reshape(-1)[::step], RANGE_PERCENTILES)
    return float(lower), float(upper)
