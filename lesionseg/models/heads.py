"""Heads: voxel logits with prior bias, towers for classes and boxes of a detector."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.models.blocks import CONV, GroupNorm, convolution
from lesionseg.plan.plan import Activation, AnchorPlan

HEAD_STD = 0.01  # Lin et al. 2017, section 4.1

# Groups of the towers' normalisation. Batch and instance norm do not fit levels of different sizes.
_GROUPS = 8


class SegmentationHead(nn.Module):
    """A 1×1 convolution whose first predictions are the prior probability of a lesion.

    It maps `[B, in_channels, *spatial]` to logits `[B, len(bias), *(spatial · block)]`. Each input
    voxel gives the logits for every voxel of its block. The head computes in the precision of its
    weights (fp32), also under autocast. Logits near ±10 have only three digits in bf16, and the
    focal loss of an easy voxel needs more digits.
    """

    def __init__(
        self, dims: int, in_channels: int, bias: Sequence[float], block: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.block = tuple(block) or (1,) * dims
        # the bias of each label, once for each voxel of a block (`depth_to_space`)
        biases = torch.tensor(list(bias)).repeat_interleave(prod(self.block))
        self.conv = CONV[dims](in_channels, len(biases), kernel_size=1)
        if not self.conv.weight.is_meta:  # as in `blocks.initialise`
            nn.init.normal_(self.conv.weight, std=HEAD_STD)
        if self.conv.bias is not None:
            with torch.no_grad():
                self.conv.bias.copy_(biases)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *larger"]:
        """Return the logits of every voxel, in the precision of the weights (fp32)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.conv.weight.dtype)
            if x.device.type != "cpu":
                return depth_to_space(torch.as_tensor(self.conv(x)), self.block)
            # The same convolution as a matrix product: a CPU's convolution to one channel is badly
            # vectorised (at 2 × 16 × 64³ and two cores 27 ms forward and 73 ms backward, in a step
            # of 900 ms). The product over the last axis gives a channels-last gradient, like `x`:
            # 11 ms instead of 38 ms.
            weight = self.conv.weight.flatten(1)  # [outputs, inputs], as the kernel has size 1
            logits = functional.linear(x.movedim(1, -1), weight, self.conv.bias)
            return depth_to_space(logits.movedim(-1, 1), self.block)


def depth_to_space(
    x: Shaped[Tensor, "b cn *smaller"], block: Sequence[int]
) -> Shaped[Tensor, "b c *spatial"]:
    """Rearrange channels into blocks of voxels (pixel shuffle, Shi et al. 2016).

    A head uses it to return logits at the resolution of the image from a coarser feature map. The
    channels of an output channel c are those from c · n on, where n is the number of voxels of a
    block; they fill the block in C order.

    Args:
        x: Map `[B, C · n, *smaller]`.
        block: Side of a block along each axis.

    Returns:
        Map `[B, C, *(smaller · block)]`.
    """
    if prod(block) == 1:
        return x
    dims = len(block)
    small = x.shape[2:]
    n_channels = x.shape[1] // prod(block)
    blocks = x.reshape([x.shape[0], n_channels, *block, *small])
    # each axis of the map, followed by the same axis within the block
    order = [0, 1]
    for axis in range(dims):
        order += [2 + dims + axis, 2 + axis]
    large = [n * side for n, side in zip(small, block, strict=True)]
    return blocks.permute(order).reshape([x.shape[0], n_channels, *large])


def prior_bias(lesion_fraction: float, n_labels: int, activation: Activation) -> tuple[float, ...]:
    """Return the biases of a head whose first predictions are the prior probability of a lesion.

    Each label starts at the probability p = π / n, so that the many background voxels do not
    dominate the first training steps. With sigmoid, there are n biases −log((1−p)/p) (Lin et al.
    2017, section 3.3). With softmax, there are 1 + n biases: 0 for background (p = 1−π) and
    log(p/(1−π)) for each label.

    Args:
        lesion_fraction: The prior probability π of any lesion, between 0 and 1, both excluded.
        n_labels: The number n of labels.
        activation: `sigmoid` or `softmax`.

    Returns:
        One bias per channel of logits.

    >>> [round(b, 3) for b in prior_bias(0.01, 1, "sigmoid")]
    [-4.595]
    >>> [round(b, 3) for b in prior_bias(0.01, 1, "softmax")]
    [0.0, -4.595]
    """
    p = lesion_fraction / n_labels
    if activation == "sigmoid":
        bias = log(p) - log(1 - p)
        return (bias,) * n_labels
    bias = log(p) - log(1 - lesion_fraction)
    return (0.0, *[bias] * n_labels)


