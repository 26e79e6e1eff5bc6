"""The smallest parts of a network: convolution, instance norm, leaky ReLU; plain or residual."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

LEAKY_SLOPE = 0.01
Conv = nn.Conv2d | nn.Conv3d
Up = nn.ConvTranspose2d | nn.ConvTranspose3d
Sizes = Sequence[int]  # along each spatial axis


# the layers that exist once per number of spatial axes
CONV: Mapping[int, Callable[..., Conv]] = {2: nn.Conv2d, 3: nn.Conv3d}
UP: Mapping[int, Callable[..., Up]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
AVERAGE: Mapping[int, Callable[..., nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


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
        # Batch norm of a batch of one is instance norm, and quick in channels-last.
        rest = (self.weight, self.bias, None, None, True, 0.0, self.eps, False)
        return torch.cat([torch.batch_norm(case, *rest) for case in torch.split(x, 1)])


class GroupNorm(nn.GroupNorm):
    """Group norm in the precision of its input.

    On a GPU autocast would widen it to fp32, and the maps of a detector's towers with it: a third
    more memory. The statistics are computed in fp32 in any case.
    """

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """Normalised features, in the precision of `x`."""
        if x.device.type == "cpu":  # whose autocast leaves it alone
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return functional.group_norm(x, self.num_groups, scale, shift, self.eps)


class ConvBlock(nn.Module):
    """Convolution, instance norm with learnt scale and shift, leaky ReLU.

    `[B, in_channels, *spatial]` to `[B, out_channels, *(spatial / stride)]`, spatial divisible by
    `stride`. `kernel` holds odd sizes. The convolution has no bias: the norm would remove it.
    """

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, *, kernel: Sizes, stride: Sizes
    ) -> None:
        super().__init__()
        self.conv = convolution(dims, in_channels, out_channels, kernel, stride)
        self.norm = InstanceNorm(out_channels)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *smaller"]:
        """Features of the block."""
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class ResidualBlock(nn.Module):
    """Two convolutions beside a way past them: y = leaky(norm(conv(block(x))) + past(x)).

    `[B, in_channels, *spatial]` to `[B, out_channels, *(spatial / stride)]`. Past them, a stride is
    an average (no voxel is skipped), and another width a 1×1 convolution with norm (ResNet-D, He et
    al. 2019, arXiv 1812.01187).
    """

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, *, kernel: Sizes, stride: Sizes
    ) -> None:
        super().__init__()
        self.first = ConvBlock(dims, in_channels, out_channels, kernel=kernel, stride=stride)
        self.second = convolution(dims, out_channels, out_channels, kernel)
        self.norm = InstanceNorm(out_channels)
        self.past = nn.Sequential()  # empty where nothing changes
        if any(s > 1 for s in stride):
            self.past.append(AVERAGE[dims](tuple(stride), tuple(stride)))
        if in_channels != out_channels:
            self.past.append(convolution(dims, in_channels, out_channels, (1,) * dims))
            self.past.append(InstanceNorm(out_channels))
        self.activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *smaller"]:
        """Features of the block."""
        out: Tensor = self.activation(self.norm(self.second(self.first(x))) + self.past(x))
        return out


class Stage(nn.Sequential):
    """`n_blocks` blocks in a row; only the first changes channels and takes the stride."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        n_blocks: int,
        block: type[ConvBlock | ResidualBlock] = ConvBlock,
    ) -> None:
        super().__init__()
        for _ in range(n_blocks):
            self.append(block(dims, in_channels, out_channels, kernel=kernel, stride=stride))
            in_channels, stride = out_channels, (1,) * dims


def convolution(
    dims: int, in_channels: int, out_channels: int, kernel: Sizes, stride: Sizes = ()
) -> Conv:
    """A convolution of odd sizes without bias that keeps the size but for its stride."""
    layer = CONV[dims](
        in_channels,
        out_channels,
        kernel_size=tuple(kernel),
        stride=tuple(stride) or 1,
        padding=tuple(k // 2 for k in kernel),
        bias=False,
    )
    initialise(layer)
    return layer


def initialise(conv: Conv | Up) -> None:
    """He normal weights for the leaky slope (He et al. 2015, eq. 15, fan in), no bias, in place."""
    nn.init.kaiming_normal_(conv.weight, a=LEAKY_SLOPE, nonlinearity="leaky_relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
