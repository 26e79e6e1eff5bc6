"""From the plan's grid back to the grid of the scan's own file."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core import Geometry
from lesionseg.ops.resample import linear_slabs

_EXACT_VOX = 1e-3
_SLAB_ROWS = 16  # restored at a time


def restore_slabs(
    stored: Float[Tensor, "*plan"],
    plan_geometry: Geometry,
    file_geometry: Geometry,
    decode: Callable[[Tensor], Tensor] = Tensor.float,
) -> Iterator[NDArray[np.float32]]:
    """One channel's probabilities on the file's grid, some rows `[rows, *file[1:]]` at a time.

    Exact when the grids differ only by flips, axis order and whole voxels; otherwise linear; 0
    where the plan's grid does not reach. `decode` turns stored numbers into probabilities, 0 into
    0.
    """
    shape = file_geometry.shape
    matrix = np.linalg.inv(plan_geometry.affine) @ file_geometry.affine
    exact = signed_permutation(matrix, shape)
    if exact is None:
        for _, slab in linear_slabs(stored[None], matrix, shape, slab=_SLAB_ROWS, decode=decode):
            yield slab[0].cpu().numpy()
        return
    axes, signs, offsets = exact
    seen = stored.cpu().numpy().transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    # the file's index i lies at i + shift
    sizes = zip(seen.shape, signs, offsets, strict=True)
    shifts = [offset if sign > 0 else n - 1 - offset for n, sign, offset in sizes]
    for first in range(0, shape[0], _SLAB_ROWS):
        out = np.zeros((min(_SLAB_ROWS, shape[0] - first), *shape[1:]), dtype=seen.dtype)
        here, there = [], []
        for axis, shift in enumerate([shifts[0] + first, *shifts[1:]]):
            start = max(-shift, 0)
            stop = max(min(seen.shape[axis] - shift, out.shape[axis]), start)
            here.append(slice(start, stop))
            there.append(slice(start + shift, stop + shift))
        out[tuple(here)] = seen[tuple(there)]
        yield decode(torch.from_numpy(out)).numpy()


def signed_permutation(
    matrix: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[list[int], list[int], list[int]] | None:
    """The flips and axis order that `matrix` `[dims+1, dims+1]` is, or None when it is more.

    `matrix` maps file indices to plan indices; no voxel of `shape` may be farther than a
    thousandth of a voxel from a whole plan index. File axis a runs along plan axis `axes[a]`; file
    index i lies at plan index `signs[a] · i + offsets[a]`.

    >>> signed_permutation(np.array([[0, -1, 4], [1, 0, 0], [0, 0, 1.0]]), (9, 5))
    ([1, 0], [1, -1], [0, 4])
    """
    dims = len(shape)
    whole = np.rint(matrix).astype(np.int64)
    drift = np.abs(matrix - whole)[:dims] @ np.array([*(n - 1 for n in shape), 1.0])
    linear = whole[:dims, :dims]
    if drift.max() > _EXACT_VOX or not np.array_equal(linear @ linear.T, np.eye(dims)):
        return None
    axes = np.abs(linear).argmax(axis=0)
    return axes.tolist(), linear[axes, np.arange(dims)].tolist(), whole[axes, dims].tolist()
