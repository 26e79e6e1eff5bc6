"""U-Nets: a backbone, plain or of residual blocks, and one segmentation head per level."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.models.backbone import Decoder, Encoder
from lesionseg.models.blocks import initialise
from lesionseg.models.heads import SegmentationHead, prior_bias
from lesionseg.plan.plan import Architecture, Plan


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


def residual_unet(plan: Plan) -> UNet:
    """The residual encoder U-Net that `plan` describes, its heads at the plan's lesion fraction."""
    bias = prior_bias(plan.lesion_fraction, len(plan.label_values), plan.activation)
    n_channels = len(plan.channel_names)
    encoder = Encoder(plan.dims, n_channels, plan.architecture, residual=True)
    return UNet(plan.dims, n_channels, plan.architecture, bias, encoder=encoder)
