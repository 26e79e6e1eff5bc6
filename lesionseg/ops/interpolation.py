"""Interpolation: an array resampled to a grid, or resized by splines; edges, tolerances, slabs.

It is by position in space, or over the same extent.

Index coordinates refer to voxel centres: voxel 0 extends from −½ to ½.

`resample_to` converts an array from one grid to another, slab by slab. It has three cases. If the
grids differ only by whole voxels, flips and axis order, values are copied. If each input axis is
parallel to one output axis, as between a plan's grid and a file's, the axes are resampled one after
the other. For any other affine, each output voxel is sampled separately.

`resize` changes the number of voxels of whole arrays by splines, one axis after the other. Both
grids cover the same extent, and the outermost values continue. A spline is linear in the voxel
values, so that it is a matrix along each axis. SciPy computes the matrix of a cubic spline, which
is applied as a product. Linear and nearest interpolation need only two neighbours.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lesionseg.core import Geometry
from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.errors import GeometryError

Interpolation = Literal["linear", "mean", "share", "nearest"]
Edge = Literal["zero", "near", "extend"]
Decode = Callable[[Tensor], Tensor]

NEAREST = 0  # orders of splines
LINEAR = 1

# Coordinates are rounded to multiples of this many voxels. Otherwise affines that were read as
# float32 would not hit voxel centres exactly.
_ROUNDING_VOX = 1e-5
_TOLERANCE_VOX = 1e-3  # grids that differ by less than this many voxels agree
# If an output voxel is longer than this many input voxels, it needs more than one sample.
_COARSER = 1 + 1e-3
_SLAB_ROWS = 8  # output rows per slab; temporary arrays are then a few per cent of a volume
# wider types for unsigned integers that torch cannot flip, pad or index
_WIDER: dict[str, type] = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


def resample_to(
    array: Tensor | NDArray[Any],
    source: Geometry,
    target: Geometry,
    how: Interpolation,
    *,
    edge: Edge = "zero",
) -> Shaped[Tensor, "c *target"]:
    """Resample an array to another grid, by position in space.

    Args:
        array: `[C, *source.shape]`, of any dtype; a numpy array may have any strides.
        source: Grid of `array`.
        target: Grid of the result, with as many axes.
        how: The method:

            - `linear` interpolates between voxel centres.
            - `mean` also interpolates, but along axes on which target voxels are longer than source
              voxels, it averages over the extent of the target voxel.
            - `share` averages over the extent of the target voxel along all axes, and treats the
              array as constant within its voxels. For a mask, the result is the fraction of a voxel
              that the mask covers.
            - `nearest` copies the nearest voxel; halfway between two centres the higher index wins.
        edge: With `zero`, the outermost value applies up to the outer face of its voxel, and the
            result is 0 outside. With `near`, the outermost value also applies outside, at less
            than half a voxel from this face; `share` treats it like `zero`. With `extend`, the
            outermost values continue.

    Returns:
        `[C, *target.shape]` in float32. For `nearest` in the dtype of `array`, except that unsigned
        integers of 16 bits and more become wider signed ones. A target without rows gives an empty
        array.

    Raises:
        GeometryError: If the grids have different numbers of axes.

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
    """Yield the result of `resample_to` in slabs along the first spatial axis, to save memory.

    Temporary arrays have the size of one slab and of the input that the slab needs. A slab may
    share memory with `array`.

    Args:
        array: `[C, *source.shape]`, of any dtype; a numpy array may have any strides.
        source: Grid of `array`.
        target: Grid of the result.
        how: `linear`, `mean`, `share` or `nearest`, as `resample_to` describes them.
        edge: Values outside of the array: `zero`, `near` or `extend` (`resample_to`).
        decode: Converts stored numbers to intensities. It is called with the input of each slab.
        n_rows: The number of rows of a slab.

    Yields:
        The slice of rows of the target, and the resampled array of these rows `[C, rows, *rest]`.

    Raises:
        GeometryError: If the grids have different numbers of axes.
    """
    matrix = index_matrix(source, target)
    rounded = np.rint(matrix)
    # a matrix of whole numbers hits voxel centres exactly
    is_exact = _largest_drift(matrix, rounded, target.shape) < _TOLERANCE_VOX
    if is_exact:
        matrix = rounded
    axes = _find_parallel_axes(matrix[:-1, :-1], target.shape)
    for start in range(0, target.shape[0], n_rows):
        rows = slice(start, min(start + n_rows, target.shape[0]))
        shape = (rows.stop - start, *target.shape[1:])
        slab_matrix = matrix.copy()  # from indices of the slab to indices of the array
        slab_matrix[:-1, -1] += start * matrix[:-1, 0]  # row 0 of the slab is row `start`
        # the slab needs the indices from `lowest` to `highest`; the array may lack some of them
        lowest, highest = _find_input_range(slab_matrix, shape)
        last_index = np.array(source.shape) - 1
        first = lowest.clip(0, last_index)
        last = highest.clip(0, last_index)
        piece = _read_region(array, first, last, decode)
        # `extend` needs the outermost values also outside the array. A share needs zeros there, as
        # it would otherwise be a mean over only the part of a voxel that is within the array.
        if edge == "extend" or how == "share":
            piece = _pad(piece, first - lowest, highest - last, zeros=edge != "extend")
            first = lowest
        piece_matrix = slab_matrix.copy()  # from indices of the slab to indices of `piece`
        piece_matrix[:-1, -1] -= first
        # The outer face is half a voxel from the centre. With `near`, the next voxel of a grid of
        # the same spacing, at a distance of 1, is outside.
        reach = 1 - _TOLERANCE_VOX if edge == "near" else 0.5
        resampling = _Resampling(piece_matrix, shape, axes, is_exact, reach)
        yield rows, resampling.apply(piece, how).contiguous()


