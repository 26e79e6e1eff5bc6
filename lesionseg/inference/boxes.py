"""From a detector's outputs, tile by tile, to the boxes of a whole volume on the plan's grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lesionseg.data.tiling import TileGrid
from lesionseg.inference.probabilities import box_scores
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import decode_boxes, is_degenerate, split_box
from lesionseg.ops.suppression import batched_nms
from lesionseg.ops.windows import gaussian_weight
from lesionseg.plan.plan import Plan

MOST_IN_A_TILE = 200  # boxes that go on from one view of a tile
SAME_LESION_IN_A_TILE = 0.3  # NMS threshold (IoU) in one view; of all views: `AnchorPlan.merge_iou`


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one case, by descending score, on the CPU.

    `boxes` `[n, 2·dims]` float32 in voxels, starts then stops, half-open; `scores` `[n]` in [0, 1];
    `labels` `[n]` int64, k ≥ 1 for the plan's k-th label.
    """

    boxes: Float[Tensor, "n two_d"]
    scores: Float[Tensor, " n"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.scores)


class BoxCollector:
    """Gathers the boxes of all tiles, flips and ensemble members, and merges them once by NMS.

    A view is one network's output on one tile, mirrored or not. Within a view NMS leaves one box
    per lesion; boxes without volume or not finite are dropped. A box that the tile's edge cuts (an
    edge inside the volume) is damped by the tile weight at its centre: a neighbour sees it whole.
    """

    def __init__(self, grid: TileGrid, plan: Plan) -> None:
        self.grid, self.plan = grid, plan
        levels = planned_anchors(plan).levels(plan.architecture.strides, plan.tile_shape)
        self._anchors, self._weight = grid_anchors(levels), gaussian_weight(plan.tile_shape)
        none = torch.zeros(0)
        self._views = [(torch.zeros((0, 2 * plan.dims)), none, none.long())]

    def add(self, output: DetectorOutput, tiles: Sequence[int], flipped: Sequence[int]) -> None:
        """Take what the network says of a batch of tiles, seen mirrored along spatial `flipped`."""
        device = output.class_logits.device
        self._anchors, self._weight = self._anchors.to(device), self._weight.to(device)
        rows = zip(tiles, output.class_logits.float(), output.box_deltas.float(), strict=True)
        for tile, logits, deltas in rows:
            self._views.append(self._view(logits, deltas, tile, flipped))

    def _view(
        self, logits: Tensor, deltas: Tensor, tile: int, flipped: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes in voxels of the padded volume, scores and labels of one network in one tile."""
        probabilities = box_scores(logits, self.plan)
        flat = probabilities.flatten()
        above = torch.nonzero(flat >= self.plan.candidate_rule.floor)[:, 0]
        order = torch.argsort(flat[above], descending=True, stable=True)
        above = above[order[: 4 * MOST_IN_A_TILE]]
        anchor, label = above // probabilities.shape[1], above % probabilities.shape[1] + 1
        boxes, scores = decode_boxes(deltas[anchor], self._anchors[anchor]), flat[above]
        sound = ~is_degenerate(boxes)
        boxes, scores, label = boxes[sound], scores[sound], label[sound]
        best = batched_nms(boxes, scores, label, SAME_LESION_IN_A_TILE)[:MOST_IN_A_TILE]
        boxes = unflipped(boxes[best], flipped, self.plan.tile_shape)
        shape = torch.tensor(self._weight.shape, device=boxes.device)
        place = split_box(boxes)[0].floor().long().clamp(min=0).minimum(shape - 1)
        weight = self._weight[place.unbind(-1)]
        start = torch.tensor(self.grid.starts[tile], dtype=torch.float32, device=boxes.device)
        end = torch.tensor(self.grid.padded_shape, device=boxes.device)
        low, high = boxes.chunk(2, dim=-1)
        cut = ((low <= 0) & (start > 0)) | ((high >= shape) & (start + shape < end))
        damped = scores[best] * torch.where(cut.any(-1), weight, torch.ones_like(weight))
        return (boxes + start.repeat(2)).cpu(), damped.cpu(), label[best].cpu()

    def finish(self) -> Boxes:
        """The boxes of the volume, without the padding around a small one, cut at its border."""
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*self._views, strict=True))
        best = batched_nms(boxes, scores, labels, planned_anchors(self.plan).merge_iou)
        before = torch.tensor([first for first, _ in self.grid.pad] * 2, dtype=torch.float32)
        limit = torch.tensor(self.grid.shape, dtype=torch.float32).repeat(2)
        inside = (boxes[best] - before).clamp(min=0).minimum(limit)
        keep = ~is_degenerate(inside) & (scores[best] >= self.plan.candidate_rule.floor)
        keep = torch.nonzero(keep)[: self.plan.candidate_rule.max_candidates, 0]
        return Boxes(inside[keep], scores[best][keep], labels[best][keep])


def unflipped(boxes: Tensor, flipped: Sequence[int], tile_shape: Sequence[int]) -> Tensor:
    """Boxes `[n, 2·dims]` of a tile mirrored along the axes `flipped`, mirrored back.

    >>> unflipped(torch.tensor([[1.0, 0.0, 3.0, 2.0]]), [0], (10, 10)).tolist()
    [[7.0, 0.0, 9.0, 2.0]]
    """
    start, stop = (part.clone() for part in boxes.chunk(2, dim=-1))
    for axis in flipped:
        n = tile_shape[axis]
        start[:, axis], stop[:, axis] = n - stop[:, axis], n - start[:, axis]
    return torch.cat([start, stop], dim=-1)
