"""Loss of a detector: weights of box overlap and offsets, focal loss, hard negatives."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.losses.base import LossTerms
from lesionseg.losses.focal import (
    Alpha,
    Normaliser,
    check_settings,
    lesion_target,
    sigmoid_focal_loss,
)
from lesionseg.ops.boxes import decode_boxes, encode_boxes, paired_giou

OVERLAP_WEIGHT = 1.0  # factor of 1 − GIoU
OFFSET_WEIGHT = 0.5  # factor of the offsets' smooth L1
OFFSET_BETA = 1 / 9  # smooth L1 is quadratic below this difference
# hard-negative mining: background anchors per positive anchor, and the minimum number per tile
NEGATIVES = 3


@dataclass(frozen=True, eq=False)
class AnchorTargets:
    """The targets of n anchors in each of B tiles.

    Attributes:
        labels: 0 for background, k for the plan's k-th label.
        valid: False for an anchor that the loss ignores. An anchor with a label is valid.
        boxes: The lesion of each positive anchor, in the order of `labels > 0`.
        places: The positions of the positive anchors in `labels.flatten()`. They are stored because
            the host would have to wait for a GPU to count them.
    """

    labels: Integer[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    boxes: Float[Tensor, "p two_d"]
    places: Int64[Tensor, " p"]


class DetectionLoss(nn.Module):
    """Loss of the scores of all valid anchors and of the boxes of positive anchors.

    Scores: focal loss (Lin et al. 2017). Boxes: 1 − GIoU (Rezatofighi et al. 2019, arXiv
    1902.09630) + ½ · smooth L1 of the offsets (Girshick 2015, equation 3, β = 1/9). Both are
    divided by the normaliser, the number of positive anchors. Without lesions the box term is 0 but
    still depends on the network, so that every parameter has a gradient.

    Args:
        alpha: As in `sigmoid_focal_loss`.
        gamma: As in `sigmoid_focal_loss`.
        hard_negatives: True replaces the focal loss by the cross-entropy of the positive anchors
            and of the background anchors with the largest loss, as in nnDetection and MONAI.

    Raises:
        ConfigError: If `alpha` or `gamma` is outside its range.
    """

    def __init__(
        self, alpha: Alpha = 0.25, gamma: float = 2.0, hard_negatives: bool = False
    ) -> None:
        super().__init__()
        check_settings(alpha, gamma)
        self.alpha = alpha
        self.gamma = gamma
        self.hard_negatives = hard_negatives
        self.link = None if hard_negatives else (alpha, gamma)  # as in `VoxelLoss`

    def forward(
        self,
        class_logits: Float[Tensor, "b n k"],
        box_deltas: Float[Tensor, "b n two_d"],
        anchors: Float[Tensor, "n two_d"],
        targets: AnchorTargets,
        *,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """Compute the two terms of the loss: `anchors` for the scores, and `boxes` for the boxes.

        Args:
            class_logits: A logit per anchor and class, of any floating type.
            box_deltas: The offsets of the boxes from their anchors, as `encode_boxes` makes them.
            anchors: The anchors of one tile in voxels.
            targets: The labels and boxes to learn.
            normaliser: Divisor of both terms. None uses the number of positive anchors, but at
                least 1.

        Returns:
            Both terms as fp32 scalars by name.
        """
        if normaliser is None:
            normaliser = (targets.labels > 0).sum().clamp(min=1)
        box_loss = _sum_box_losses(box_deltas, anchors, targets)
        if self.hard_negatives:
            score_loss = _sum_hardest(class_logits, targets)
        else:
            score_loss = sigmoid_focal_loss(
                class_logits.float().transpose(1, 2),  # the function expects classes on axis 1
                targets.labels,
                alpha=self.alpha,
                gamma=self.gamma,
                reduction="sum",
                valid=targets.valid,
            )
        return {"anchors": score_loss / normaliser, "boxes": box_loss / normaliser}


def _sum_box_losses(
    box_deltas: Float[Tensor, "b n two_d"],
    anchors: Float[Tensor, "n two_d"],
    targets: AnchorTargets,
) -> Float[Tensor, ""]:
    """Sum the loss of the predicted box over all positive anchors.

    The loss of a box is 1 − GIoU plus half the smooth L1 loss of its offsets. Without positive
    anchors, the sum is 0 and has a gradient of 0.

    Args:
        box_deltas: The predicted offsets, as `encode_boxes` makes them.
        anchors: The anchors of one tile in voxels.
        targets: The targets of all anchors of the batch.
    """
    # `places` counts through all tiles, and every tile has the same anchors
    anchor_indices = targets.places % max(len(anchors), 1)
    positive_anchors = anchors[anchor_indices].float()
    deltas = box_deltas.flatten(0, 1).index_select(0, targets.places).float()
    overlap_loss = 1 - paired_giou(decode_boxes(deltas, positive_anchors), targets.boxes.float())
    target_deltas = encode_boxes(targets.boxes, positive_anchors)
    offset_loss = F.smooth_l1_loss(deltas, target_deltas, beta=OFFSET_BETA, reduction="none").sum(
        -1
    )
    total = (OVERLAP_WEIGHT * overlap_loss + OFFSET_WEIGHT * offset_loss).sum()
    return total + 0 * box_deltas.float().sum()  # a gradient for the head even without lesions


def _sum_hardest(class_logits: Float[Tensor, "b n k"], targets: AnchorTargets) -> Float[Tensor, ""]:
    """Sum the cross-entropy of the positive anchors and of the hardest background anchors.

    The hardest anchors are those of the largest loss in the whole batch. Their number is three
    times the number of positive anchors, or three times the number of tiles if that is more. They
    replace the focal loss as a means against the majority of easy background anchors.
    """
    logits = class_logits.float().flatten(0, 1)
    labels = targets.labels.flatten()
    truth = lesion_target(labels, logits).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(-1)
    is_left_out = (labels > 0) | ~targets.valid.flatten()
    background = loss.masked_fill(is_left_out, 0)  # cross-entropy is never below 0
    # `places` has one entry per positive anchor, `labels` one row per tile
    n_hardest = NEGATIVES * max(len(targets.places), len(targets.labels))
    hardest = background.topk(min(n_hardest, len(background))).values
    # `0 * logits.sum()` is a gradient for all outputs, even without anchors
    return loss.index_select(0, targets.places).sum() + hardest.sum() + 0 * logits.sum()
