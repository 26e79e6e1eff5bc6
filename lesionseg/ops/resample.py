"""Resampling from one grid to another, slab by slab.

Index coordinates are those of voxel centres: voxel 0 reaches from −½ to ½. Values are
interpolated; on a coarser grid each voxel can be the mean over what it covers, so that nothing
between two samples is lost. Where each input axis runs along one output axis (identity, flips,
permutations, zooms: the way from a plan's grid to a file's) this is exact, one axis after the
other; any other matrix goes the long way.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from lesionseg.errors import GeometryError

# Coordinates are rounded to this many voxels, so that affines read as float32 still hit voxel
# centres; it is far below what interpolation could show.
_GRAIN = 1e-5
_TOLERANCE = 1e-3
# an output voxel this much longer than an input one covers more than a sample shows
_COARSER = 1 + 1e-3

_Take = Callable[[Tensor, int, NDArray[np.float64]], Tensor]


def resample_linear(
    array: Shaped[Tensor, "c *inp"],
    matrix: ArrayLike,
    out_shape: Sequence[int],
    *,
    slab: int = 32,
    average: bool = False,
) -> Float[Tensor, "c *out"]:
    """Interpolate `array` linearly on another grid; float32.

    `matrix` `[dims+1, dims+1]` maps an output index to an input index. With `average`, along an
    axis on which an output voxel is longer than an input one, its value is the mean over its own
    extent. In the half voxel between the outermost centres and the edge the outermost value holds;
    outside is 0. Temporaries are the size of `slab` output rows. Raises `GeometryError` for a
    matrix that does not fit.

    >>> halved = np.diag([2.0, 1.0]) + [[0, 0.5], [0, 0]]
    >>> resample_linear(torch.tensor([[0.0, 1.0, 4.0, 7.0]]), halved, (2,), average=True).tolist()
    [[0.5, 5.5]]
    """
    out = array.new_empty((array.shape[0], *out_shape), dtype=torch.float32)
    for rows, piece in linear_slabs(array, matrix, out_shape, slab=slab, average=average):
        out[:, rows] = piece
    return out


def linear_slabs(
    array: Shaped[Tensor, "c *inp"],
    matrix: ArrayLike,
    out_shape: Sequence[int],
    *,
    slab: int = 32,
    decode: Callable[[Tensor], Tensor] = Tensor.float,
    average: bool = False,
) -> Iterator[tuple[slice, Float[Tensor, "c rows *rest"]]]:
    """What `resample_linear` gives, `slab` rows of the output at a time, with the rows' place.

    `decode` turns stored numbers into those to interpolate between; where axes do not mix, only
    the rows that are read are decoded.
    """
    plan = _plan(array, matrix, out_shape)
    if plan.source is None:
        array = decode(array)
        for rows in _slabs(out_shape[0], slab):
            parts = [
                _sample_linear(array, plan.coordinates(rows, at)) for at in plan.samples(average)
            ]
            yield rows, torch.stack(parts).mean(0) if len(parts) > 1 else parts[0]
        return
    lines = [plan.line(axis) for axis in range(len(plan.source))]
    takes: list[_Take] = [
        partial(_take_mean, ratio=plan.ratio(axis))
        if average and plan.ratio(axis) > _COARSER
        else _take_linear
        for axis in range(len(plan.source))
    ]
    along, last = 1 + plan.source[0], array.shape[1 + plan.source[0]] - 1
    half = plan.ratio(0) / 2 if average else 0
    for rows in _slabs(out_shape[0], slab):
        x = lines[0][rows]
        first = int(np.clip(np.floor(x.min() - half), 0, last))
        n = int(np.clip(np.floor(x.max() + half) + 1, 0, last)) - first + 1
        read = decode(array.narrow(along, first, n))
        yield rows, _by_axes(read, plan.source, [x - first, *lines[1:]], takes)


def resample_area(
    array: Shaped[Tensor, "c *inp"], matrix: ArrayLike, out_shape: Sequence[int]
) -> Float[Tensor, "c *out"]:
    """The mean over each output voxel's extent of an array that is constant within its voxels.

    Of a mask: the share of the voxel that it covers, whether the grid is coarser or finer. Where
    axes mix it is the mean of samples. float32, 0 outside; errors as `resample_linear`.

    >>> halves = np.diag([0.5, 1.0]) + [[0, -0.25], [0, 0]]
    >>> resample_area(torch.tensor([[0.0, 1.0]]), halves, (4,)).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    plan = _plan(array, matrix, out_shape)
    if plan.source is None:
        rows = slice(0, out_shape[0])
        parts = [
            _sample_nearest(array, plan.coordinates(rows, at)) for at in plan.samples(True, least=3)
        ]
        return torch.stack(parts).float().mean(0)
    axes = range(len(plan.source))
    takes: list[_Take] = [partial(_take_mean, ratio=plan.ratio(axis)) for axis in axes]
    return _by_axes(array, plan.source, [plan.line(axis) for axis in axes], takes)