def _read_region(
    array: Tensor | NDArray[Any],
    first: Integers,
    last: Integers,
    decode: Decode | None,
) -> Tensor:
    """Read the region of an array `[C, *spatial]` that a slab needs, as a tensor.

    Only this region is decoded, because decoded values may need more memory than stored values.

    Args:
        array: The array.
        first: First index along each spatial axis.
        last: Last index along each spatial axis, inclusive.
        decode: Converts stored numbers to intensities; None if they need no conversion.
    """
    region = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    stored = array[(slice(None), *region)]
    piece = stored if isinstance(stored, Tensor) else as_torch(stored)
    return piece if decode is None else decode(piece)


def _largest_drift(matrix: Numbers, other: Numbers, out_shape: Sequence[int]) -> float:
    """Return how far apart two matrices map the same output index at most, in input voxels.

    Used to test whether a matrix can be replaced by its rounded version. The result is an upper
    bound over all indices of `out_shape`, along the input axis with the largest difference.

    Args:
        matrix: Affine `[dims+1, dims+1]` from output indices to input indices.
        other: Another such affine.
        out_shape: Shape of the output.
    """
    last_index = np.array([*(n - 1 for n in out_shape), 1.0])  # 1 for the offset
    return float((np.abs(matrix - other)[:-1] @ last_index).max())


def index_matrix(source: Geometry, target: Geometry) -> Numbers:
    """Return the affine `[dims+1, dims+1]` that maps an index of `target` to an index of `source`.

    Raise `GeometryError` if the grids have different numbers of axes.
    """
    if source.dims != target.dims:
        raise GeometryError(
            f"An array with {source.dims} axes cannot be resampled to a grid with {target.dims}. "
            "Give grids with the same number of axes."
        )
    return np.linalg.inv(source.affine) @ target.affine


def as_torch(array: NDArray[Any]) -> Tensor:
    """Convert a NumPy array to a tensor, which shares memory unless torch needs a copy.

    Arrays with the byte order of another processor, negative strides or read-only memory are
    copied. Unsigned integers of 16 bits and more are converted to int32 or int64.
    """
    wider = _WIDER.get(array.dtype.name)
    if wider is not None or not array.dtype.isnative:
        array = array.astype(wider or array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _find_input_range(matrix: Numbers, shape: Sequence[int]) -> tuple[Integers, Integers]:
    """Return the lowest and the highest input index along each axis that an output needs.

    The output extends to the outer faces of its voxels, because a coarse voxel is a mean over its
    extent. One more input voxel before and after is the neighbour for interpolation. Indices may be
    outside the input.

    Args:
        matrix: Affine from output indices to input indices.
        shape: Shape of the output.
    """
    # an affine map reaches its extremes at the corners
    corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in shape])))
    mapped = corners @ matrix[:-1, :-1].T + matrix[:-1, -1]
    lowest = np.floor(mapped.min(axis=0)).astype(np.int64) - 1
    return lowest, np.ceil(mapped.max(axis=0)).astype(np.int64) + 1


