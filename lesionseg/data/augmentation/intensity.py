"""How a tile's intensities are changed, each voxel touched as rarely as possible.

A coarser resolution, thick slices and a blur are one matrix an axis; contrast, brightness and noise
one line; gamma the last.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.data.augmentation.movement import along_axes

_TRUNCATE = 4.0  # standard deviations of a blur


@dataclass(frozen=True)
class Slices:
    """Thick slices across an axis: each is `voxels` long, the first of them cut off at `offset`.

    `offset`: where the tile begins in its first slice, as a share of that slice, below 1.
    """

    axis: int
    voxels: float
    offset: float

    def matrix(self, n: int) -> NDArray[np.float64]:
        """`[n, n]`: the mean over each slice, then linear between slices, the ends held.

        As preparation brings a scan with such slices to the grid. A slice that reaches over an end
        is the mean of what is there.
        """
        edges = (np.arange(int(n / self.voxels) + 3) - self.offset) * self.voxels
        voxel = np.arange(n)
        inside = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
        shares = inside.clip(0, 1)
        here = shares.sum(axis=1) > 0
        means = shares[here] / shares[here].sum(axis=1, keepdims=True)
        centres = (edges[:-1][here] + self.voxels / 2) - 0.5
        place = voxel.clip(centres[0], centres[-1])
        return np.asarray((1 - np.abs(place[:, None] - centres) / self.voxels).clip(0) @ means)


@dataclass(frozen=True)
class Intensity:
    """What is done to the image of one tile; None, 0 and 1 do nothing.

    `coarse`: share of the voxels kept along each axis before the image is made up to size again.
    `slices`: as if the scan had been taken in thicker ones.
    `blur`: standard deviation in voxels along each axis. `contrast`, `brightness`: factor and
    summand of each channel. `noise`: standard deviation of what is added, from `seed`.
    `gamma`: power of the image scaled to 0 … 1; mean and standard deviation stay.
    """

    coarse: float | None = None
    blur: tuple[float, ...] | None = None
    contrast: tuple[float, ...] | None = None
    brightness: tuple[float, ...] | None = None
    noise: float = 0.0
    gamma: float | None = None
    seed: int = 0
    slices: Slices | None = None

    def coarse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Voxels that are read of a tile of `shape`."""
        if self.coarse is None:
            return shape
        return tuple(max(1, round(n * self.coarse)) for n in shape)

    def mixes(self, shape: tuple[int, ...]) -> bool:
        """Whether a tile of `shape` is multiplied by `axis_matrices`."""
        blurs = self.blur is not None or self.slices is not None
        return blurs or self.coarse_shape(shape) != shape


def change_intensity(image: Tensor, change: Intensity, shape: tuple[int, ...]) -> Tensor:
    """Change an image `[C, *coarse]` float32, which may be overwritten; `[C, *shape]`."""
    if change.mixes(shape):
        image = along_axes(image, [_tensor(m, image) for m in axis_matrices(change, shape)])
    if change.contrast is not None:
        image = image.mul_(_column(change.contrast, image))
    if change.brightness is not None:
        image = image.add_(_column(change.brightness, image))
    if change.noise:
        draw = torch.Generator(image.device).manual_seed(change.seed)
        noise = torch.randn(image.shape, generator=draw, device=image.device)
        image = image.add_(noise, alpha=change.noise)
    return image if change.gamma is None else _gamma(image, change.gamma)


def axis_matrices(change: Intensity, shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """`[n, m]` of each axis: makes up m voxels of a coarse tile to n, slices and blurs them."""
    blur = change.blur or (0.0,) * len(shape)
    matrices = [_stretch(n, m) for n, m in zip(shape, change.coarse_shape(shape), strict=True)]
    if (slices := change.slices) is not None:
        matrices[slices.axis] = slices.matrix(shape[slices.axis]) @ matrices[slices.axis]
    return [_gaussian(len(m), sigma) @ m for m, sigma in zip(matrices, blur, strict=True)]


def _gamma(image: Tensor, power: float) -> Tensor:
    """Each channel to a power between its extremes, with its mean and deviation restored."""
    axes = tuple(range(1, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    std, mean = torch.std_mean(image, axes, correction=0, keepdim=True)
    curved = image.sub_(low).div_((high - low).clamp_min(1e-7)).pow_(power)
    own_std, own_mean = torch.std_mean(curved, axes, correction=0, keepdim=True)
    return curved.sub_(own_mean).mul_(std / own_std.clamp_min(1e-7)).add_(mean)


def _gaussian(n: int, sigma: float) -> NDArray[np.float64]:
    """Each row the weights of a Gaussian about its voxel, cut off at 4 σ; rows sum to 1."""
    if sigma <= 0:
        return np.eye(n)
    away = np.abs(np.arange(n)[:, None] - np.arange(n))
    weights = np.exp(-0.5 * (away / sigma) ** 2) * (away <= max(1.0, _TRUNCATE * sigma))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _stretch(n: int, m: int) -> NDArray[np.float64]:
    """Linear interpolation of m voxels at n places over the same length; the ends are held."""
    if n == m:
        return np.eye(n)
    x = ((np.arange(n) + 0.5) * m / n - 0.5).clip(0, m - 1)
    return np.asarray((1 - np.abs(x[:, None] - np.arange(m))).clip(0))


def _tensor(matrix: NDArray[np.float64], image: Tensor) -> Tensor:
    return torch.from_numpy(matrix.astype(np.float32)).to(image.device)


def _column(values: tuple[float, ...], image: Tensor) -> Tensor:
    column = torch.tensor(values, dtype=torch.float32, device=image.device)
    return column.reshape(-1, *(1,) * (image.ndim - 1))
