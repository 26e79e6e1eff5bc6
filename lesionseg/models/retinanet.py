"""RetinaNet on the U-Net's backbone or another: a feature pyramid and heads for all levels."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.models.backbone import Decoder, Encoder
from lesionseg.models.foreign_network import foreign_backbone
from lesionseg.models.heads import DetectionHead, DetectorOutput, SegmentationHead, prior_bias
from lesionseg.plan.plan import AnchorPlan, Architecture, Plan


class RetinaNet(nn.Module):
    """Encoder, the decoder's part above the finest level looked at, heads (Lin et al. 2017).

    `forward`: image `[B, C, *spatial]` to a `DetectorOutput` without segmentation. The decoder's
    coarse-to-fine path with skips is the feature pyramid. Raises `GeometryError` for inputs that
    the total stride does not divide.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        architecture: Architecture,
        n_labels: int,
        anchors: AnchorPlan,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_stages(anchors, architecture)
        self.finest = anchors.stages[0]
        self.stages = tuple(stage - self.finest for stage in anchors.stages)
        self.encoder = encoder or Encoder(dims, in_channels, architecture)
        self.decoder = Decoder(dims, _from_stage(architecture, self.finest))
        channels = [self.decoder.channels[stage] for stage in self.stages]
        self.head = DetectionHead(dims, channels, n_labels, anchors)

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> DetectorOutput:
        """Scores and boxes of every anchor."""
        pyramid = self.decoder(self.encoder(image)[self.finest :])
        return DetectorOutput(*self.head([pyramid[stage] for stage in self.stages]))


class RetinaUNet(nn.Module):
    """A U-Net whose decoder also feeds a detector's heads (Jaeger et al. 2020, arXiv 1811.08661).

    `forward`: image `[B, C, *spatial]` to a `DetectorOutput`; its `segmentation` has
    `architecture.n_supervised` levels in train mode and the finest alone in eval mode.

    Args:
        dims: 2 or 3.
        in_channels: of the image.
        architecture: stages, features, strides and kernels.
        bias: where the logits of the segmentation begin, one per channel of it.
        n_labels: that boxes may have.
        anchors: their sizes, and the stages that they stand on.
        encoder: in place of our own; None for that of `architecture`.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        architecture: Architecture,
        bias: Sequence[float],
        n_labels: int,
        anchors: AnchorPlan,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_stages(anchors, architecture)
        self.stages = anchors.stages
        self.encoder = encoder or Encoder(dims, in_channels, architecture)
        self.decoder = Decoder(dims, architecture)
        channels = [self.decoder.channels[stage] for stage in self.stages]
        self.head = DetectionHead(dims, channels, n_labels, anchors)
        self.segmentation = nn.ModuleList(
            SegmentationHead(dims, width, bias, architecture.strides[0])
            for width in self.decoder.channels[: architecture.n_supervised]
        )

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> DetectorOutput:
        """Scores and boxes of every anchor, and the voxels' logits."""
        pyramid = self.decoder(self.encoder(image))
        logits, deltas = self.head([pyramid[stage] for stage in self.stages])
        heads = list(self.segmentation) if self.training else [self.segmentation[0]]
        voxels = tuple(
            head(x) for head, x in zip(heads, pyramid, strict=False)
        )  # rest unsupervised
        return DetectorOutput(logits, deltas, voxels)


def retinanet(plan: Plan) -> RetinaNet:
    """The RetinaNet that `plan` describes; raises `ConfigError` for a plan without anchors."""
    return RetinaNet(
        plan.dims,
        len(plan.channel_names),
        plan.architecture,
        len(plan.lesion_labels),
        planned_anchors(plan),
        _encoder(plan),
    )


def retina_unet(plan: Plan) -> RetinaUNet:
    """The Retina U-Net that `plan` describes; raises `ConfigError` for a plan without anchors."""
    n_labels = len(plan.label_values)
    return RetinaUNet(
        plan.dims,
        len(plan.channel_names),
        plan.architecture,
        prior_bias(plan.lesion_fraction, n_labels, plan.activation),
        len(plan.lesion_labels),
        planned_anchors(plan),
        _encoder(plan),
    )


def _encoder(plan: Plan) -> nn.Module | None:
    """The backbone that the plan names; None for our own."""
    return foreign_backbone(plan) if plan.architecture.network else None


def planned_anchors(plan: Plan) -> AnchorPlan:
    """The plan's anchors; raises `ConfigError` when there are none."""
    if plan.anchors is None:
        raise ConfigError(
            "The plan has no anchors, which a detector needs.",
            where="plan.anchors",
            remedy="make the plan for model=retinanet or model=retina_unet.",
        )
    return plan.anchors


def check_stages(anchors: AnchorPlan, architecture: Architecture) -> None:
    """Raise `ConfigError` when the anchors' levels are not stages of the architecture, in order."""
    n, stages = len(architecture.features), anchors.stages
    fits = len(stages) == len(anchors.sizes) > 0 and sorted(set(stages)) == list(stages)
    if not fits or stages[0] < 0 or stages[-1] >= n or len({len(s) for s in anchors.sizes}) != 1:
        raise ConfigError(
            "The anchors do not fit the network.",
            where="plan.anchors",
            seen=anchors,
            expected=f"levels among the stages 0 to {n - 1}, finest first, with as many sizes each",
        )


def _from_stage(architecture: Architecture, first: int) -> Architecture:
    """The architecture's stages from `first` on, as a table of its own."""
    ones = (1,) * len(architecture.strides[0])
    return replace(
        architecture,
        features=architecture.features[first:],
        strides=(ones, *architecture.strides[first + 1 :]),
        kernels=architecture.kernels[first:],
        n_supervised=1,
    )
