"""Moving a tile: each of its voxels is read from somewhere in a larger piece of the volume.

The image is interpolated linearly, masks take the nearest voxel. Coordinates are those of voxel
centres; half a voxel around the source its outermost value holds, farther outside all is 0. Tensors
lie on the CPU. Coordinates are made row by row and never lie in memory: each row is a few short
loops over arrays that stay in the L1 cache, which LLVM turns into vector instructions; indices are
unsigned, because numba tests signed ones for being negative. 2-D arrays come as 3-D ones of one
slice. Speed against `grid_sample`: docs/extend.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.ops.compiled import compiler


@dataclass(frozen=True, eq=False)
class Warp:
    """Where the voxels of an output of `shape` come from: matrix · (index, 1) + bend[index].

    `matrix` `[dims, dims + 1]` and `bend` `[dims, *shape]` float32 (None: straight) are in voxels
    of the source, axes in array order.
    """

    matrix: NDArray[np.float64]
    shape: tuple[int, ...]
    bend: Tensor | None = None


def warp_linear(image: Shaped[Tensor, "c *inp"], warp: Warp) -> Float[Tensor, "c *out"]:
    """Interpolate `image` where the warp says; float32."""
    out = torch.empty((image.shape[0], *warp.shape), dtype=torch.float32)
    matrix, bend = _padded(warp)
    _interpolate(_as_3d(image.float()), matrix, bend, _as_3d(out))
    return out


def warp_nearest(
    masks: Sequence[Shaped[Tensor, "*inp"]], warp: Warp
) -> list[Shaped[Tensor, "*out"]]:
    """The nearest voxel of each mask, in its own dtype; between two centres the higher index."""
    dims = len(warp.shape)
    shape = np.array((1,) * (3 - dims) + tuple(masks[0].shape), dtype=np.int64)
    places = np.empty((1,) * (3 - dims) + warp.shape, dtype=np.int32)
    _nearest_places(shape, *_padded(warp), places)
    warped = [torch.zeros(warp.shape, dtype=mask.dtype) for mask in masks]
    for mask, out in zip(masks, warped, strict=True):
        source = mask.contiguous().numpy().reshape(-1)
        if mask.dtype == torch.bool and source.all():
            out.copy_(torch.from_numpy(places.reshape(warp.shape)) >= 0)
        elif source.any():  # by numpy: torch takes as long as for the gather
            _take(source, places.reshape(-1), out.numpy().reshape(-1))
    return warped


def _padded(warp: Warp) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The warp with three axes; an added first axis has one voxel, read from the first."""
    extra = 3 - len(warp.shape)
    matrix = np.zeros((3, 4), dtype=np.float32)
    matrix[extra:, extra:] = warp.matrix
    bend = np.zeros((3, 0, 0, 0), dtype=np.float32)
    if warp.bend is not None:
        bend = warp.bend.numpy().reshape(len(warp.shape), *(1,) * extra, *warp.shape)
        if extra:
            bend = np.concatenate([np.zeros((extra, *bend.shape[1:]), np.float32), bend])
    return matrix, np.ascontiguousarray(bend)


def _as_3d(image: Tensor) -> NDArray[np.float32]:
    array = image.contiguous().numpy()
    missing = (1,) * (4 - array.ndim)
    return array.reshape(array.shape[0], *missing, *array.shape[1:])


_compiled = compiler("contract", "nsz")

_F, _I, _U = np.float32, np.int32, np.uint32
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)


@_compiled
def _coordinate_row(
    row: NDArray[np.float32],
    matrix: NDArray[np.float32],
    bend: NDArray[np.float32],
    axis: int,
    k: int,
    j: int,
) -> None:
    """Source coordinates along `axis` of output row (k, j); an empty `bend` bends nothing."""
    first = matrix[axis, 0] * _F(k) + matrix[axis, 1] * _F(j) + matrix[axis, 3]
    step = matrix[axis, 2]
    for i in range(row.size):
        row[i] = first + step * _F(_I(i))
    if bend.size:
        bent = bend[axis, k, j]
        for i in range(row.size):
            row[i] += bent[i]


