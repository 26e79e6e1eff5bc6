"""The smallest parts of a network: convolution, instance norm and leaky ReLU for 2-D and 3-D."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.errors import ConfigError

LEAKY_SLOPE = 0.01
Conv = nn.Conv2d | nn.Conv3d
Up = nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class Layers:
    """The layers that exist once per number of spatial axes."""

    conv: Callable[..., Conv]
    up: Callable[..., Up]
    average: Callable[..., nn.Module]


LAYERS: Mapping[int, Layers] = {
    2: Layers(nn.Conv2d, nn.ConvTranspose2d, nn.AvgPool2d),
    3: Layers(nn.Conv3d, nn.ConvTranspose3d, nn.AvgPool3d),
}


def layers(dims: int) -> Layers:
    """The layers for `dims` spatial axes; raises `ConfigError` unless 2 or 3."""
    if dims not in LAYERS:
        raise ConfigError(f"A network has two or three axes, not {dims}.")
    return LAYERS[dims]


class InstanceNorm(nn.Module):
    """Zero mean and unit variance per channel and case, then a learnt scale and shift.

    `[B, channels, *spatial]` of any number of axes, more than one voxel (Ulyanov et al. 2016).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """Normalised features, in the precision of `x`."""
        if x.device.type != "cpu":
            return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        # The same formula by another kernel: on GPUs autocast would widen group norm's output to
        # fp32, on a CPU it is the faster one; channels-last its backward pass is 25 times as slow.
        if x.is_contiguous():
            return functional.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        return torch.cat([self._of_case(case) for case in torch.split(x, 1)])

    def _of_case(self, case: Tensor) -> Tensor:
        """Batch norm of a batch of one is instance norm, and quick in channels-last."""
        return torch.batch_norm(
            case, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn_enabled=False
        )


class ConvBlock(nn.Module):
    """Convolution, instance norm with learnt scale and shift, leaky ReLU.

    `[B, in_channels, *spatial]` to `[B, out_channels, *(spatial / stride)]`, spatial divisible by
    `stride`. `kernel` holds odd sizes. The convolution has no bias: the norm would remove it.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv = layers(dims).conv(
            in_channels,
            out_channels,
            kernel_size=tuple(kernel),
            stride=tuple(stride),
            padding=tuple(k // 2 for k in kernel),
            bias=False,
        )
        self.norm = InstanceNorm(out_channels)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
        initialise(self.conv)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *smaller"]:
        """Features of the block."""
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class Stage(nn.Sequential):
    """`n_blocks` conv blocks in a row; only the first changes channels and takes the stride."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        n_blocks: int,
    ) -> None:
        super().__init__()
        for _ in range(n_blocks):
            self.append(ConvBlock(dims, in_channels, out_channels, kernel=kernel, stride=stride))
            in_channels, stride = out_channels, (1,) * dims


def initialise(conv: Conv | Up) -> None:
    """He normal weights for the leaky slope (He et al. 2015, eq. 15, fan in), no bias, in place."""
    nn.init.kaiming_normal_(conv.weight, a=LEAKY_SLOPE, nonlinearity="leaky_relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def depth_to_space(
    x: Shaped[Tensor, "b cn *smaller"], block: Sequence[int]
) -> Shaped[Tensor, "b c *spatial"]:
    """Channels as the voxels of a block: n per channel, in C order (pixel shuffle).

    What a head on a map coarser than the image makes full resolution of (Shi et al. 2016).
    """
    if prod(block) == 1:
        return x
    dims, small = len(block), x.shape[2:]
    grid, inside = range(2 + dims, 2 + 2 * dims), range(2, 2 + dims)
    order = [axis for pair in zip(grid, inside, strict=True) for axis in pair]
    large = [n * side for n, side in zip(small, block, strict=True)]
    n_channels = x.shape[1] // prod(block)
    blocks = x.reshape(x.shape[0], n_channels, *block, *small)
    return blocks.permute(0, 1, *order).reshape(x.shape[0], n_channels, *large)
