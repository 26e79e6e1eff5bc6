"""RetinaNet and Retina U-Net: encoder, feature pyramid and detection heads on its levels.

The backbone is that of our U-Net or another one.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.models.custom_network import custom_backbone
from lesionseg.models.heads import DetectionHead, DetectorOutput, SegmentationHead, prior_bias
from lesionseg.models.unet import Decoder, Encoder
from lesionseg.plan.plan import AnchorPlan, Architecture, Plan


class RetinaNet(nn.Module):
    """An encoder, a decoder as feature pyramid, and detection heads on some of its levels.

    `forward` maps an image `[B, C, *spatial]` to a `DetectorOutput`. Without `bias` the network is
    a RetinaNet (Lin et al. 2017), and its decoder ends at the finest level that has anchors. With
    `bias` (one number per channel of the segmentation) it is a Retina U-Net (Jaeger et al. 2020,
    arXiv 1811.08661). Its whole decoder also computes `segmentation`: the logits of
    `architecture.n_supervised` levels in train mode, and only the finest ones in eval mode.
    `encoder` replaces our own `Encoder`.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        architecture: Architecture,
        n_labels: int,
        anchors: AnchorPlan,
        encoder: nn.Module | None = None,
        bias: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder or Encoder(dims, in_channels, architecture)
        # the stage at which the decoder ends: a Retina U-Net (with `bias`) needs the finest one
        self.finest = 0 if bias else anchors.stages[0]
        # the stages with anchors, counted from the end of the decoder
        self.stages = tuple(stage - self.finest for stage in anchors.stages)
        self.decoder = Decoder(dims, architecture, first=self.finest)
        channels = self.decoder.channels
        self.head = DetectionHead(dims, [channels[s] for s in self.stages], n_labels, anchors)
        if bias:
            block = architecture.strides[0]  # not 1 if a backbone's finest map is coarser
            widths = channels[: architecture.n_supervised]
            heads = [SegmentationHead(dims, width, bias, block) for width in widths]
            self.segmentation = nn.ModuleList(heads)

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> DetectorOutput:
        """Return class logits and box deltas of every anchor, and a Retina U-Net's voxel logits."""
        pyramid = self.decoder(self.encoder(image)[self.finest :])
        logits, deltas = self.head([pyramid[stage] for stage in self.stages])
        heads = list(getattr(self, "segmentation", ()))  # a RetinaNet has none
        if not self.training:
            heads = heads[:1]  # only the finest logits
        # the coarser maps have no head
        voxels = tuple(head(x) for head, x in zip(heads, pyramid, strict=False))
        return DetectorOutput(class_logits=logits, box_deltas=deltas, segmentation=voxels)


def detector(plan: Plan) -> RetinaNet:
    """Build the RetinaNet or Retina U-Net that the plan's architecture names, with initial weights.

    The encoder is ours, or the backbone that `plan.architecture.network` names. Raise `ConfigError`
    if the plan has no anchors.
    """
    bias: tuple[float, ...] = ()
    if plan.architecture.name == "retina_unet":
        bias = prior_bias(plan.lesion_fraction, len(plan.labels), plan.activation)
    network = plan.architecture.network
    n_channels = len(plan.channel_names)
    return RetinaNet(
        dims=plan.dims,
        in_channels=n_channels,
        architecture=plan.architecture,
        n_labels=len(plan.labels.lesion_names),
        anchors=planned_anchors(plan),
        encoder=custom_backbone(network, n_channels, plan.tile_shape) if network else None,
        bias=bias,
    )


def planned_anchors(plan: Plan) -> AnchorPlan:
    """Return the anchors of a detector's plan. Raise `ConfigError` if the plan has no anchors.

    Used instead of `plan.anchors`, which may be None.
    """
    if plan.anchors is None:
        raise ConfigError(
            "plan.anchors: the plan has none. Plan with model=retinanet or model=retina_unet."
        )
    return plan.anchors
