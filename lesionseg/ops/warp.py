"""Warp of a tile by matrix and displacement: linear for images, nearest voxel for masks.

Each voxel of a tile is read at a position in a larger region of the volume.

Images are interpolated linearly; masks take the nearest voxel. Coordinates refer to voxel centres.
The outermost value applies up to half a voxel outside of the source, and 0 beyond. All tensors are
on the CPU.

The loops are written for speed. Coordinates are computed row by row and are never stored for the
whole tile. Each row is a few short loops over arrays that stay in the L1 cache, and LLVM vectorises
them. Indices are unsigned, because numba tests signed indices for negative values. 2-D arrays are
passed as 3-D arrays with one slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core.arrays import Integers, Numbers
from lesionseg.ops.compiled import make_compiler


@dataclass(frozen=True, eq=False)
class Warp:
    """The source position of each voxel of an output: matrix · (index, 1) + displacement[index].

    `matrix` `[dims, dims + 1]` and `displacement` `[dims, *shape]` float32 are in voxels of the
    source, with axes in array order. `shape` is that of the output. `displacement` is None for an
    affine warp.
    """

    matrix: Numbers
    shape: tuple[int, ...]
    displacement: Tensor | None = None


def warp_linear(image: Shaped[Tensor, "c *inp"], warp: Warp) -> Float[Tensor, "c *out"]:
    """Warp an image by linear interpolation. Return float32, 0 for positions outside the image."""
    out = torch.empty((image.shape[0], *warp.shape), dtype=torch.float32)
    matrix, displacement = _with_three_axes(warp)
    _interpolate(_as_3d(image.float()), matrix, displacement, _as_3d(out))
    return out


def warp_nearest(
    masks: Sequence[Shaped[Tensor, "*inp"]], warp: Warp
) -> list[Shaped[Tensor, "*out"]]:
    """Warp masks by the nearest voxel. Each result has the dtype of its mask.

    Halfway between two voxel centres the higher index wins. Outside of the masks the result is 0.
    All masks have the same shape, and there is at least one mask. The positions are computed once
    for all masks.
    """
    dims = len(warp.shape)
    shape = np.array((1,) * (3 - dims) + tuple(masks[0].shape), np.int64)
    nearest_index = np.empty((1,) * (3 - dims) + warp.shape, np.int32)
    matrix, displacement = _with_three_axes(warp)
    _fill_nearest_index(shape, matrix, displacement, nearest_index)
    warped = [torch.zeros(warp.shape, dtype=mask.dtype) for mask in masks]
    for mask, out in zip(masks, warped, strict=True):
        source = mask.contiguous().numpy().reshape(-1)
        if mask.dtype == torch.bool and source.all():  # then False only outside of the mask
            out.copy_(torch.from_numpy(nearest_index.reshape(warp.shape)) >= 0)
        elif source.any():  # numpy's any; torch's takes as long as `_copy_voxels`
            _copy_voxels(source, nearest_index.reshape(-1), out.numpy().reshape(-1))
    return warped


def _with_three_axes(warp: Warp) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Convert a warp to the form that the compiled loops need: always three axes.

    A 2-D warp gets a first axis with one voxel, whose source position is 0.

    Returns:
        Matrix `[3, 4]` and displacement `[3, Z, Y, X]`. The displacement of an affine warp is an
        empty array, because the compiled loops need an array.
    """
    n_added = 3 - len(warp.shape)
    matrix = np.zeros((3, 4), np.float32)
    matrix[n_added:, n_added:] = warp.matrix
    displacement = np.zeros((3, 0, 0, 0), np.float32)
    if warp.displacement is not None:
        displacement = warp.displacement.numpy().reshape(
            [len(warp.shape), *[1] * n_added, *warp.shape]
        )
        if n_added:
            displacement = np.concatenate(
                [np.zeros((n_added, *displacement.shape[1:]), np.float32), displacement]
            )
    return matrix, np.ascontiguousarray(displacement)


def _as_3d(image: Tensor) -> NDArray[np.float32]:
    """Convert an image `[C, *spatial]` to an array `[C, Z, Y, X]`; a 2-D image has one slice.

    A contiguous image shares its memory with the result, so that a loop can fill a tensor.
    """
    array = image.contiguous().numpy()
    return array.reshape([array.shape[0], *[1] * (4 - array.ndim), *array.shape[1:]])


_compile_loops = make_compiler("contract", "nsz")

# typed numbers, because Python's would be computed with 64 bits
_F = np.float32
_I = np.int32
_U = np.uint32
_ZERO = _F(0)
_HALF = _F(0.5)
_ONE = _F(1)


@_compile_loops
def _fill_coordinates(
    row: NDArray[np.float32],
    matrix: NDArray[np.float32],
    displacement: NDArray[np.float32],
    axis: int,
    k: int,
    j: int,
) -> None:
    """Compute the source coordinates along one axis for one row of output voxels.

    Args:
        row: The coordinates in voxels `[X]` are written to this array.
        matrix: Matrix of the warp `[3, 4]`.
        displacement: Displacement of the warp `[3, Z, Y, X]`, empty for an affine warp.
        axis: The axis of the source.
        k: Slice (z) of the output row.
        j: Index (y) of the row in the slice.
    """
    first = matrix[axis, 0] * _F(k) + matrix[axis, 1] * _F(j) + matrix[axis, 3]
    step = matrix[axis, 2]
    for i in range(row.size):
        row[i] = first + step * _F(_I(i))  # AVX2 converts only 32-bit integers to floats
    if displacement.size:
        shift = displacement[axis, k, j]
        for i in range(row.size):
            row[i] += shift[i]