class DetectionHead(nn.Module):
    """Two towers for all levels, one for classes and one for boxes (Lin et al. 2017, figure 3).

    The head maps features `[B, channels[level], *shape]`, finest first, to class logits `[B, n, K]`
    and box deltas `[B, n, 2·dims]` of the anchors of all levels, in fp32. A 1×1 convolution first
    gives each level's map `width` channels. The towers (GroupNorm, ReLU) have the same weights at
    all levels. The class bias starts at the prior (Lin et al. 2017, section 3.3). The last layers
    are 1×1 instead of the paper's 3×3, which on a CPU would take as long as a whole tower.
    """

    def __init__(
        self, dims: int, channels: Sequence[int], n_labels: int, anchors: AnchorPlan
    ) -> None:
        super().__init__()
        width = anchors.width
        n_shapes = anchors.n_shapes  # anchors per voxel of a level
        self.n_labels = n_labels
        self.n_coordinates = 2 * dims
        self.laterals = nn.ModuleList(convolution(dims, c, width, (1,) * dims) for c in channels)
        self.class_tower = _build_tower(dims, width, anchors.depth)
        self.box_tower = _build_tower(dims, width, anchors.depth)
        # each label of an anchor starts at the prior, whatever the number of labels
        (bias,) = prior_bias(anchors.prior, n_labels=1, activation="sigmoid")
        self.classes = SegmentationHead(dims, width, [bias] * (n_shapes * n_labels))
        # with a bias of 0, boxes start near their anchors
        self.boxes = SegmentationHead(dims, width, [0.0] * (n_shapes * self.n_coordinates))

    def forward(
        self, pyramid: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b n two_d"]]:
        """Return class logits and box deltas of the anchors of all levels, one level after another.

        Args:
            pyramid: Feature maps, finest first.
        """
        maps = [lateral(x) for lateral, x in zip(self.laterals, pyramid, strict=True)]
        logits = [_apply_by_anchor(self.classes, self.class_tower(x), self.n_labels) for x in maps]
        deltas = [_apply_by_anchor(self.boxes, self.box_tower(x), self.n_coordinates) for x in maps]
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


def _apply_by_anchor(last: nn.Module, x: Tensor, n_values: int) -> Tensor:
    """Apply the last layer of a detection head to a feature map, and arrange the result by anchor.

    Args:
        last: The layer, with `n_values` output channels for each anchor of a voxel.
        x: Feature map `[B, width, *shape]`.
        n_values: Number of logits or box coordinates of an anchor.

    Returns:
        An array `[B, anchors, n_values]`. The anchors of a voxel follow each other.
    """
    # [B, channels, voxels], then [B, voxels, channels], then [B, anchors, values]. `x.shape[0]`,
    # because an export would treat len(x) as a constant.
    result: Tensor = last(x).flatten(2).transpose(1, 2).reshape(x.shape[0], -1, n_values)
    return result


def _build_tower(dims: int, width: int, depth: int) -> nn.Sequential:
    """Build a tower of a detection head: `depth` convolutions, each with group norm and ReLU.

    Input and output have `width` channels.
    """
    steps: list[nn.Module] = []
    for _ in range(depth):
        norm = GroupNorm(num_groups=min(_GROUPS, width), num_channels=width)
        steps += [convolution(dims, width, width, (3,) * dims), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """Logits and boxes of every anchor, in the order of `ops.anchors.grid_anchors`, in fp32.

    `class_logits` `[B, n, K]` contains one independent logit per label. `box_deltas`
    `[B, n, 2·dims]` contains offsets from the anchors (`ops.boxes`). `segmentation` contains the
    logits of voxels, finest first, as a U-Net returns them. It is empty for a network without
    segmentation.
    """

    class_logits: Float[Tensor, "b n k"]
    box_deltas: Float[Tensor, "b n two_d"]
    segmentation: tuple[Tensor, ...] = ()
