"""Heads: the last layers, which turn features into logits and boxes, and what a detector gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.errors import ConfigError
from lesionseg.models.blocks import CONV, GroupNorm, convolution
from lesionseg.plan.plan import Activation, AnchorPlan

HEAD_STD = 0.01  # Lin et al. 2017, section 4.1

_GROUPS = 8  # of the normalisation: the level sizes differ, so batches and instances will not do


class SegmentationHead(nn.Module):
    """A 1×1 convolution whose first predictions are the prior probability of a lesion.

    `[B, in_channels, *spatial]` to logits `[B, len(bias), *(spatial · block)]`: each voxel has
    logits of its own for every voxel of its block. Computed in the precision of its own weights
    (fp32) even under autocast: logits near ±10 carry three digits in bf16, and the focal loss of an
    easy voxel needs more.
    """

    def __init__(
        self, dims: int, in_channels: int, bias: Sequence[float], block: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.block = tuple(block) or (1,) * dims
        biases = torch.tensor(list(bias)).repeat_interleave(prod(self.block))
        self.conv = CONV[dims](in_channels, len(biases), kernel_size=1)
        nn.init.normal_(self.conv.weight, std=HEAD_STD)
        if self.conv.bias is not None:
            with torch.no_grad():
                self.conv.bias.copy_(biases)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *larger"]:
        """Logits."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.conv.weight.dtype)
            if x.device.type != "cpu":
                return depth_to_space(torch.as_tensor(self.conv(x)), self.block)
            # The same as a product: a CPU's convolution to one channel is badly vectorised (at
            # 2 × 16 × 64³ and two cores 27 ms forward, 73 ms backward of a step of 900 ms). Over
            # the last axis, so that the gradient is channels-last as `x` is: 11 ms, else 38.
            weight = self.conv.weight.flatten(1)
            logits = functional.linear(x.movedim(1, -1), weight, self.conv.bias)
            return depth_to_space(logits.movedim(-1, 1), self.block)


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


def prior_bias(lesion_fraction: float, n_labels: int, activation: Activation) -> tuple[float, ...]:
    """Biases with which a head starts at p = π / n for each of n labels, π = `lesion_fraction`.

    Sigmoid: n logits −log((1−p)/p) (Lin et al. 2017, section 3.3). Softmax: 1 + n logits, 0 for
    background (p = 1−π) and log(p/(1−π)) for each label. Raises `ConfigError` unless 0 < π < 1.

    >>> [round(b, 3) for b in prior_bias(0.01, 1, "sigmoid")]
    [-4.595]
    >>> [round(b, 3) for b in prior_bias(0.01, 1, "softmax")]
    [0.0, -4.595]
    """
    if not 0 < lesion_fraction < 1 or n_labels < 1:
        raise ConfigError(
            f"plan.lesion_fraction={lesion_fraction} over {n_labels} labels: give a fraction "
            "between 0 and 1, both excluded, and at least one label."
        )
    p = lesion_fraction / n_labels
    if activation == "sigmoid":
        return (log(p) - log(1 - p),) * n_labels
    return (0.0, *(log(p) - log(1 - lesion_fraction),) * n_labels)


class DetectionHead(nn.Module):
    """Two towers over every level, one for classes and one for boxes (Lin et al. 2017, figure 3).

    Feature maps `[B, channels[level], *shape]`, finest first, to class logits `[B, n, K]` and box
    deltas `[B, n, 2·dims]` of all levels' anchors, in fp32. A level's map is first brought to
    `width` channels; the towers (GroupNorm, ReLU) are the same weights at all levels. The class
    bias starts at the prior (Lin et al. 2017, section 3.3). The last layers are 1×1 where the paper
    has 3×3: with so few outputs these cost as much as a tower on a processor.
    """

    def __init__(
        self, dims: int, channels: Sequence[int], n_labels: int, anchors: AnchorPlan
    ) -> None:
        super().__init__()
        width, n = anchors.width, anchors.n_shapes
        self.n_labels, self.n_coordinates = n_labels, 2 * dims
        self.laterals = nn.ModuleList(convolution(dims, c, width, (1,) * dims) for c in channels)
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
    out: Tensor = last(x)
    # not len(x), which an export would take for a constant
    return out.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, n_values)


def _tower(dims: int, width: int, depth: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for _ in range(depth):
        norm = GroupNorm(min(_GROUPS, width), width)
        steps += [convolution(dims, width, width, (3,) * dims), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """Scores and boxes of every anchor, in the order of `ops.anchors.grid_anchors`, in fp32.

    `class_logits` `[B, n, K]`: one independent logit a label. `box_deltas` `[B, n, 2·dims]`:
    offsets from the anchors (`ops.boxes`). `segmentation`: logits of the voxels as a U-Net
    gives them, finest first; empty for a network that only detects.
    """

    class_logits: Float[Tensor, "b n k"]
    box_deltas: Float[Tensor, "b n two_d"]
    segmentation: tuple[Tensor, ...] = ()