@_compile_loops
def _interpolate(
    image: NDArray[np.float32],
    matrix: NDArray[np.float32],
    displacement: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Fill `out` by linear interpolation of `image` at the positions of a warp.

    Image and output are contiguous `[C, Z, Y, X]`. Each row of the output needs two steps:

    1. Locate the cell of each position, which is the cube of the eight voxels around it: the flat
       index of its first `corner`, and the `fraction` of the cell along z, y and x. A position
       beyond the first or the last voxel counts as that voxel. `inside` is 0 if it is more than
       half a voxel outside.
    2. For each channel, mix the eight corners: along x, then along y in the front and in the back
       face of the cell, then between the two faces.

    One function does both steps, because calls of two functions would need a fifth of the time.
    """
    channels = image.reshape(image.shape[0], -1)
    n_out = out.shape[3]
    row = np.empty(n_out, np.float32)
    corner = np.empty(n_out, np.uint32)
    fraction = np.empty((3, n_out), np.float32)
    inside = np.empty(n_out, np.float32)
    pitch = (image.shape[2] * image.shape[3], image.shape[3], 1)
    # array elements from one voxel to the next along each axis; 0 if the axis has only one voxel
    dz = _U(pitch[0] if image.shape[1] > 1 else 0)
    dy = _U(pitch[1] if image.shape[2] > 1 else 0)
    dx = _U(1 if image.shape[3] > 1 else 0)
    for k in range(out.shape[1]):
        for j in range(out.shape[2]):
            for i in range(n_out):
                corner[i] = _U(0)
                inside[i] = _ONE
            for axis in range(3):
                _fill_coordinates(row, matrix, displacement, axis, k, j)
                n = image.shape[axis + 1]
                last = _F(n - 1)
                last_cell = _I(max(n - 2, 0))  # 0 also if there is only one voxel
                beyond = last + _HALF
                along = fraction[axis]
                stride = _U(pitch[axis])
                for i in range(n_out):
                    x = row[i]
                    inside[i] = inside[i] if (x >= -_HALF) & (x <= beyond) else _ZERO
                    x = min(max(x, _ZERO), last)
                    cell = min(_I(x), last_cell)
                    along[i] = x - _F(cell)
                    corner[i] += _U(cell) * stride
            for c in range(out.shape[0]):
                source = channels[c]
                target = out[c, k, j]
                for i in range(n_out):
                    fx = fraction[2, i]
                    fy = fraction[1, i]
                    fz = fraction[0, i]
                    p = corner[i]
                    q = p + dy
                    low = source[p] + fx * (source[p + dx] - source[p])
                    high = source[q] + fx * (source[q + dx] - source[q])
                    front = low + fy * (high - low)
                    p = p + dz
                    q = p + dy
                    low = source[p] + fx * (source[p + dx] - source[p])
                    high = source[q] + fx * (source[q + dx] - source[q])
                    back = low + fy * (high - low)
                    target[i] = (front + fz * (back - front)) * inside[i]


@_compile_loops
def _fill_nearest_index(
    shape: Integers,
    matrix: NDArray[np.float32],
    displacement: NDArray[np.float32],
    out: NDArray[np.int32],
) -> None:
    """Fill `out` `[Z, Y, X]` with the flat index of the nearest source voxel; −1 outside.

    The source has `shape` (3 axes). The index is summed axis by axis. Once a position is outside
    along one axis, its index stays −1.
    """
    row = np.empty(out.shape[2], np.float32)
    pitch = (shape[1] * shape[2], shape[2], 1)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            flat_index = out[k, j]
            for i in range(flat_index.size):
                flat_index[i] = _I(0)
            for axis in range(3):
                _fill_coordinates(row, matrix, displacement, axis, k, j)
                last = _F(shape[axis] - 1)
                stride = _I(pitch[axis])
                beyond = last + _HALF
                for i in range(flat_index.size):
                    x = row[i]
                    is_outside = (x < -_HALF) | (x > beyond) | (flat_index[i] < _I(0))
                    within = min(max(x, _ZERO), last)
                    # round by truncation; float32 may round up beyond the last voxel
                    nearest = min(_I(within + _HALF), _I(last))
                    flat_index[i] = _I(-1) if is_outside else flat_index[i] + nearest * stride


@_compile_loops
def _copy_voxels(source: NDArray[Any], places: NDArray[np.int32], out: NDArray[Any]) -> None:
    """Copy `source[places]` into `out`, all flat.

    `places` contains the flat source index of each output voxel. Output voxels with a negative
    index stay unchanged.
    """
    for i in range(places.size):
        place = places[i]
        if place >= _I(0):
            out[i] = source[_U(place)]
