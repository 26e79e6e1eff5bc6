"""Moving a tile: each of its voxels is read from somewhere in a larger piece of the volume.

The image is interpolated linearly, masks take the nearest voxel. Coordinates are those of voxel
centres; half a voxel around the source its outermost value holds, farther outside all is 0. Tensors
lie on the CPU, where `warp_numba` does the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.errors import GeometryError
from lesionseg.ops import warp_numba


@dataclass(frozen=True, eq=False)
class Warp:
    """Where the voxels of an output of `shape` come from: matrix · (index, 1) + bend[index].

    `matrix` `[dims, dims + 1]` and `bend` `[dims, *shape]` float32 (None: straight) are in voxels
    of the source, axes in array order. Raises `GeometryError` when they do not fit together.
    """

    matrix: NDArray[np.float64]
    shape: tuple[int, ...]
    bend: Tensor | None = None

    def __post_init__(self) -> None:
        dims = len(self.shape)
        bent = None if self.bend is None else tuple(self.bend.shape)
        if self.matrix.shape != (dims, dims + 1) or bent not in (None, (dims, *self.shape)):
            seen = self.matrix.shape, bent
            raise GeometryError(f"A warp {seen} does not fit its output {self.shape}.")


def warp_linear(image: Shaped[Tensor, "c *inp"], warp: Warp) -> Float[Tensor, "c *out"]:
    """Interpolate `image` where the warp says; float32."""
    out = torch.empty((image.shape[0], *warp.shape), dtype=torch.float32)
    matrix, bend = _padded(warp)
    warp_numba.linear(_as_3d(image.float()), matrix, bend, _as_3d(out))
    return out


def warp_nearest(
    masks: Sequence[Shaped[Tensor, "*inp"]], warp: Warp
) -> list[Shaped[Tensor, "*out"]]:
    """The nearest voxel of each mask, in its own dtype; between two centres the higher index."""
    dims = len(warp.shape)
    shape = np.array((1,) * (3 - dims) + tuple(masks[0].shape), dtype=np.int64)
    places = np.empty((1,) * (3 - dims) + warp.shape, dtype=np.int32)
    warp_numba.nearest_places(shape, *_padded(warp), places)
    warped = [torch.zeros(warp.shape, dtype=mask.dtype) for mask in masks]
    for mask, out in zip(masks, warped, strict=True):
        source = mask.contiguous().numpy().reshape(-1)
        warp_numba.take(source, places.reshape(-1), out.numpy().reshape(-1))
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
