"""What teaches a detector: focal loss over all anchors, overlap and offsets of positive ones."""

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

OVERLAP_WEIGHT, OFFSET_WEIGHT = 1.0, 0.5  # of GIoU and of the offsets' smooth L1
NEGATIVES = 3  # background anchors per positive in hard-negative mining, at least so many a tile


@dataclass(frozen=True, eq=False)
class AnchorTargets:
    """The targets of n anchors in each of B tiles.

    `labels`: 0 background, k for the plan's k-th label. `valid`: False for an anchor that teaches
    nothing; an anchor with a label is valid. `boxes`: the lesion of each positive anchor, in the
    order of `labels > 0`. `places`: the positions of the positive anchors in `labels.flatten()`,
    so that the host need not wait for a GPU to count them.
    """

    labels: Integer[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    boxes: Float[Tensor, "p two_d"]
    places: Int64[Tensor, " p"]


class DetectionLoss(nn.Module):
    """Scores over *all* valid anchors, boxes over positive ones, both divided by the positives.

    Scores: focal loss (Lin et al. 2017) with `alpha` and `gamma`; with `hard_negatives`
    cross-entropy of the positives and the worst background anchors, as in nnDetection and MONAI.
    Boxes: 1 − GIoU (Rezatofighi et al. 2019, arXiv 1902.09630) + ½ · smooth L1 of the offsets
    (Girshick 2015, equation 3, β = 1/9); 0 without a lesion, but attached to the network, so that
    no parameter goes unused. Raises `ConfigError`.
    """

    def __init__(
        self, alpha: Alpha = 0.25, gamma: float = 2.0, hard_negatives: bool = False
    ) -> None:
        super().__init__()
        check_settings(alpha, gamma)
        self.alpha, self.gamma, self.hard_negatives = alpha, gamma, hard_negatives
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
        """The fp32 terms `anchors` and `boxes`; `normaliser`: by default the positives, or 1."""
        positive, place = targets.labels > 0, targets.places
        of_lesions = anchors[place % max(len(anchors), 1)].float()
        deltas = box_deltas.flatten(0, 1).index_select(0, place).float()
        overlap = 1 - paired_giou(decode_boxes(deltas, of_lesions), targets.boxes.float())
        offsets = encode_boxes(targets.boxes, of_lesions)
        distance = F.smooth_l1_loss(deltas, offsets, beta=1 / 9, reduction="none").sum(-1)
        boxes = (OVERLAP_WEIGHT * overlap + OFFSET_WEIGHT * distance).sum()
        attached = 0 * box_deltas.float().sum()
        normaliser = positive.sum().clamp(min=1) if normaliser is None else normaliser
        if self.hard_negatives:
            x, labels = class_logits.float().flatten(0, 1), targets.labels.flatten()
            truth = lesion_target(labels, x).to(x.dtype)
            loss = F.binary_cross_entropy_with_logits(x, truth, reduction="none").sum(-1)
            n = NEGATIVES * max(len(place), len(targets.labels))
            left_out = positive.flatten() | ~targets.valid.flatten()
            background = loss.masked_fill(left_out, 0)  # it is never below 0
            hardest = background.topk(min(n, len(background))).values
            scores = loss.index_select(0, place).sum() + hardest.sum() + 0 * x.sum()
        else:
            scores = sigmoid_focal_loss(
                class_logits.float().transpose(1, 2),
                targets.labels,
                alpha=self.alpha,
                gamma=self.gamma,
                reduction="sum",
                valid=targets.valid,
            )
        return {"anchors": scores / normaliser, "boxes": (boxes + attached) / normaliser}
