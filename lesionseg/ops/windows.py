"""Weights with which overlapping tiles are blended."""

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_WEIGHT = 1e-3


def gaussian_weight(tile_shape: Sequence[int], sigma_scale: float = 0.125) -> Tensor:
    """Gaussian over a tile `[*tile_shape]` float32: 1 at its centre, never below 0.001.

    The standard deviation along each axis is `sigma_scale` times its length. The floor keeps the
    sum of weights well above rounding where only a tile's corner reaches.

    >>> gaussian_weight((3,), sigma_scale=1 / 3).mul(100).round().int().tolist()
    [61, 100, 61]
    """
    weight = torch.ones((), dtype=torch.float64)
    for n in tile_shape:
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (offset / (sigma_scale * n)) ** 2)
    return (weight / weight.max()).clamp(min=SMALLEST_WEIGHT).float()
