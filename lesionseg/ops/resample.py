"""Resampling an array from one grid to another, by position in space and slab by slab.

Index coordinates are those of voxel centres: voxel 0 reaches from −½ to ½. If each input axis runs
along one output axis (identity, flips, permutations and zooms, such as between a plan's grid and a
file's), the axes are resampled one after the other, and if the grids differ by whole voxels, flips
and axis order only, values are copied. For any other affine, every output voxel is sampled.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError

Interpolation = Literal["linear", "mean", "share", "nearest"]
Edge = Literal["zero", "extend"]
Decode = Callable[[Tensor], Tensor]

# Coordinates are rounded to this many voxels, so that affines read as float32 still hit voxel
# centres. Interpolation cannot show a smaller difference.
_GRAIN = 1e-5
_TOLERANCE_VOX = 1e-3
# an output voxel longer than this many input voxels covers more than a sample shows
_COARSER = 1 + 1e-3
# output rows at a time: temporaries of a few per cent of a volume
_SLAB_ROWS = 8
# unsigned integers that torch cannot flip, pad or index
_WIDER: dict[str, type] = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


def resample_to(
    array: Tensor | NDArray[Any],
    source: Geometry,
    target: Geometry,
    how: Interpolation,
    *,
    edge: Edge = "zero",
) -> Shaped[Tensor, "c *target"]:
    """Return an array on another grid, by position in space.

    Args:
        array: `[C, *source.shape]`, of any dtype; a numpy array may have any strides.
        source: grid of `array`.
        target: grid of the result, with as many axes.
        how: `linear` interpolates between voxel centres. `mean` does so, too, but takes the mean
            over the voxel's extent along axes on which target voxels are longer than source voxels.
            `share` is the mean over the voxel's whole extent of an array that is constant within
            its voxels; of a mask it is the covered share. `nearest` takes the value of the nearest
            voxel; halfway between two centres the higher index wins.
        edge: `zero`: the outermost value applies up to the outer face of its voxel, 0 outside.
            `extend`: the outermost values continue.

    Returns:
        `[C, *target.shape]`, float32; for `nearest` in the dtype of `array` (unsigned integers of
        16 bits and more become signed ones that are wider).

    Raises:
        GeometryError: if the grids have different numbers of axes.

    >>> fine = Geometry.from_spacing((4,), (1.0,))
    >>> coarse = Geometry((2,), np.array([[2.0, 0.5], [0, 1]]))  # each voxel covers two
    >>> resample_to(torch.tensor([[0.0, 1.0, 4.0, 7.0]]), fine, coarse, "mean").tolist()
    [[0.5, 5.5]]
    """
    out: Tensor | None = None
    for rows, slab in resample_slabs(array, source, target, how, edge=edge):
        if out is None:
            out = slab.new_empty((slab.shape[0], *target.shape))
        out[:, rows] = slab
    if out is None:  # the target has no rows
        return torch.zeros((len(array), *target.shape))
    return out


def resample_slabs(
    array: Tensor | NDArray[Any],
    source: Geometry,
    target: Geometry,
    how: Interpolation,
    *,
    edge: Edge = "zero",
    decode: Decode | None = None,
    n_rows: int = _SLAB_ROWS,
) -> Iterator[tuple[slice, Shaped[Tensor, "c rows *rest"]]]:
    """Yield what `resample_to` returns, some rows at a time, with their place.

    Temporaries have the size of one slab and of the input that it reads. A slab may share memory
    with `array`.

    Args:
        array: see `resample_to`.
        source: grid of `array`.
        target: grid of the result.
        how: see `resample_to`.
        edge: see `resample_to`.
        decode: turns stored numbers into values. It is called with the input of each slab.
        n_rows: rows of a slab.
    """
    matrix = index_matrix(source, target)
    whole = np.rint(matrix)
    drift = np.abs(matrix - whole)[:-1] @ np.array([*(n - 1 for n in target.shape), 1.0])
    is_exact = bool(drift.max() < _TOLERANCE_VOX)
    if is_exact:
        matrix = whole
    axes = _unmixed(matrix[:-1, :-1], target.shape)
    for start in range(0, target.shape[0], n_rows):
        rows = slice(start, min(start + n_rows, target.shape[0]))
        there = matrix.copy()
        there[:-1, -1] += start * matrix[:-1, 0]
        shape = (rows.stop - start, *target.shape[1:])
        lowest, highest = _reach(there, shape)
        last = np.array(source.shape) - 1
        first = lowest.clip(0, last)
        box = tuple(slice(a, b + 1) for a, b in zip(first, highest.clip(0, last), strict=True))
        read = array[(slice(None), *box)]
        piece = read if isinstance(read, Tensor) else as_torch(read)
        if decode is not None:
            piece = decode(piece)
        if edge == "extend" or how == "share":
            after = highest - highest.clip(0, last)
            piece = _pad(piece, first - lowest, after, zeros=edge == "zero")
            first = lowest
        there[:-1, -1] -= first
        yield rows, _Resampling(there, shape, axes, is_exact).of(piece, how).contiguous()


def index_matrix(source: Geometry, target: Geometry) -> NDArray[np.float64]:
    """Return the matrix that maps an index of `target` to an index of `source`.

    Raises `GeometryError` if the grids have different numbers of axes.
    """
    if source.dims != target.dims:
        raise GeometryError(
            f"An array of {source.dims} axes cannot be resampled on a grid of {target.dims}."
        )
    return np.asarray(np.linalg.inv(source.affine) @ target.affine, dtype=np.float64)


def as_torch(array: NDArray[Any]) -> Tensor:
    """Return the array as a tensor, which shares memory unless torch needs a copy.

    Foreign byte order, negative strides and read-only memory are copied; unsigned integers of 16
    bits and more become int32 or int64.
    """
    wider = _WIDER.get(array.dtype.name)
    if wider is not None or not array.dtype.isnative:
        array = array.astype(wider or array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _reach(
    matrix: NDArray[np.float64], shape: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lowest and highest input index that an output of `shape` can read, by axis.

    Output voxels reach to their faces, as a coarser one is a mean over its extent. Indices may be
    outside of the input.
    """
    corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in shape])))
    moved = corners @ matrix[:-1, :-1].T + matrix[:-1, -1]
    lowest = np.floor(moved.min(axis=0)).astype(np.int64) - 1
    highest = np.ceil(moved.max(axis=0)).astype(np.int64) + 1
    return lowest, highest