def resample_nearest(
    array: Shaped[Tensor, "c *inp"], matrix: ArrayLike, out_shape: Sequence[int], *, slab: int = 32
) -> Shaped[Tensor, "c *out"]:
    """Take the nearest voxel's value on another grid, in the dtype of `array`.

    As `resample_linear`; halfway between two centres the higher index wins.
    """
    plan = _plan(array, matrix, out_shape)
    out = array.new_zeros((array.shape[0], *out_shape))
    lines = [] if plan.source is None else [plan.line(axis) for axis in range(len(plan.source))]
    for rows in _slabs(out_shape[0], slab):
        if plan.source is None:
            out[:, rows] = _sample_nearest(array, plan.coordinates(rows))
        else:
            places = [lines[0][rows], *lines[1:]]
            out[:, rows] = _by_axes(array, plan.source, places, [_take_nearest] * len(places))
    return out


@dataclass(frozen=True, eq=False)
class _Resampling:
    """A checked request. `source[j]`: the input axis along output axis j; None if they mix."""

    matrix: NDArray[np.float64]
    out_shape: tuple[int, ...]
    source: tuple[int, ...] | None

    def line(self, axis: int) -> NDArray[np.float64]:
        """Input coordinates along output axis `axis`, when axes do not mix."""
        row = self.matrix[0 if self.source is None else self.source[axis]]
        return _snap(row[axis] * np.arange(self.out_shape[axis]) + row[-1])

    def ratio(self, axis: int) -> float:
        """How many input voxels an output voxel is long, when axes do not mix."""
        return float(abs(self.matrix[0 if self.source is None else self.source[axis], axis]))

    def samples(self, average: bool, least: int = 1) -> list[tuple[float, ...]]:
        """Places within an output voxel, −½ to ½, whose mean stands for it when axes mix."""
        if not average:
            return [(0.0,) * len(self.out_shape)]
        steps = np.ceil(np.abs(self.matrix[:-1, :-1]).max(axis=0) / _COARSER).astype(int)
        lines = [(np.arange(n) + 0.5) / n - 0.5 for n in np.maximum(steps, least)]
        return list(itertools.product(*(line.tolist() for line in lines)))

    def coordinates(
        self, rows: slice, at: Sequence[float] | None = None
    ) -> list[NDArray[np.float64]]:
        """Input coordinates of the output rows, one array `[rows, *out[1:]]` an input axis.

        `at` moves all of them by a part of an output voxel.
        """
        grid = np.ogrid[(rows, *(slice(0, n) for n in self.out_shape[1:]))]
        index = [i + part for i, part in zip(grid, at or [0.0] * len(grid), strict=True)]
        return [
            _snap(np.asarray(sum(m * i for m, i in zip(row[:-1], index, strict=True)) + row[-1]))
            for row in self.matrix[:-1]
        ]


def _plan(array: Tensor, matrix: ArrayLike, out_shape: Sequence[int]) -> _Resampling:
    checked = np.asarray(matrix, dtype=np.float64)
    dims = array.ndim - 1
    if checked.shape != (dims + 1, dims + 1) or len(out_shape) != dims:
        seen = checked.shape, tuple(out_shape)
        raise GeometryError(f"The resampling matrix does not fit an array of {dims} axes: {seen}.")
    shape = tuple(int(n) for n in out_shape)
    return _Resampling(checked, shape, _unmixed(checked[:dims, :dims], shape))