def _pad(piece: Tensor, before: Integers, after: Integers, *, zeros: bool) -> Tensor:
    """Add `before` and `after` voxels at the ends of each spatial axis of `piece` `[C, *spatial]`.

    The added voxels are 0 with `zeros`, otherwise copies of the outermost voxels.
    """
    for axis, (n_before, n_after) in enumerate(zip(before, after, strict=True), start=1):
        n = piece.shape[axis]
        index = np.arange(-n_before, n + n_after)
        if len(index) == n:
            continue
        piece = gather_along(piece, axis, index.clip(0, n - 1))
        if zeros:
            piece = piece.masked_fill(_broadcast_along(piece, axis, (index < 0) | (index >= n)), 0)
    return piece


@dataclass(frozen=True, eq=False)
class _Resampling:
    """The resampling of the input that is read for a slab.

    Attributes:
        matrix: Affine `[dims+1, dims+1]` from output indices to input indices.
        out_shape: Shape of the output.
        parallel: The input axis that is parallel to each output axis. None for oblique axes.
        is_exact: True if the matrix contains only whole numbers.
        reach: Distance from the centres of the outermost input voxels, in voxels, up to which
            their values apply.
    """

    matrix: Numbers
    out_shape: tuple[int, ...]
    parallel: tuple[int, ...] | None
    is_exact: bool
    reach: float

    def apply(self, piece: Tensor, how: Interpolation) -> Tensor:
        """Resample `piece` `[C, *input]` to the output's grid by the method `how`.

        If input axes are parallel to output axes, they are resampled one after the other, which is
        faster than sampling each voxel. Output voxels farther than `reach` from the centres of all
        input voxels are 0.
        """
        if self.parallel is None:
            return self._sample_voxels(piece, how)
        # axis 0 of `piece` contains the channels
        piece = piece.permute([0] + [1 + axis for axis in self.parallel])
        for axis, input_axis in enumerate(self.parallel):
            ratio = float(abs(self.matrix[input_axis, axis]))  # input voxels per output voxel
            x = self._axis_coordinates(axis, input_axis)
            n = piece.shape[axis + 1]
            if how == "share" or (how == "mean" and ratio > _COARSER):
                piece = _average_around(piece, axis + 1, x, ratio)
            elif how == "nearest":
                piece = Neighbours.of(x, n, NEAREST).apply(piece, axis + 1)
            else:
                piece = Neighbours.of(x, n, LINEAR).apply(piece, axis + 1).float()
            inside = _is_inside(x, n, self.reach)
            if not inside.all():
                piece = piece.masked_fill(_broadcast_along(piece, axis + 1, ~inside), 0)
        return piece

    def _axis_coordinates(self, axis: int, input_axis: int) -> Numbers:
        """Return the coordinate on input axis `input_axis` of each index of output axis `axis`.

        Used for parallel axes. Coordinates are in voxels.
        """
        row = self.matrix[input_axis]
        x = row[axis] * np.arange(self.out_shape[axis]) + row[-1]
        return x if self.is_exact else _round_coordinates(x)

    def _sample_voxels(self, piece: Tensor, how: Interpolation) -> Tensor:
        """Resample `piece` to the output's grid if axes are oblique: each voxel separately.

        An output voxel is one sample, or the mean of several samples (`_sample_offsets`). A sample
        farther than `reach` from the centres of all input voxels is 0.
        """

        def sample(offset: Sequence[float]) -> Tensor:
            """Sample `piece` at the position `offset` in each output voxel (0 is its centre)."""
            coordinates = self._coordinates(offset)
            pairs = zip(coordinates, piece.shape[1:], strict=True)
            inside = np.logical_and.reduce([_is_inside(x, n, self.reach) for x, n in pairs])
            # `share` treats the array as constant within its voxels
            sample_at = _sample_nearest if how in ("nearest", "share") else _sample_linear
            return sample_at(piece, coordinates).masked_fill(~_as_tensor(inside, piece.device), 0)

        offsets = self._sample_offsets(how)
        first = sample(offsets[0])
        if len(offsets) == 1:
            return first
        total = first.float()
        for offset in offsets[1:]:
            total += sample(offset)
        return total / len(offsets)

    def _sample_offsets(self, how: Interpolation) -> list[tuple[float, ...]]:
        """Return the positions within an output voxel, −½ to ½ along each axis, to sample.

        - `linear` and `nearest` have one sample, at the centre.
        - `mean` has as many samples along an axis as the output voxel is long in input voxels,
          rounded up.
        - `share` has the same number, but at least three per axis.

        The samples of an axis are evenly spaced.
        """
        if how in ("linear", "nearest"):
            return [(0.0,) * len(self.out_shape)]
        lengths = np.abs(self.matrix[:-1, :-1]).max(axis=0)  # of an output voxel, in input voxels
        # divided by `_COARSER`, so that a length of 1.0001 needs one sample
        n_samples = np.maximum(np.ceil(lengths / _COARSER).astype(int), 3 if how == "share" else 1)
        offsets_along = [(np.arange(n) + 0.5) / n - 0.5 for n in n_samples]
        return list(itertools.product(*[offsets.tolist() for offsets in offsets_along]))

    def _coordinates(self, offset: Sequence[float]) -> list[Numbers]:
        """Return the input coordinates of a position within each output voxel.

        `offset` is this position along each output axis, −½ to ½. The result has one array
        `[*out_shape]` for each input axis.
        """
        grid = np.ogrid[tuple(slice(0, n) for n in self.out_shape)]
        positions = [i + shift for i, shift in zip(grid, offset, strict=True)]
        coordinates = []
        for row in self.matrix[:-1]:
            x = sum(factor * i for factor, i in zip(row[:-1], positions, strict=True)) + row[-1]
            coordinates.append(_round_coordinates(np.asarray(x)))
        return coordinates


