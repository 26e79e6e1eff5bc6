"""U-Net: encoder, decoder, skip connections, head per supervised level."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.models.blocks import UP, ConvBlock, ResidualBlock, Stage, initialise
from lesionseg.models.heads import SegmentationHead, prior_bias
from lesionseg.plan.plan import Architecture, Plan


class Encoder(nn.Module):
    """An encoder with one stage per entry of the architecture's tables.

    It maps `[B, in_channels, *spatial]` to one map
    `[B, features[i], *(spatial / product of strides)]` per stage, finest first. The stride of the
    first stage is not used. A `residual` encoder has a stem and stages of residual blocks;
    `architecture.encoder_blocks` contains the number of blocks per stage. Every axis of an input
    must be a multiple of the total stride, and at least one larger than it: instance norm cannot
    normalise a single voxel at the coarsest stage.
    """

    def __init__(
        self, dims: int, in_channels: int, architecture: Architecture, *, residual: bool = False
    ) -> None:
        super().__init__()
        n = len(architecture.features)
        self.channels = architecture.features
        ones = (1,) * dims
        kernels = architecture.kernels
        channels_before = in_channels
        self.stem: nn.Module = nn.Identity()
        if residual:
            channels_before = architecture.features[0]
            self.stem = ConvBlock(
                dims, in_channels, channels_before, kernel=kernels[0], stride=ones
            )
        strides = (ones, *architecture.strides[1:])  # the first stage has the image's resolution
        n_blocks = architecture.encoder_blocks or (architecture.blocks,) * n
        self.stages = nn.ModuleList()
        for i, channels in enumerate(self.channels):
            stage = Stage(
                dims,
                channels_before,
                channels,
                kernel=kernels[i],
                stride=strides[i],
                n_blocks=n_blocks[i],
                block=ResidualBlock if residual else ConvBlock,
            )
            self.stages.append(stage)
            channels_before = channels
        if residual and architecture.layout == "nnunet":
            # As in nnU-Net, the convolutions of a block contribute nothing at first, so the block
            # starts as its skip connection.
            for block in self.modules():
                if isinstance(block, ResidualBlock):
                    nn.init.zeros_(block.norm.weight)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> list[Tensor]:
        """Return the feature map of each stage, finest first."""
        x = self.stem(x)
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


class Decoder(nn.Module):
    """A decoder that upsamples from the coarsest map and concatenates each finer map.

    It maps the encoder's list of maps to a list with the same spatial shapes, finest first. The
    coarsest map stays as it is. `channels[i]` is the width of map i. Maps are upsampled by
    transposed convolutions whose kernel equals their stride, so that no voxel is written twice (no
    chequerboard). `first` is the encoder's stage at which the decoder ends.
    """

    def __init__(self, dims: int, architecture: Architecture, first: int = 0) -> None:
        super().__init__()
        self.channels = architecture.features[first:]
        fine = self.channels[:-1]
        coarse = self.channels[1:]
        ones = (1,) * dims
        n_blocks = architecture.blocks
        self.ups = nn.ModuleList()
        for wide, narrow, stride in zip(
            coarse, fine, architecture.strides[first + 1 :], strict=True
        ):
            bias = architecture.layout == "nnunet"  # nnU-Net's transposed convolutions have one
            up = UP[dims](wide, narrow, kernel_size=stride, stride=stride, bias=bias)
            initialise(up)
            self.ups.append(up)
        # a stage gets the upsampled map and that of the encoder, so twice its width
        self.stages = nn.ModuleList(
            Stage(dims, 2 * width, width, kernel=kernel, stride=ones, n_blocks=n_blocks)
            for width, kernel in zip(fine, architecture.kernels[first:-1], strict=True)
        )

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Decode the encoder's feature maps, from the coarsest one to the finest one.

        Args:
            pyramid: Maps of the encoder from stage `first` on, finest first.

        Returns:
            One decoded map for each map of `pyramid`, finest first. The coarsest one is unchanged.
        """
        x = pyramid[-1]
        decoded = [x]
        steps = list(zip(self.ups, self.stages, pyramid[:-1], strict=True))
        for up, stage, skip in reversed(steps):
            x = stage(torch.cat([up(x), skip], dim=1))
            decoded.insert(0, x)
        return decoded


class UNet(nn.Module):
    """Encoder, decoder with skips, and heads (Ronneberger et al. 2015, Isensee et al. 2021).

    `forward` maps an image `[B, C, *spatial]` to a list of fp32 logits `[B, K, *spatial]`. In eval
    mode the list has one entry, at full resolution. In train mode it has
    `architecture.n_supervised` entries, finest first, each at the resolution of its stage. K is
    `len(bias)`. For `residual` and the shapes of inputs see `Encoder`.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        architecture: Architecture,
        bias: Sequence[float],
        *,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(dims, in_channels, architecture, residual=residual)
        self.decoder = Decoder(dims, architecture)
        widths = self.decoder.channels[: architecture.n_supervised]
        heads = [SegmentationHead(dims, width, bias) for width in widths]
        if architecture.layout == "nnunet":
            for head in heads:
                initialise(head.conv)  # as in nnU-Net, whose biases start at 0, not at `bias`
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> list[Tensor]:
        """Return the logits of each supervised level, finest first.

        In eval mode, return only the finest logits.
        """
        features = self.decoder(self.encoder(image))
        heads = list(self.heads) if self.training else [self.heads[0]]
        # the coarser maps have no head
        return [head(x) for head, x in zip(heads, features, strict=False)]


def unet(plan: Plan) -> UNet:
    """Build the U-Net that `plan` describes, with initial weights.

    The first predictions of its heads are the plan's lesion fraction, except in nnU-Net's layout,
    in which biases start at 0. The number of spatial axes is
    the length of the architecture's strides, not `plan.dims`, because a 2-D network of nnU-Net
    segments the slices of 3-D scans.
    """
    dims = len(plan.architecture.strides[0])
    bias = prior_bias(plan.lesion_fraction, len(plan.labels), plan.activation)
    residual = plan.architecture.name == "residual_unet"
    return UNet(dims, len(plan.channel_names), plan.architecture, bias, residual=residual)
