"""Assignment: which anchors are to find which lesion.

A result `[n]` int64 holds, for each anchor, the number of its lesion, or `BACKGROUND`, or `IGNORED`
where it shall teach nothing.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lesionseg.ops.anchors import AnchorLevel, cell_anchors, level_offsets, nearest_cells
from lesionseg.ops.boxes import box_iou, paired_iou, split_box

BACKGROUND, IGNORED = -1, -2
_CHUNK = 8  # lesions compared with all anchors at a time: 2 million anchors are then 130 MB


def assign_atss(
    levels: Sequence[AnchorLevel],
    anchors: Float[Tensor, "n two_d"],
    boxes: Float[Tensor, "m two_d"],
    *,
    n_nearest: int = 9,
) -> Int64[Tensor, " n"]:
    """Adaptive training sample selection (Zhang et al. 2020, arXiv 1912.02424, algorithm 1).

    Candidates of a lesion are the anchors at the `n_nearest` cells of each level around its centre;
    those whose IoU reaches mean + standard deviation of the candidates' IoUs are positive. Their
    centre need not lie inside the lesion: none would for a lesion of two voxels. An anchor wanted
    twice goes to the higher IoU. A lesion left without any takes its best candidate, unless that is
    another's only one. Memory grows with `m · n_nearest^dims`, not with the anchors. No lesion
    gives background throughout.
    """
    assigned = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if len(boxes) == 0 or len(anchors) == 0:
        return assigned
    candidates = _candidates(levels, boxes, n_nearest)
    owner = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(candidates)
    overlap = paired_iou(anchors[candidates.flatten()], boxes[owner.flatten()])
    overlap = overlap.view_as(candidates)
    threshold = overlap.mean(1) + overlap.std(1, correction=0)
    wanted = (overlap >= threshold[:, None]) & (overlap > 0)
    _give(assigned, candidates[wanted], owner[wanted], overlap[wanted])
    _leave_none_out(assigned, candidates, overlap)
    return assigned


def assign_by_iou(
    anchors: Float[Tensor, "n two_d"],
    boxes: Float[Tensor, "m two_d"],
    *,
    positive: float = 0.5,
    negative: float = 0.4,
) -> Int64[Tensor, " n"]:
    """Anchors of IoU ≥ `positive` with a lesion find it, of IoU < `negative` none (RetinaNet).

    Those between are ignored (Lin et al. 2017, arXiv 1708.02002, section 4). An anchor goes to the
    lesion it overlaps most, and each lesion to the anchor that overlaps it most if that is another
    lesion's not already. A few lesions are looked at at a time, whatever their number.
    """
    device = anchors.device
    best = torch.zeros(len(anchors), device=device)
    owner = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=device)
    favourite = torch.zeros((len(boxes), 1), dtype=torch.int64, device=device)
    highest = torch.zeros((len(boxes), 1), device=device)
    for first in range(0, len(boxes), _CHUNK) if len(anchors) else ():
        overlap = box_iou(boxes[first : first + _CHUNK], anchors)
        value, lesion = overlap.max(0)
        better = value > best
        owner = torch.where(better, lesion + first, owner)
        best = torch.maximum(best, value)
        rows = slice(first, first + _CHUNK)
        highest[rows], favourite[rows] = overlap.max(1, keepdim=True)
    assigned = torch.where(best >= negative, IGNORED, BACKGROUND)
    assigned = torch.where(best >= positive, owner, assigned)
    if len(anchors):
        _leave_none_out(assigned, favourite, highest)
    return assigned


Assigner = Callable[
    [Sequence[AnchorLevel], Float[Tensor, "n two_d"], Float[Tensor, "m two_d"]],
    Int64[Tensor, " n"],
]


def _candidates(levels: Sequence[AnchorLevel], boxes: Tensor, n_nearest: int) -> Tensor:
    """Anchor numbers `[m, c]` at the cells of each level nearest to each box's centre."""
    centres = split_box(boxes.float())[0]
    found = []
    for level, offset in zip(levels, level_offsets(levels), strict=True):
        cells, _ = nearest_cells(level, centres, n_nearest)
        found.append(cell_anchors(cells, len(level.sizes)) + offset)
    return torch.cat(found, dim=1)


def _give(assigned: Tensor, anchor: Tensor, lesion: Tensor, overlap: Tensor) -> None:
    """Give each anchor to the lesion that overlaps it most; ties to the lower lesion. In place."""
    # the last writer wins on a CPU only: keep, of each anchor's rows, the first of the sorted
    order = torch.argsort(lesion, stable=True)
    order = order[torch.argsort(overlap[order], descending=True, stable=True)]
    order = order[torch.argsort(anchor[order], stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = anchor[order][1:] != anchor[order][:-1]
    kept = order[first]
    assigned[anchor[kept]] = lesion[kept]


def _leave_none_out(assigned: Tensor, candidates: Tensor, overlap: Tensor) -> None:
    """Give every lesion without an anchor its best candidate. In place.

    Lesions of the largest overlap choose first; an anchor that is a lesion's only one is not taken
    from it.
    """
    counts = torch.bincount(assigned.clamp(min=-1) + 1, minlength=len(candidates) + 1)[1:].tolist()
    left = [lesion for lesion, n in enumerate(counts) if n == 0]
    best = overlap.amax(1).tolist()
    for lesion in sorted(left, key=lambda i: (-best[i], i)):
        for at in torch.argsort(overlap[lesion], descending=True, stable=True).tolist():
            anchor = int(candidates[lesion, at])
            before = int(assigned[anchor])
            if before >= 0 and counts[before] == 1:
                continue
            if before >= 0:
                counts[before] -= 1
            assigned[anchor] = lesion
            counts[lesion] = 1
            break
