"""The heads of a detector, shared by all levels of the pyramid."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.models.blocks import initialise, layers
from lesionseg.models.heads import SegmentationHead, prior_bias
from lesionseg.plan.anchor_plan import AnchorPlan

_GROUPS = 8  # of the normalisation: the level sizes differ, so batches and instances will not do


class DetectionHead(nn.Module):
    """Two towers over every level, one for classes and one for boxes (Lin et al. 2017, figure 3).

    Feature maps `[B, channels[level], *shape]`, finest first, to class logits `[B, n, K]` and box
    deltas `[B, n, 2·dims]` of all levels' anchors, in fp32. A level's map is first brought to
    `width` channels; the towers (GroupNorm, ReLU) are the same weights at all levels. The class
    bias starts at the prior (Lin et al. 2017, section 3.3). The last layers are 1×1 where the paper
    has 3×3: with so few outputs these cost as much as a tower on a processor. One convolution a
    tower, where the paper has four, since the decoder has already convolved every level twice:
    with two a training step takes 1.17 times as long (3-D, 2 × 64³, one core; one convolution for
    both towers and a grouped one after it, likewise; channels-last in bf16, 1.7 times).
    """

    def __init__(
        self, dims: int, channels: Sequence[int], n_labels: int, anchors: AnchorPlan
    ) -> None:
        super().__init__()
        width, n = anchors.width, anchors.n_shapes
        self.n_labels, self.n_coordinates = n_labels, 2 * dims
        self.laterals = nn.ModuleList(_conv(dims, c, width, 1) for c in channels)
        self.class_tower = _tower(dims, width, anchors.depth)
        self.box_tower = _tower(dims, width, anchors.depth)
        bias = prior_bias(anchors.prior, 1, "sigmoid")
        self.classes = SegmentationHead(dims, width, bias * (n * n_labels))
        self.boxes = SegmentationHead(dims, width, (0.0,) * (n * self.n_coordinates))

    def forward(
        self, pyramid: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b n two_d"]]:
        """Class logits and box deltas."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, pyramid, strict=True)]
        logits = [_by_anchor(self.classes, self.class_tower(x), self.n_labels) for x in maps]
        deltas = [_by_anchor(self.boxes, self.box_tower(x), self.n_coordinates) for x in maps]
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


def _by_anchor(last: nn.Module, x: Tensor, n_values: int) -> Tensor:
    """The last layer's output `[B, cells · shapes, n_values]`."""
    out: Tensor = last(x)
    return out.flatten(2).transpose(1, 2).reshape(len(x), -1, n_values)


def _tower(dims: int, width: int, depth: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for _ in range(depth):
        norm = nn.GroupNorm(min(_GROUPS, width), width)
        steps += [_conv(dims, width, width, 3), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


def _conv(dims: int, before: int, after: int, kernel: int) -> nn.Module:
    conv = layers(dims).conv(before, after, kernel_size=kernel, padding=kernel // 2, bias=False)
    initialise(conv)
    return conv