@_compiled
def _interpolate(
    image: NDArray[np.float32],
    matrix: NDArray[np.float32],
    bend: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Fill `out` by interpolating `image` where a `Warp` says; contiguous `[C, Z, Y, X]` both."""
    channels = image.reshape(image.shape[0], -1)
    n_out = out.shape[3]
    place = np.empty(n_out, np.uint32)
    row = np.empty(n_out, np.float32)
    share = np.empty((3, n_out), np.float32)
    inside = np.empty(n_out, np.float32)
    # elements from one voxel to the next along an axis; 0 where an axis has only one voxel
    pitch = (image.shape[2] * image.shape[3], image.shape[3], 1)
    dz = _U(pitch[0] if image.shape[1] > 1 else 0)
    dy = _U(pitch[1] if image.shape[2] > 1 else 0)
    dx = _U(1 if image.shape[3] > 1 else 0)
    for k in range(out.shape[1]):
        for j in range(out.shape[2]):
            for i in range(n_out):
                place[i] = _U(0)
                inside[i] = _ONE
            for axis in range(3):
                _coordinate_row(row, matrix, bend, axis, k, j)
                n = image.shape[axis + 1]
                last, low = _F(n - 1), _I(max(n - 2, 0))
                beyond, along, stride = last + _HALF, share[axis], _U(pitch[axis])
                for i in range(n_out):
                    x = row[i]
                    inside[i] = inside[i] if (x >= -_HALF) & (x <= beyond) else _ZERO
                    x = min(max(x, _ZERO), last)
                    cell = min(_I(x), low)
                    along[i] = x - _F(cell)
                    place[i] += _U(cell) * stride
            for c in range(out.shape[0]):
                source, target = channels[c], out[c, k, j]
                for i in range(n_out):
                    p = place[i]
                    fx, fy, fz = share[2, i], share[1, i], share[0, i]
                    a = source[p] + fx * (source[p + dx] - source[p])
                    q = p + dy
                    b = source[q] + fx * (source[q + dx] - source[q])
                    near = a + fy * (b - a)
                    p = p + dz
                    a = source[p] + fx * (source[p + dx] - source[p])
                    q = p + dy
                    b = source[q] + fx * (source[q + dx] - source[q])
                    target[i] = (near + fz * (a + fy * (b - a) - near)) * inside[i]


@_compiled
def _nearest_places(
    shape: NDArray[np.int64],
    matrix: NDArray[np.float32],
    bend: NDArray[np.float32],
    out: NDArray[np.int32],
) -> None:
    """Flat index of the nearest voxel of an array of `shape` for each of `out`; −1 outside."""
    row = np.empty(out.shape[2], np.float32)
    pitch = (shape[1] * shape[2], shape[2], 1)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            place = out[k, j]
            for i in range(place.size):
                place[i] = _I(0)
            for axis in range(3):
                _coordinate_row(row, matrix, bend, axis, k, j)
                last, stride = _F(shape[axis] - 1), _I(pitch[axis])
                beyond = last + _HALF
                for i in range(place.size):
                    x = row[i]
                    out_here = (x < -_HALF) | (x > beyond) | (place[i] < _I(0))
                    cell = _I(min(max(x, _ZERO), last) + _HALF)
                    place[i] = _I(-1) if out_here else place[i] + min(cell, _I(last)) * stride


@_compiled
def _take(source: NDArray[Any], places: NDArray[np.int32], out: NDArray[Any]) -> None:
    """Copy `source[places]` (all flat) into `out`; what is outside keeps what `out` holds."""
    for i in range(places.size):
        place = places[i]
        if place >= _I(0):
            out[i] = source[_U(place)]