def _find_parallel_axes(linear: Numbers, out_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the input axis that is parallel to each output axis, or None if axes are oblique.

    `linear` `[dims, dims]` maps output indices to input indices. Axes are oblique if the coordinate
    on an input axis changes by 0.001 voxels or more along the other output axes together, from the
    first to the last voxel of `out_shape`.
    """
    output_axes = np.abs(linear).argmax(axis=1)  # the closest output axis of each input axis
    if len(set(output_axes.tolist())) != len(output_axes):
        return None
    # how far each input coordinate moves along each output axis, from its first to its last voxel
    spread = np.abs(linear) * np.maximum(np.array(out_shape) - 1, 0)
    spread[np.arange(len(output_axes)), output_axes] = 0
    if spread.sum(axis=1).max() >= _TOLERANCE_VOX:
        return None
    input_axes = np.argsort(output_axes)  # the inverse permutation
    return tuple(map(int, input_axes))


def _average_around(array: Tensor, axis: int, x: Numbers, ratio: float) -> Tensor:
    """Average an array along one axis over intervals, to resample it to longer voxels.

    The interval of output position i is centred at `x[i]` and `ratio` input voxels long, clipped to
    the array. The weight of an input voxel is the share of the interval that it covers. An interval
    touches at most `ceil(ratio) + 1` voxels, which are added one after the other.
    """
    n = array.shape[axis]
    # voxel i of the array covers i ± 0.5
    low = np.clip(x - ratio / 2, -0.5, n - 0.5)
    high = np.clip(x + ratio / 2, -0.5, n - 0.5)
    length = np.maximum(high - low, _ROUNDING_VOX)  # not 0 for an interval outside the array
    first = np.floor(low + 0.5).astype(np.int64)  # the voxel that contains `low`
    shape = [len(x) if a == axis else m for a, m in enumerate(array.shape)]
    mean = array.new_zeros(shape, dtype=torch.float32)
    for step in range(math.ceil(ratio) + 1):
        voxel = first + step
        covered = np.minimum(high, voxel + 0.5) - np.maximum(low, voxel - 0.5)
        share = np.clip(covered, 0, None) / length
        if share.any():
            values = gather_along(array, axis, np.minimum(voxel, n - 1)).float()
            mean += values * _broadcast_along(array, axis, share.astype(np.float32))
    return mean


def gather_along(array: Tensor, axis: int, index: Integers) -> Tensor:
    """Return the entries of an array at `index` along an axis, as `torch.index_select` does.

    On a CPU, NumPy's `take` copies the entries 3 to 10 times as fast as torch.
    """
    if array.device.type != "cpu":
        return array.index_select(axis, _as_tensor(index, array.device))
    return torch.from_numpy(array.numpy().take(index, axis=axis))


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Two input positions `[n]` of each output position, and the weight `[n]` of the second."""

    first: Integers
    second: Integers
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, x: NDArray[np.floating[Any]], n: int, order: int) -> "Neighbours":
        """Find the neighbours of coordinates `x` on an axis of `n` voxels.

        Args:
            x: Coordinates in voxels. Outside of the axis, the outermost voxel is the neighbour.
            n: Voxels of the axis.
            order: 0 for the nearest voxel (halfway between two centres the higher index wins), 1
                for the two voxels of linear interpolation.
        """
        if order == NEAREST:
            first = np.clip(np.floor(x + 0.5), 0, n - 1)  # not `rint`, which rounds 0.5 to 0
            second = first
            weight = np.zeros(len(x))
        else:
            inside = np.clip(x, 0, n - 1)
            first = np.floor(inside)
            weight = inside - first
            # a value of weight 0 must not count, but 0 times an infinite value would be NaN
            second = np.where(weight > 0, np.minimum(first + 1, n - 1), first)
        return cls(first.astype(np.int64), second.astype(np.int64), weight.astype(np.float32))

    def within(self, rows: slice, start: int) -> "Neighbours":
        """Return the neighbours of the output positions `rows`, for a cropped input.

        `start` is the input position at which the cropped input begins.
        """
        return Neighbours(self.first[rows] - start, self.second[rows] - start, self.weight[rows])

    def reach(self, rows: slice) -> slice:
        """Return the range of input positions that the output positions `rows` need."""
        return slice(int(self.first[rows].min()), int(self.second[rows].max()) + 1)

    def apply(self, array: Shaped[Tensor, "*any"], axis: int) -> Shaped[Tensor, "*any"]:
        """Interpolate an array along an axis.

        The result is float32. If all weights are 0, entries are only copied, and the result has the
        dtype of the array. It is then a view if the positions are consecutive. The result stays
        within the minimum and maximum of the input.
        """
        if not self.weight.any():
            if (np.diff(self.first) == 1).all():
                return array.narrow(axis, int(self.first[0]), len(self.first))
            return gather_along(array, axis, self.first)
        first = gather_along(array, axis, self.first).float()
        second = gather_along(array, axis, self.second).float()
        return first.lerp_(second, _broadcast_along(array, axis, self.weight))


