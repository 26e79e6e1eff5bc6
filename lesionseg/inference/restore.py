"""From the plan's grid back to the grid of the scan's own file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError
from lesionseg.ops.resample import linear_slabs

_EXACT_VOX = 1e-3
# rows restored at a time
_SLAB_ROWS = 16


@dataclass(frozen=True)
class SignedPermutation:
    """Grids that differ by flips, axis order and whole-voxel shifts only.

    File axis a runs along plan axis `axes[a]`; file index i lies at plan index
    `signs[a] · i + offsets[a]`.
    """

    axes: tuple[int, ...]
    signs: tuple[int, ...]
    offsets: tuple[int, ...]

    def slabs(self, array: NDArray[Any], shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
        """`array` `[*plan]` read on the file's grid; 0 where the plan's grid does not reach."""
        first, *rest = (
            _span(n_out, array.shape[axis], sign, offset)
            for n_out, axis, sign, offset in zip(
                shape, self.axes, self.signs, self.offsets, strict=True
            )
        )
        seen = array.transpose(self.axes)[tuple(span[1] for span in (first, *rest))]
        reached = first[0]
        for start in range(0, shape[0], _SLAB_ROWS):
            stop = min(start + _SLAB_ROWS, shape[0])
            out = np.zeros((stop - start, *shape[1:]), dtype=array.dtype)
            a, b = max(start, reached.start), min(stop, reached.stop)
            if a < b:
                rows = slice(a - start, b - start)
                there = (rows, *(span[0] for span in rest))
                out[there] = seen[a - reached.start : b - reached.start]
            yield out


def restore(
    probabilities: Float[Tensor, "k *plan"], plan_geometry: Geometry, file_geometry: Geometry
) -> NDArray[np.float32]:
    """Probabilities `[K, *file]` float32 on the file's grid; see `restore_slabs`."""
    out = np.empty((len(probabilities), *file_geometry.shape), dtype=np.float32)
    for channel, there in zip(probabilities, out, strict=True):
        row = 0
        for slab in restore_slabs(channel, plan_geometry, file_geometry):
            there[row : row + len(slab)] = slab
            row += len(slab)
    return out


def restore_slabs(
    probabilities: Float[Tensor, "*plan"],
    plan_geometry: Geometry,
    file_geometry: Geometry,
    *,
    decode: Callable[[Tensor], Tensor] = Tensor.float,
) -> Iterator[NDArray[np.float32]]:
    """One channel's probabilities on the file's grid, some rows `[rows, *file[1:]]` at a time.

    Exact when the grids differ only by flips, axis order and whole voxels; otherwise linear; 0
    where the plan's grid does not reach. `decode` turns stored numbers into probabilities, 0 into
    0. Raises `GeometryError` when the probabilities do not lie on `plan_geometry` or the numbers of
    axes differ.
    """
    shape = tuple(probabilities.shape)
    if shape != plan_geometry.shape or file_geometry.dims != plan_geometry.dims:
        raise GeometryError(
            f"Probabilities {shape} do not lie on the plan's grid {plan_geometry.shape}, or the "
            f"file has other axes ({file_geometry.dims})."
        )
    matrix = np.linalg.inv(plan_geometry.affine) @ file_geometry.affine
    exact = signed_permutation(matrix, file_geometry.shape)
    if exact is not None:
        for stored in exact.slabs(probabilities.cpu().numpy(), file_geometry.shape):
            yield decode(torch.from_numpy(stored)).numpy()
        return
    out, rows = file_geometry.shape, _SLAB_ROWS
    for _, slab in linear_slabs(probabilities[None], matrix, out, slab=rows, decode=decode):
        yield slab[0].cpu().numpy()


def signed_permutation(
    matrix: NDArray[np.float64], shape: tuple[int, ...]
) -> SignedPermutation | None:
    """The flips and axis order that `matrix` `[dims+1, dims+1]` is, or None when it is more.

    `matrix` maps file indices to plan indices; no voxel of `shape` may be farther than a
    thousandth of a voxel from a whole plan index.

    >>> signed_permutation(np.array([[0, -1, 4], [1, 0, 0], [0, 0, 1.0]]), (9, 5))
    SignedPermutation(axes=(1, 0), signs=(1, -1), offsets=(0, 4))
    """
    dims = len(shape)
    whole = np.rint(matrix).astype(np.int64)
    drift = np.abs(matrix - whole)[:dims] @ np.array([*(n - 1 for n in shape), 1.0])
    linear = whole[:dims, :dims]
    if drift.max() > _EXACT_VOX or not np.array_equal(linear @ linear.T, np.eye(dims)):
        return None
    axes = tuple(int(a) for a in np.abs(linear).argmax(axis=0))
    signs = tuple(int(linear[axis, a]) for a, axis in enumerate(axes))
    return SignedPermutation(axes, signs, tuple(int(whole[axis, dims]) for axis in axes))


def _span(n_out: int, n_in: int, sign: int, offset: int) -> tuple[slice, slice]:
    """Output indices that fall inside the input, and the input indices they read."""
    inside = [i for i in range(n_out) if 0 <= sign * i + offset < n_in]
    if not inside:
        return slice(0, 0), slice(0, 0)
    first, last = sign * inside[0] + offset, sign * inside[-1] + offset
    end = last + sign
    return slice(inside[0], inside[-1] + 1), slice(first, end if end >= 0 else None, sign)
