"""What teaches a detector: anchors' scores by focal loss, positive anchors' boxes by overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.errors import one_of, require
from lesionseg.losses.focal import sigmoid_focal_loss
from lesionseg.losses.inputs import Alpha, Normaliser
from lesionseg.losses.quality import quality_focal_loss, varifocal_loss
from lesionseg.losses.voxel_loss import LossTerms
from lesionseg.ops.anchors import AnchorLevel, Assigner, assign_atss, assign_by_iou
from lesionseg.ops.boxes import (
    decode_boxes,
    enclosing_box,
    encode_boxes,
    paired_giou,
    paired_iou,
    split_box,
)
from lesionseg.ops.fixed_rows import at_most, first_places
from lesionseg.ops.kernels.focal_plain import lesion_of_class

Classification = Literal["focal", "varifocal", "quality", "hard_negatives"]
Assignment = Literal["atss", "iou"]
Overlap = Literal["giou", "diou"]


@dataclass(frozen=True, eq=False)
class AnchorTargets:
    """What the anchors of a batch are to find; B tiles of n anchors each.

    `labels` `[B, n]` int64: 0 background, k for the plan's k-th label. `valid` `[B, n]`: False
    where an anchor teaches nothing. `boxes` `[p, 2·dims]` float32: the lesions of the positive
    anchors, in the order of `labels > 0`; if there are fewer than p, the last rows mean nothing,
    if more, those beyond have a score to learn and no box.
    """

    labels: Int64[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    boxes: Float[Tensor, "p two_d"]


class DetectionLoss(nn.Module):
    """Scores over *all* valid anchors, boxes over positive ones, both divided by the positives.

    Boxes: `overlap_weight` · (1 − GIoU or DIoU) + `offset_weight` · smooth L1 of the offsets.
    A batch without a lesion has a box term of 0 that is still attached to the network, so that no
    parameter goes unused. Raises `ConfigError` for unknown names, negative weights or
    limits of the IoU that are out of order.

    Args:
        classification: `focal` (Lin et al. 2017), `varifocal` or `quality` (the score learns the
            box's IoU with its lesion), or `hard_negatives`: cross-entropy over the positives and
            the worst background anchors, the baseline of nnDetection and others.
        alpha: None for 0.25 of `focal` and the published 0.75 of `varifocal`.
        gamma: None for 2; the β of `quality`.
        overlap: `giou` or `diou`.
        overlap_weight: factor of the boxes' overlap, 0 or more.
        offset_weight: factor of the boxes' offsets, 0 or more.
        negatives: of `hard_negatives`: background anchors per positive, at least so many a tile.
        assign: which anchors find a lesion: `atss`, or `iou` (`ops.anchors`).
        positive_iou: of `iou`: anchors that overlap a lesion by this find it.
        negative_iou: of `iou`: background is what overlaps none by this.
    """

    def __init__(
        self,
        classification: Classification = "focal",
        alpha: Alpha = None,
        gamma: float | None = None,
        overlap: Overlap = "giou",
        overlap_weight: float = 1.0,
        offset_weight: float = 0.5,
        negatives: int = 3,
        assign: Assignment = "atss",
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
    ) -> None:
        super().__init__()
        known = get_args(Classification)
        one_of("classification loss", classification, known, where="detection.classification")
        require(
            min(overlap_weight, offset_weight) >= 0 and negatives >= 1,
            "The weights of a detection loss are not negative, and mining keeps some anchors.",
            where="detection",
            seen=(overlap_weight, offset_weight, negatives),
        )
        require(
            classification != "varifocal" or not isinstance(alpha, Sequence),
            "Varifocal loss has one α.",
            where="detection.alpha",
            seen=alpha,
        )
        _check_assignment(assign, positive_iou, negative_iou)
        overlap_loss(torch.zeros((0, 4)), torch.zeros((0, 4)), overlap)  # refuses unknown names
        self.classification: Classification = classification
        self.alpha = (0.75 if classification == "varifocal" else 0.25) if alpha is None else alpha
        self.gamma = 2.0 if gamma is None else gamma
        self.overlap: Overlap = overlap
        self.overlap_weight, self.offset_weight = overlap_weight, offset_weight
        self.negatives = negatives
        self.assign: Assignment = assign
        self.positive_iou, self.negative_iou = positive_iou, negative_iou

    @property
    def link(self) -> tuple[Alpha, float] | None:
        """(α, γ) by which `posterior_logits` undoes the scores' loss; None unless it is focal."""
        return (self.alpha, self.gamma) if self.classification == "focal" else None

    @property
    def assigner(self) -> Assigner:
        """Which anchors are to find which lesion."""
        if self.assign == "atss":
            return assign_atss
        return partial(_by_iou, self.positive_iou, self.negative_iou)

    def forward(
        self,
        class_logits: Float[Tensor, "b n k"],
        box_deltas: Float[Tensor, "b n two_d"],
        anchors: Float[Tensor, "n two_d"],
        targets: AnchorTargets,
        *,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The terms `anchors` and `boxes`, fp32 scalars; their sum is the loss.

        `normaliser`: by default the positives, at least 1. No anchor gives 0.
        """
        positive = targets.labels > 0
        place, real = first_places(positive.flatten(), len(targets.boxes))
        mine = anchors[place % max(len(anchors), 1)].float()
        deltas = box_deltas.flatten(0, 1).index_select(0, place)
        boxes = decode_boxes(deltas, mine)
        normaliser = positive.sum().clamp(min=1) if normaliser is None else normaliser
        with torch.no_grad():
            quality = paired_iou(boxes, targets.boxes)
        scores = self._scores(class_logits, targets, place, real, quality)
        terms = self.overlap_weight * overlap_loss(boxes, targets.boxes, self.overlap)
        wanted = encode_boxes(targets.boxes, mine)
        terms = terms + self.offset_weight * offset_loss(deltas, wanted)
        terms = torch.where(real, terms, 0).sum()
        attached = 0 * box_deltas.float().sum()  # without a lesion the boxes' weights count too
        return {"anchors": scores / normaliser, "boxes": (terms + attached) / normaliser}

    def _scores(
        self, logits: Tensor, targets: AnchorTargets, place: Tensor, real: Tensor, quality: Tensor
    ) -> Tensor:
        """The summed loss of all valid anchors' scores."""
        if self.classification == "focal":  # of a label map: in one pass, without a table of 0 / 1
            return sigmoid_focal_loss(
                logits.float().transpose(1, 2),
                targets.labels,
                alpha=self.alpha,
                gamma=self.gamma,
                reduction="sum",
                valid=targets.valid,
            )
        n_labels = logits.shape[-1]
        wanted = lesion_of_class(targets.labels.flatten(), n_labels)
        valid = targets.valid.flatten()
        flat = logits.float().flatten(0, 1)
        if self.classification == "hard_negatives":
            return self._mined(flat, wanted, valid, targets)
        kept = valid[:, None].expand_as(flat)
        # a positive stays one however bad its box is; what is not real falls beyond the end
        column = place * n_labels + targets.labels.flatten()[place] - 1
        column = torch.where(real, column, flat.numel())
        goal = F.pad(wanted.float().flatten(), (0, 1)).scatter(0, column, quality.clamp(min=1e-3))
        goal = goal[:-1].view_as(flat)
        if self.classification == "varifocal":
            alpha = self.alpha if isinstance(self.alpha, float | int) else 0.75
            return varifocal_loss(
                flat, goal, alpha=alpha, gamma=self.gamma, reduction="sum", valid=kept
            )
        return quality_focal_loss(flat, goal, beta=self.gamma, reduction="sum", valid=kept)

    def _mined(self, flat: Tensor, wanted: Tensor, valid: Tensor, targets: AnchorTargets) -> Tensor:
        """Cross-entropy of positives and of the worst background anchors of the batch."""
        loss = F.binary_cross_entropy_with_logits(flat, wanted.float(), reduction="none").sum(-1)
        positive = targets.labels.flatten() > 0
        background = valid & ~positive
        least = self.negatives * len(targets.labels)
        n = (self.negatives * (positive & valid).sum()).clamp(min=least)
        rows = at_most(n, max(self.negatives * len(targets.boxes), least))
        hardest = torch.where(background, loss, -1).topk(min(rows, len(loss))).values
        kept = (hardest >= 0) & (torch.arange(len(hardest), device=loss.device) < n)
        lesion = torch.where(positive & valid, loss, 0)
        return lesion.sum() + torch.where(kept, hardest, 0).sum() + 0 * flat.sum()


def overlap_loss(
    boxes: Float[Tensor, "n two_d"], lesions: Float[Tensor, "n two_d"], kind: Overlap = "giou"
) -> Float[Tensor, " n"]:
    """1 − GIoU (Rezatofighi et al. 2019, arXiv 1902.09630) or 1 − DIoU of each pair, in [0, 2].

    DIoU takes off the squared distance of the centres over the squared diagonal of the enclosing
    box (Zheng et al. 2020, arXiv 1911.08287, equation 6). Both have a gradient where boxes do not
    meet. In fp32; boxes whose stop lies before their start count as empty. No pair gives none.
    Raises `ConfigError` for another kind.

    >>> box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> overlap_loss(box, torch.tensor([[2.0, 2.0, 4.0, 4.0]])).item()  # 8 of 16 are nobody's
    1.5
    >>> overlap_loss(box, torch.tensor([[2.0, 2.0, 4.0, 4.0]]), "diou").item()  # 8 / 32
    1.25
    """
    one_of("overlap loss", kind, get_args(Overlap), where="detection.overlap")
    boxes, lesions = boxes.float(), lesions.float()
    if kind == "giou":
        return 1 - paired_giou(boxes, lesions)
    start, stop = enclosing_box(boxes, lesions).chunk(2, dim=-1)
    diagonal = (stop - start).square().sum(-1).clamp(min=1e-9)
    distance = (split_box(boxes)[0] - split_box(lesions)[0]).square().sum(-1)
    return 1 - paired_iou(boxes, lesions) + distance / diagonal


def offset_loss(
    deltas: Float[Tensor, "n two_d"], wanted: Float[Tensor, "n two_d"]
) -> Float[Tensor, " n"]:
    """Smooth L1 of encoded boxes, summed over coordinates, in fp32 (Girshick 2015, equation 3).

    Quadratic within 1/9 of the target, linear beyond. No pair gives none.
    """
    loss = F.smooth_l1_loss(deltas.float(), wanted.float(), beta=1 / 9, reduction="none")
    return loss.sum(-1)


def _by_iou(
    positive: float,
    negative: float,
    levels: Sequence[AnchorLevel],
    anchors: Float[Tensor, "n two_d"],
    boxes: Float[Tensor, "m two_d"],
) -> Int64[Tensor, " n"]:
    """`assign_by_iou` as an `Assigner`: levels do not matter to it."""
    del levels
    return assign_by_iou(anchors, boxes, positive=positive, negative=negative)


def _check_assignment(assign: str, positive_iou: float, negative_iou: float) -> None:
    one_of("assignment of anchors", assign, get_args(Assignment), where="detection.assign")
    require(
        0 < negative_iou <= positive_iou <= 1,
        "The limits of an assignment by IoU are out of order.",
        where="detection",
        seen=f"negative_iou={negative_iou:g}, positive_iou={positive_iou:g}",
        expected="0 < negative_iou ≤ positive_iou ≤ 1",
    )
