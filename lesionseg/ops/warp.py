"""Moving a tile: each of its voxels is read from somewhere in a larger piece of the volume.

The image is interpolated linearly, masks take the nearest voxel. Coordinates are those of voxel
centres; half a voxel around the source its outermost value holds, farther outside all is 0. On a
CPU `warp_numba` does the work, elsewhere torch; both give the same to within rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lesionseg.errors import GeometryError


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
    image = image.float()
    if image.device.type != "cpu":
        return warp_linear_plain(image, warp)
    from lesionseg.ops import warp_numba

    out = torch.empty((image.shape[0], *warp.shape), dtype=torch.float32)
    matrix, bend = _padded(warp)
    warp_numba.linear(_as_3d(image), matrix, bend, _as_3d(out))
    return out


def warp_nearest(
    masks: Sequence[Shaped[Tensor, "*inp"]], warp: Warp
) -> list[Shaped[Tensor, "*out"]]:
    """The nearest voxel of each mask, in its own dtype; between two centres the higher index."""
    if masks[0].device.type != "cpu":
        return warp_nearest_plain(masks, warp)
    from lesionseg.ops import warp_numba

    dims = len(warp.shape)
    shape = np.array((1,) * (3 - dims) + tuple(masks[0].shape), dtype=np.int64)
    places = np.empty((1,) * (3 - dims) + warp.shape, dtype=np.int32)
    warp_numba.nearest_places(shape, *_padded(warp), places)
    warped = [torch.zeros(warp.shape, dtype=mask.dtype) for mask in masks]
    for mask, out in zip(masks, warped, strict=True):
        source = mask.contiguous().numpy().reshape(-1)
        warp_numba.take(source, places.reshape(-1), out.numpy().reshape(-1))
    return warped


def warp_linear_plain(image: Float[Tensor, "c *inp"], warp: Warp) -> Float[Tensor, "c *out"]:
    """`warp_linear` by `grid_sample`, on any device."""
    points = _points(warp, image.device)
    lengths = image.shape[1:]
    scaled = [2 * x / max(n - 1, 1) - 1 for x, n in zip(points, lengths, strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)
    sampled = functional.grid_sample(
        image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[0] * _inside(points, lengths)


def warp_nearest_plain(
    masks: Sequence[Shaped[Tensor, "*inp"]], warp: Warp
) -> list[Shaped[Tensor, "*out"]]:
    """`warp_nearest` by indexing, on any device."""
    points = _points(warp, masks[0].device)
    lengths = masks[0].shape
    inside = _inside(points, lengths)
    index = tuple(
        (x.clamp(0, n - 1) + 0.5).floor().clamp(max=n - 1).long()
        for x, n in zip(points, lengths, strict=True)
    )
    return [mask[index] * inside for mask in masks]


def _points(warp: Warp, device: torch.device) -> list[Tensor]:
    """Source coordinates of every output voxel, one tensor `[*out]` an axis."""
    dims = len(warp.shape)
    matrix = torch.from_numpy(np.asarray(warp.matrix, dtype=np.float32)).to(device)
    lines = [
        torch.arange(n, device=device, dtype=torch.float32).reshape([-1] + [1] * (dims - 1 - axis))
        for axis, n in enumerate(warp.shape)
    ]
    points = []
    for row in range(dims):
        point = matrix[row, dims].expand(warp.shape)
        for column in range(dims):
            point = point + matrix[row, column] * lines[column]
        points.append(point if warp.bend is None else point + warp.bend[row])
    return points


def _inside(points: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    inside = torch.ones_like(points[0], dtype=torch.bool)
    for x, n in zip(points, lengths, strict=True):
        inside &= (x >= -0.5) & (x <= n - 0.5)
    return inside


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
