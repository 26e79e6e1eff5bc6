"""U-Nets: a backbone, plain or of residual blocks, and one segmentation head per level."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.models.backbone import Decoder, Encoder, check_architecture, check_input
from lesionseg.models.blocks import LEAKY_SLOPE, ConvBlock, InstanceNorm, initialise, layers
from lesionseg.models.heads import SegmentationHead, prior_bias
from lesionseg.plan.plan import Architecture, Plan, total_stride


class UNet(nn.Module):
    """Encoder, decoder with skips, and heads (Ronneberger et al. 2015, Isensee et al. 2021).

    `forward`: image `[B, C, *spatial]` to a list of fp32 logits `[B, K, *spatial]`. In eval mode
    the list has one entry, at full resolution; in train mode `architecture.n_supervised`, finest
    first, each at its stage's resolution. K = `len(bias)`. Raises
    `GeometryError` for inputs that the total stride does not divide. `encoder`: another one than
    the plain one.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        architecture: Architecture,
        bias: Sequence[float],
        *,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder or Encoder(dims, in_channels, architecture)
        self.decoder = Decoder(dims, architecture)
        heads = [
            SegmentationHead(dims, width, bias)
            for width in self.decoder.channels[: architecture.n_supervised]
        ]
        if architecture.layout == "nnunet":
            for head in heads:
                initialise(head.conv)
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> list[Tensor]:
        """Logits, finest first."""
        features = self.decoder(self.encoder(image))
        heads = list(self.heads) if self.training else [self.heads[0]]
        return [head(x) for head, x in zip(heads, features, strict=False)]  # rest unsupervised


def unet(plan: Plan) -> UNet:
    """The U-Net that `plan` describes, its heads starting at the plan's lesion fraction."""
    bias = prior_bias(plan.lesion_fraction, len(plan.label_values), plan.activation)
    return UNet(plan.dims, len(plan.channel_names), plan.architecture, bias)


class ResidualBlock(nn.Module):
    """Two convolutions beside a way past them: y = leaky(norm(conv(block(x))) + past(x)).

    `[B, in_channels, *spatial]` to `[B, out_channels, *(spatial / stride)]`. Past them, a stride is
    an average (no voxel is skipped), and another width a 1×1 convolution with norm (ResNet-D, He et
    al. 2019, arXiv 1812.01187).
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
        self.first = ConvBlock(dims, in_channels, out_channels, kernel=kernel, stride=stride)
        self.second = layers(dims).conv(
            out_channels,
            out_channels,
            kernel_size=tuple(kernel),
            padding=tuple(k // 2 for k in kernel),
            bias=False,
        )
        initialise(self.second)
        self.norm = InstanceNorm(out_channels)
        self.past = nn.Sequential()  # empty where nothing changes
        if any(s > 1 for s in stride):
            self.past.append(layers(dims).average(tuple(stride), tuple(stride)))
        if in_channels != out_channels:
            past = layers(dims).conv(in_channels, out_channels, kernel_size=1, bias=False)
            initialise(past)
            self.past.append(past)
            self.past.append(InstanceNorm(out_channels))
        self.activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *smaller"]:
        """Features of the block."""
        out: Tensor = self.activation(self.norm(self.second(self.first(x))) + self.past(x))
        return out


class ResidualEncoder(nn.Module):
    """A stem, then stages of residual blocks; a pyramid of the same shapes as `Encoder` gives.

    `architecture.encoder_blocks` says how many blocks each stage has. `forward` raises
    `GeometryError` for inputs the strides do not divide.
    """

    def __init__(self, dims: int, in_channels: int, architecture: Architecture) -> None:
        super().__init__()
        check_architecture(architecture, dims)
        self.total_stride = total_stride(architecture)
        self.channels = architecture.features
        ones, n = (1,) * dims, len(self.channels)
        kernels = architecture.kernels
        self.stem = ConvBlock(dims, in_channels, self.channels[0], kernel=kernels[0], stride=ones)
        self.stages = nn.ModuleList()
        depths = architecture.encoder_blocks or (architecture.blocks,) * n
        strides = (ones, *architecture.strides[1:])
        before = self.channels[0]
        for after, kernel, stride, depth in zip(
            self.channels, kernels, strides, depths, strict=True
        ):
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(ResidualBlock(dims, before, after, kernel=kernel, stride=stride))
                before, stride = after, ones
            self.stages.append(stage)
        if architecture.layout == "nnunet":  # every block starts as its way past
            for block in (module for module in self.modules() if isinstance(module, ResidualBlock)):
                nn.init.zeros_(block.norm.weight)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> list[Tensor]:
        """Feature maps, finest first."""
        check_input(tuple(x.shape[2:]), self.total_stride)
        x = self.stem(x)
        pyramid: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


def residual_unet(plan: Plan) -> UNet:
    """The residual encoder U-Net that `plan` describes, its heads at the plan's lesion fraction."""
    bias = prior_bias(plan.lesion_fraction, len(plan.label_values), plan.activation)
    encoder = ResidualEncoder(plan.dims, len(plan.channel_names), plan.architecture)
    return UNet(plan.dims, len(plan.channel_names), plan.architecture, bias, encoder=encoder)