@lru_cache(maxsize=64)
def find_interpolation_neighbours(n_in: int, n_out: int, order: int) -> Neighbours:
    """Find the neighbours for resizing an axis of `n_in` voxels to `n_out` over the same extent.

    Output voxel i has the input coordinate (i + ½) · n_in/n_out − ½. `order` is 0 (nearest) or 1
    (linear). The result is cached: do not change it.

    >>> found = find_interpolation_neighbours(2, 4, 1)
    >>> found.first.tolist(), found.second.tolist(), found.weight.tolist()
    ([0, 0, 0, 1], [0, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    return Neighbours.of((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, n_in, order)


def _sample_linear(array: Tensor, coordinates: Sequence[Numbers]) -> Tensor:
    """Interpolate an array `[C, *input]` linearly at scattered positions.

    `coordinates` has one array `[*out]` for each input axis, in voxels. The result is `[C, *out]`.
    Outside the array, the outermost voxels continue.
    """
    pairs = list(zip(coordinates, array.shape[1:], strict=True))
    # grid_sample expects coordinates from −1 to 1, last axis first
    scaled = [2 * x / max(n - 1, 1) - 1 for x, n in reversed(pairs)]  # max: an axis of one voxel
    grid = _as_tensor(np.stack(scaled, axis=-1).astype(np.float32), array.device)
    sampled = functional.grid_sample(
        array[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[0]


def _sample_nearest(array: Tensor, coordinates: Sequence[Numbers]) -> Tensor:
    """Return the nearest voxels of an array `[C, *input]` at scattered positions.

    `coordinates` has one array `[*out]` for each input axis, in voxels. The result is `[C, *out]`.
    Outside the array, the outermost voxels continue.
    """
    index = [
        _as_tensor(np.clip(np.floor(x + 0.5), 0, n - 1).astype(np.int64), array.device)
        for x, n in zip(coordinates, array.shape[1:], strict=True)
    ]
    return torch.stack([channel[tuple(index)] for channel in array])


def _is_inside(x: Numbers, n: int, reach: float) -> Flags:
    """Return True for coordinates on an axis that are near enough to its `n` voxels.

    A coordinate may be at most `reach` before the centre of the first voxel, or after the centre of
    the last voxel. Coordinates and `reach` are in voxels.
    """
    return (x >= -reach) & (x <= n - 1 + reach)


def _round_coordinates(x: Numbers) -> Numbers:
    """Round coordinates to multiples of `_ROUNDING_VOX`, so that voxel centres are hit exactly.

    Integers stay exactly integers.
    """
    per_unit = round(1 / _ROUNDING_VOX)  # 100 000
    # a product with 1e-5 would turn 3 into 3.0000000000000004, and touch the next voxel
    return np.round(x * per_unit) / per_unit


def _as_tensor(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Convert computed indices or weights to a tensor on the device of the array they apply to."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _broadcast_along(array: Tensor, axis: int, values: NDArray[np.generic]) -> Tensor:
    """Return `values` `[n]` as a tensor that applies to `array` along an axis of length n.

    All other axes have length 1, so that it broadcasts.
    """
    shape = [1] * array.ndim
    shape[axis] = -1
    return _as_tensor(values, array.device).reshape(shape)


@lru_cache(maxsize=64)
def spline_matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float32]:
    """Return the matrix `[n_out, n_in]` that resizes an axis by a spline of `order` 2 to 5.

    Column i is the resized array that is 1 at voxel i and 0 elsewhere, because a spline is linear
    in the voxels. The result is cached: do not change it.

    >>> spline_matrix(3, 3, 3).round(6).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    columns = [
        ndimage.zoom(unit, n_out / n_in, order=order, mode="nearest", grid_mode=True)
        for unit in np.eye(n_in)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def resize(
    array: Float[Tensor, "*inp"],
    shape: Sequence[int],
    orders: Sequence[int],
    *,
    clip_along: int | None = None,
) -> Float[Tensor, "*out"]:
    """Resize an array to `shape` over the same extent, by splines along each axis. Return float32.

    Splines of order 2 and more overshoot, so the result is clipped to the range of the array. An
    axis that keeps its length stays unchanged. If all axes keep their lengths, the result may share
    memory with the array.

    Args:
        array: The array.
        shape: Shape of the result.
        orders: Order of the spline for each axis, 0 (nearest) to 5.
        clip_along: An axis of order 0 or 1. Each slice across this axis is clipped to the range of
            this slice, before the axis itself is resized. None clips to the range of the array.

    >>> resize(torch.tensor([[0.0, 2.0]]), (1, 4), (0, 1)).tolist()
    [[0.0, 0.5, 1.5, 2.0]]
    """
    out = array.float().contiguous()
    changed = [axis for axis, n in enumerate(shape) if n != array.shape[axis]]
    spline_axes = [axis for axis in changed if orders[axis] > LINEAR]
    neighbour_axes = [axis for axis in changed if orders[axis] <= LINEAR]
    if spline_axes:
        reduced_axes = [
            axis for axis in range(array.ndim) if axis != clip_along or axis in spline_axes
        ]
        low = out.amin(dim=reduced_axes, keepdim=True)
        high = out.amax(dim=reduced_axes, keepdim=True)
        for axis in spline_axes:
            matrix = spline_matrix(out.shape[axis], shape[axis], orders[axis])
            out = multiply_along(out, axis, torch.from_numpy(matrix))
        out = torch.minimum(torch.maximum(out, low, out=out), high, out=out)
    # axes that become shorter come first, so that later ones have fewer values
    for axis in sorted(neighbour_axes, key=lambda axis: shape[axis] / array.shape[axis]):
        out = find_interpolation_neighbours(out.shape[axis], shape[axis], orders[axis]).apply(
            out, axis
        )
    return out


def multiply_along(array: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply an array by `matrix` `[out, n]` along an axis of length n.

    The axis has length out in the result.
    """
    if axis == array.ndim - 1:
        return array @ matrix.T
    # `[before, n, after]`: matmul multiplies along the last but one axis
    before = list(array.shape[:axis])
    product = torch.matmul(matrix, array.reshape([*before, array.shape[axis], -1]))
    return product.reshape([*before, len(matrix), *array.shape[axis + 1 :]])
