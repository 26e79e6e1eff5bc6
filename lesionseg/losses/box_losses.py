"""Losses of boxes against the lesions they are to fit, pair by pair."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lesionseg.errors import one_of
from lesionseg.ops.boxes import box_volume, enclosing_box, paired_giou, paired_iou, split_box

Overlap = Literal["giou", "diou"]


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


def is_degenerate(boxes: Float[Tensor, "n two_d"]) -> Tensor:
    """Which boxes `[n]` are not finite or have no volume."""
    return ~torch.isfinite(boxes).all(-1) | (box_volume(boxes.nan_to_num()) <= 0)