def _unmixed(linear: NDArray[np.float64], out_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The input axis of each output axis, if none moves another's coordinate by 0.001 voxels."""
    along = np.abs(linear).argmax(axis=1)  # the output axis of each input axis
    if len(set(along.tolist())) < len(along):
        return None
    drift = np.abs(linear) * np.maximum(np.array(out_shape) - 1, 0)
    drift[np.arange(len(along)), along] = 0
    return tuple(int(i) for i in np.argsort(along)) if drift.sum(1).max() < _TOLERANCE else None


def _by_axes(
    array: Tensor,
    source: tuple[int, ...],
    places: Sequence[NDArray[np.float64]],
    takes: Sequence[_Take],
) -> Tensor:
    """Read `array` axis by axis: output axis j is input axis `source[j]`, at `places[j]`."""
    piece = array.permute(0, *(1 + axis for axis in source))
    for axis, (places_there, take) in enumerate(zip(places, takes, strict=True), start=1):
        piece = take(piece, axis, places_there)
    return piece


def _take_mean(array: Tensor, axis: int, x: NDArray[np.float64], *, ratio: float) -> Tensor:
    """The mean over `ratio` input voxels around each place, those inside the array alone."""
    n = array.shape[axis]
    low, high = (np.clip(x + way * ratio / 2, -0.5, n - 0.5) for way in (-1, 1))
    first = np.floor(low + 0.5).astype(np.int64)
    total = np.maximum(high - low, _GRAIN)
    piece = None
    for tap in range(math.ceil(ratio) + 1):
        at = first + tap
        share = np.clip(np.minimum(high, at + 0.5) - np.maximum(low, at - 0.5), 0, None) / total
        if share.any():
            values = array.index_select(axis, _on(array, np.minimum(at, n - 1))).float()
            values = values * _along(array, axis, share.astype(np.float32))
            piece = values if piece is None else piece.add_(values)
    inside = _along(array, axis, _inside(x, n))
    if piece is None:  # every place lies outside
        return array.new_zeros(
            [len(x) if a == axis else m for a, m in enumerate(array.shape)]
        ).float()
    return torch.where(inside, piece, 0)


def _take_linear(array: Tensor, axis: int, x: NDArray[np.float64]) -> Tensor:
    n = array.shape[axis]
    inside = _inside(x, n)
    x = np.clip(x, 0, n - 1)
    low = np.floor(x).astype(np.int64)
    share = x - low
    piece = array.index_select(axis, _on(array, low)).float()
    if share.any():
        high = array.index_select(axis, _on(array, np.minimum(low + 1, n - 1))).float()
        piece = torch.lerp(piece, high, _along(array, axis, share.astype(np.float32)))
    return piece if inside.all() else torch.where(_along(array, axis, inside), piece, 0)


def _take_nearest(array: Tensor, axis: int, x: NDArray[np.float64]) -> Tensor:
    n = array.shape[axis]
    index = np.clip(np.floor(x + 0.5), 0, n - 1).astype(np.int64)
    piece = array.index_select(axis, _on(array, index))
    inside = _inside(x, n)
    return piece if inside.all() else piece * _along(array, axis, inside)


def _sample_linear(array: Tensor, coordinates: list[NDArray[np.float64]]) -> Tensor:
    """Interpolate at scattered coordinates; `grid_sample` wants them last axis first, in ±1."""
    lengths = array.shape[1:]
    pairs = list(zip(coordinates, lengths, strict=True))
    inside = np.logical_and.reduce([_inside(x, n) for x, n in pairs])
    scaled = [2 * x / max(n - 1, 1) - 1 for x, n in reversed(pairs)]
    grid = _on(array, np.stack(scaled, axis=-1).astype(np.float32))
    sampled = functional.grid_sample(
        array[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[0] * _on(array, inside)


def _sample_nearest(array: Tensor, coordinates: list[NDArray[np.float64]]) -> Tensor:
    pairs = list(zip(coordinates, array.shape[1:], strict=True))
    inside = np.logical_and.reduce([_inside(x, n) for x, n in pairs])
    index = [_on(array, np.clip(np.floor(x + 0.5), 0, n - 1).astype(np.int64)) for x, n in pairs]
    sampled = torch.stack([channel[tuple(index)] for channel in array])
    return sampled * _on(array, inside)


def _inside(x: NDArray[np.float64], n: int) -> NDArray[np.bool_]:
    return np.asarray((x >= -0.5) & (x <= n - 0.5))


def _snap(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.round(x / _GRAIN) * _GRAIN)


def _on(array: Tensor, values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(array.device)


def _along(array: Tensor, axis: int, values: NDArray[np.generic]) -> Tensor:
    return _on(array, values).reshape([-1 if a == axis else 1 for a in range(array.ndim)])


def _slabs(n: int, slab: int) -> list[slice]:
    return [slice(start, min(start + slab, n)) for start in range(0, n, slab)]
