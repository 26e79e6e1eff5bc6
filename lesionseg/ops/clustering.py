"""Weighted box clustering: one box from the many that tiles, flips and models give of a lesion."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lesionseg.errors import ContentError
from lesionseg.ops.boxes import box_iou
from lesionseg.ops.suppression import nms

_CHUNK = 1024  # boxes compared with all leaders at a time


@dataclass(frozen=True, eq=False)
class Clusters:
    """Merged boxes `[n, 2·dims]` and scores `[n]` float32, by descending score.

    `leader` `[n]` int64 is the number of the highest scoring box of each cluster, `size` `[n]`
    int64 how many boxes it has.
    """

    boxes: Float[Tensor, "n two_d"]
    scores: Float[Tensor, " n"]
    leader: Int64[Tensor, " n"]
    size: Int64[Tensor, " n"]


def weighted_box_clustering(
    boxes: Float[Tensor, "n two_d"],
    scores: Float[Tensor, " n"],
    iou_threshold: float,
    *,
    weights: Float[Tensor, " n"] | None = None,
    expected: Float[Tensor, " n"] | None = None,
) -> Clusters:
    """Merge boxes that overlap by more than `iou_threshold` into weighted averages.

    By descending score, ties by index, a box not yet in a cluster gathers all such boxes that
    overlap it. With f = weight · IoU with the leader, the cluster's score is Σ f·s / (Σ f +
    missing) and its box the average by f·s (after Jaeger et al. 2020, arXiv 1811.08661, section
    3.1, who weigh by area and count what is missing). `weights` `[n]`: how far a prediction is to
    be trusted, such as the tile weight at its centre; 1 when None. `expected` `[n]`: the summed
    weight of all predictions that were asked about the leader's place (tiles that see it, times
    flips and models); missing = expected − the weight found, at least 0; None: nothing is missing.
    Sums in float64, on the boxes' device; no boxes give none. Raises `ContentError` for shapes that
    do not fit.

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]])
    >>> found = weighted_box_clustering(boxes, torch.tensor([0.9, 0.6]), 0.5)
    >>> round(found.scores.item(), 3), found.size.item()
    (0.75, 2)
    """
    n = len(boxes)
    one, zero = (torch.full((n,), v, device=boxes.device) for v in (1.0, 0.0))
    given = (scores, one if weights is None else weights, zero if expected is None else expected)
    shapes = [tuple(boxes.shape), *(tuple(t.shape) for t in given)]
    if boxes.ndim != 2 or boxes.shape[1] % 2 or set(shapes[1:]) != {(n,)}:
        raise ContentError(f"Boxes [n, 2·dims], scores and weights [n] do not fit: {shapes}.")
    order = torch.argsort(scores.detach(), descending=True, stable=True)
    corners, s, w, e = (t.detach()[order].double() for t in (boxes, *given))
    # leaders are what NMS leaves; each other box goes to the first of them that it overlaps
    leader = nms(corners, -torch.arange(n, device=boxes.device), iou_threshold).sort().values
    owner, overlap = torch.zeros(n, dtype=torch.int64, device=boxes.device), torch.ones_like(s)
    owner[leader] = torch.arange(len(leader), device=boxes.device)
    leads = torch.zeros(n, dtype=torch.bool, device=boxes.device)
    leads[leader] = True
    others = (~leads).nonzero()[:, 0]
    for first in range(0, len(others), _CHUNK):
        rest = others[first : first + _CHUNK]
        iou = box_iou(corners[rest].float(), corners[leader].float())
        owner[rest] = (iou > iou_threshold).int().argmax(1)
        overlap[rest] = iou.gather(1, owner[rest, None])[:, 0].double()
    factor = w * overlap
    each = torch.stack([factor, factor * s, w, torch.ones_like(factor)], dim=1)
    table = torch.cat([each, (factor * s)[:, None] * corners], dim=1)
    sums = table.new_zeros((len(leader), table.shape[1])).index_add_(0, owner, table)
    trust, trusted_score, weight, size = sums[:, :4].unbind(1)
    total = trust + (e[leader] - weight).clamp(min=0)
    score = torch.where(total > 0, trusted_score / total, 0)
    mean = sums[:, 4:] / trusted_score[:, None]
    merged = torch.where(trusted_score[:, None] > 0, mean, corners[leader])
    best = torch.argsort(score, descending=True, stable=True)
    numbers = order[leader[best]], size[best].long()
    return Clusters(merged[best].float(), score[best].float(), *numbers)