def _pad(
    piece: Tensor, before: NDArray[np.int64], after: NDArray[np.int64], *, zeros: bool
) -> Tensor:
    """Add voxels before and after each axis: zeros, or the outermost values again."""
    for axis, (n_before, n_after) in enumerate(zip(before, after, strict=True), start=1):
        n = piece.shape[axis]
        index = np.arange(-n_before, n + n_after)
        if len(index) == n:
            continue
        piece = piece.index_select(axis, _on(piece, index.clip(0, n - 1)))
        if zeros:
            outside = (index < 0) | (index >= n)
            piece = piece.masked_fill(_along(piece, axis, outside), 0)
    return piece


@dataclass(frozen=True, eq=False)
class _Resampling:
    """The way from the indices of an output to those of the input that is read for it.

    `matrix` `[dims+1, dims+1]` maps output indices to input indices. `source[j]` is the input axis
    along output axis j; None if axes mix. `is_exact`: the matrix has whole numbers only.
    """

    matrix: NDArray[np.float64]
    out_shape: tuple[int, ...]
    source: tuple[int, ...] | None
    is_exact: bool

    def of(self, piece: Tensor, how: Interpolation) -> Tensor:
        """Return `piece` `[C, *input]` on the output's grid, 0 outside of it."""
        if self.source is None:
            return self._by_voxels(piece, how)
        piece = piece.permute(0, *(1 + axis for axis in self.source))
        for axis, along in enumerate(self.source):
            ratio = float(abs(self.matrix[along, axis]))
            x = self._line(axis, along)
            if how == "share" or (how == "mean" and ratio > _COARSER):
                piece = _take_mean(piece, axis + 1, x, ratio)
            elif how == "nearest":
                piece = _take_nearest(piece, axis + 1, x)
            else:
                piece = _take_linear(piece, axis + 1, x)
        return piece

    def _line(self, axis: int, along: int) -> NDArray[np.float64]:
        """Return the coordinates on input axis `along` of the indices of output axis `axis`."""
        row = self.matrix[along]
        x = row[axis] * np.arange(self.out_shape[axis]) + row[-1]
        return x if self.is_exact else _snap(x)

    def _by_voxels(self, piece: Tensor, how: Interpolation) -> Tensor:
        """Return the samples of each output voxel, or their mean."""
        take = _sample_nearest if how in ("nearest", "share") else _sample_linear
        parts: list[Tensor] = []
        for at in self._samples(how):
            part = take(piece, self._coordinates(at))
            parts.append(part.float() if how == "share" else part)
        return torch.stack(parts).mean(0) if len(parts) > 1 else parts[0]

    def _samples(self, how: Interpolation) -> list[tuple[float, ...]]:
        """Return places within an output voxel, −½ to ½, whose mean is its value."""
        if how in ("linear", "nearest"):
            return [(0.0,) * len(self.out_shape)]
        steps = np.ceil(np.abs(self.matrix[:-1, :-1]).max(axis=0) / _COARSER).astype(int)
        least = 3 if how == "share" else 1
        lines = [(np.arange(n) + 0.5) / n - 0.5 for n in np.maximum(steps, least)]
        return list(itertools.product(*(line.tolist() for line in lines)))

    def _coordinates(self, at: Sequence[float]) -> list[NDArray[np.float64]]:
        """Return input coordinates `[*out_shape]`, one array for each input axis.

        `at` moves all of them by a part of an output voxel.
        """
        grid = np.ogrid[tuple(slice(0, n) for n in self.out_shape)]
        index = [i + part for i, part in zip(grid, at, strict=True)]
        return [
            _snap(np.asarray(sum(m * i for m, i in zip(row[:-1], index, strict=True)) + row[-1]))
            for row in self.matrix[:-1]
        ]


