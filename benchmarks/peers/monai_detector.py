"""MONAI's `RetinaNetDetector` on our backbone, with the settings of its LUNA16 recipe.

It runs in the peers' environment. Heads (four convolutions), ATSS, BCE with hard-negative mining
and L1 boxes are MONAI's. The backbone, the levels and the sizes of the anchors are those of our
plan, so that a comparison only concerns heads, matching, loss and inference.
"""

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet as MonaiRetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from torch import Tensor, nn

from lesionseg.models.build import build_network
from lesionseg.models.retinanet import RetinaNet, planned_anchors
from lesionseg.plan.plan import Plan, total_strides

OVERLAP = 0.5


class Backbone(nn.Module):
    """The encoder and decoder of our RetinaNet: one map per level, all with the same width."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        super().__init__()
        network = build_network(plan, seed=seed)
        assert isinstance(network, RetinaNet)
        self.encoder = network.encoder
        self.decoder = network.decoder
        self.finest = network.finest
        self.stages = network.stages
        self.laterals = network.head.laterals
        self.out_channels = planned_anchors(plan).width

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the levels by name."""
        pyramid = self.decoder(self.encoder(image)[self.finest :])
        maps = [pyramid[stage] for stage in self.stages]
        pairs = zip(self.laterals, maps, strict=True)
        return {str(i): lateral(x) for i, (lateral, x) in enumerate(pairs)}


def build_detector(plan: Plan, device: torch.device, seed: int = 0) -> RetinaNetDetector:
    """Return MONAI's detector for the tiles of the plan."""
    anchors = planned_anchors(plan)
    strides = total_strides(plan.architecture.strides)
    network = MonaiRetinaNet(
        spatial_dims=plan.dims,
        num_classes=1,
        num_anchors=anchors.n_shapes,
        feature_extractor=Backbone(plan, seed),
        size_divisible=strides[-1],
    )
    detector = RetinaNetDetector(
        network=network.to(device),
        anchor_generator=_anchors_of(plan),
        spatial_dims=plan.dims,
        num_classes=1,
        size_divisible=strides[-1],
    )
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.set_hard_negative_sampler(
        batch_size_per_image=64, positive_fraction=0.3, pool_size=20, min_neg=16
    )
    detector.set_target_keys(box_key="box", label_key="label")
    detector.set_box_selector_parameters(
        score_thresh=0.02, topk_candidates_per_level=1000, nms_thresh=0.22, detections_per_img=300
    )
    detector.set_sliding_window_inferer(
        roi_size=plan.tile_shape, overlap=OVERLAP, sw_batch_size=1, mode="gaussian", device="cpu"
    )
    return detector


def _anchors_of(plan: Plan) -> AnchorGeneratorWithAnchorShape:
    """Return MONAI's generator with the plan's sizes at every level."""
    sizes = planned_anchors(plan).sizes
    generator = AnchorGeneratorWithAnchorShape((1,) * len(sizes), sizes[0])
    halves = [torch.tensor(level) / 2 for level in sizes]
    generator.cell_anchors = [torch.cat([-half, half], dim=1) for half in halves]
    return generator