def _unmixed(linear: NDArray[np.float64], out_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the input axis of each output axis, or None if axes mix.

    Axes mix if one moves another's coordinate by 0.001 voxels or more.
    """
    along = np.abs(linear).argmax(axis=1)  # the output axis of each input axis
    if len(set(along.tolist())) < len(along):
        return None
    drift = np.abs(linear) * np.maximum(np.array(out_shape) - 1, 0)
    drift[np.arange(len(along)), along] = 0
    is_unmixed = drift.sum(1).max() < _TOLERANCE_VOX
    return tuple(int(i) for i in np.argsort(along)) if is_unmixed else None


def _take_mean(array: Tensor, axis: int, x: NDArray[np.float64], ratio: float) -> Tensor:
    """Return the mean over `ratio` input voxels around each coordinate, inside the array only."""
    n = array.shape[axis]
    low = np.clip(x - ratio / 2, -0.5, n - 0.5)
    high = np.clip(x + ratio / 2, -0.5, n - 0.5)
    total = np.maximum(high - low, _GRAIN)
    first = np.floor(low + 0.5).astype(np.int64)
    shape = [len(x) if a == axis else m for a, m in enumerate(array.shape)]
    mean = array.new_zeros(shape, dtype=torch.float32)
    for tap in range(math.ceil(ratio) + 1):
        at = first + tap
        share = np.clip(np.minimum(high, at + 0.5) - np.maximum(low, at - 0.5), 0, None) / total
        if share.any():
            values = array.index_select(axis, _on(array, np.minimum(at, n - 1))).float()
            mean += values * _along(array, axis, share.astype(np.float32))
    return _cut(mean, axis, x, n)


def _take_linear(array: Tensor, axis: int, x: NDArray[np.float64]) -> Tensor:
    n = array.shape[axis]
    clipped = np.clip(x, 0, n - 1)
    low = np.floor(clipped).astype(np.int64)
    share = clipped - low
    piece = _select(array, axis, low).float()
    if share.any():
        high = array.index_select(axis, _on(array, np.minimum(low + 1, n - 1))).float()
        piece = torch.lerp(piece, high, _along(array, axis, share.astype(np.float32)))
    return _cut(piece, axis, x, n)


def _take_nearest(array: Tensor, axis: int, x: NDArray[np.float64]) -> Tensor:
    n = array.shape[axis]
    index = np.clip(np.floor(x + 0.5), 0, n - 1).astype(np.int64)
    return _cut(_select(array, axis, index), axis, x, n)


def _select(array: Tensor, axis: int, index: NDArray[np.int64]) -> Tensor:
    """Return `array` at `index` along an axis: a view if the indices follow one another."""
    if (np.diff(index) == 1).all():
        return array.narrow(axis, int(index[0]), len(index))
    return array.index_select(axis, _on(array, index))


def _cut(piece: Tensor, axis: int, x: NDArray[np.float64], n: int) -> Tensor:
    """Return `piece` with 0 at coordinates along `axis` outside of `n` voxels."""
    inside = _inside(x, n)
    return piece if inside.all() else piece.masked_fill(_along(piece, axis, ~inside), 0)


def _sample_linear(array: Tensor, coordinates: list[NDArray[np.float64]]) -> Tensor:
    """Interpolate at scattered coordinates; `grid_sample` wants them last axis first, in ±1."""
    pairs = list(zip(coordinates, array.shape[1:], strict=True))
    inside = np.logical_and.reduce([_inside(x, n) for x, n in pairs])
    scaled = [2 * x / max(n - 1, 1) - 1 for x, n in reversed(pairs)]
    grid = _on(array, np.stack(scaled, axis=-1).astype(np.float32))
    sampled = functional.grid_sample(
        array[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[0].masked_fill(~_on(array, inside), 0)


def _sample_nearest(array: Tensor, coordinates: list[NDArray[np.float64]]) -> Tensor:
    pairs = list(zip(coordinates, array.shape[1:], strict=True))
    inside = np.logical_and.reduce([_inside(x, n) for x, n in pairs])
    index = [_on(array, np.clip(np.floor(x + 0.5), 0, n - 1).astype(np.int64)) for x, n in pairs]
    sampled = torch.stack([channel[tuple(index)] for channel in array])
    return sampled.masked_fill(~_on(array, inside), 0)


def _inside(x: NDArray[np.float64], n: int) -> NDArray[np.bool_]:
    return np.asarray((x >= -0.5) & (x <= n - 0.5))


def _snap(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.round(x / _GRAIN) * _GRAIN)


def _on(array: Tensor, values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(array.device)


def _along(array: Tensor, axis: int, values: NDArray[np.generic]) -> Tensor:
    return _on(array, values).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
