"""From a detector's outputs, tile by tile, to the boxes of a whole volume on the plan's grid."""

import logging
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
from lesionseg.ops.clustering import weighted_box_clustering
from lesionseg.ops.suppression import batched_nms, nms
from lesionseg.ops.windows import gaussian_weight
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

MOST_IN_A_TILE = 200  # boxes that go on from one view of a tile
SAME_LESION_IN_A_TILE = 0.3  # NMS threshold (IoU) in one look; of all: `AnchorPlan.merge_iou`


@dataclass(frozen=True, eq=False)
class FoundBoxes:
    """Boxes of one case, by descending score.

    `boxes` `[n, 2·dims]` float32 in voxels, starts then stops, half-open; `scores` `[n]` in [0, 1];
    `labels` `[n]` int64, k ≥ 1 for the plan's k-th label.
    """

    boxes: Float[Tensor, "n two_d"]
    scores: Float[Tensor, " n"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.scores)

    def cpu(self) -> "FoundBoxes":
        """The same boxes on the CPU."""
        return FoundBoxes(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())


class BoxCollector:
    """Gathers the boxes of all tiles, flips and ensemble members, and merges them once.

    A view is one network's output on one tile, mirrored or not. Within a view NMS leaves one box
    per lesion; boxes without volume or not finite are dropped and counted. A box that the tile's
    edge cuts (an edge inside the volume) is damped by the tile weight at its centre: a neighbour
    sees it whole. All views together are merged as the plan's anchors say (`merge`): NMS keeps the
    highest; or weighted box clustering averages them, weighted by the tile weight, where views
    without a box count as 0. `tiles` are those that are computed, all when None. All is done where
    the network's outputs lie, and comes to the CPU at the end.
    """

    def __init__(
        self,
        grid: TileGrid,
        plan: Plan,
        *,
        n_views: int = 1,
        tiles: Sequence[int] | None = None,
    ) -> None:
        self.grid, self.plan = grid, plan
        anchors = planned_anchors(plan)
        self._anchors = grid_anchors(anchors.levels(plan.architecture.strides, plan.tile_shape))
        self._weight = gaussian_weight(plan.tile_shape)
        self._starts = torch.tensor(grid.starts, dtype=torch.float32).reshape(len(grid), plan.dims)
        self._n_views = n_views
        self._tiles = range(len(grid)) if tiles is None else tiles
        self._views: list[_ViewBoxes] = []
        self.n_degenerate = 0

    def add(self, output: DetectorOutput, tiles: Sequence[int], flipped: Sequence[int]) -> None:
        """Take what the network says of a batch of tiles, seen mirrored along spatial `flipped`."""
        logits, deltas = output.class_logits.float(), output.box_deltas.float()
        self._anchors, self._weight, self._starts = (
            t.to(logits.device) for t in (self._anchors, self._weight, self._starts)
        )
        for row, tile in enumerate(tiles):
            self._views.append(self._view_boxes(logits[row], deltas[row], tile, flipped))

    def finish(self) -> FoundBoxes:
        """The boxes of the volume, without the padding around a small one, cut at its border."""
        if self.n_degenerate:
            log.debug("%d boxes without volume were dropped.", self.n_degenerate)
        boxes, scores, labels, weights = _joined(self._views, self.plan.dims)
        merged = self._merged(boxes, scores, labels, weights).cpu()
        before = torch.tensor([first for first, _ in self.grid.pad] * 2, dtype=torch.float32)
        limit = torch.tensor(self.grid.shape, dtype=torch.float32).repeat(2)
        inside = (merged.boxes - before).clamp(min=0).minimum(limit)
        is_kept = ~is_degenerate(inside) & (merged.scores >= self.plan.candidate_rule.floor)
        order = torch.argsort(merged.scores[is_kept], descending=True, stable=True)
        order = order[: self.plan.candidate_rule.max_candidates]
        return FoundBoxes(
            inside[is_kept][order], merged.scores[is_kept][order], merged.labels[is_kept][order]
        )

    def _view_boxes(
        self, logits: Tensor, deltas: Tensor, tile: int, flipped: Sequence[int]
    ) -> "_ViewBoxes":
        """One network's boxes in one tile, in voxels of the padded volume."""
        probabilities = box_scores(logits, self.plan)
        flat = probabilities.flatten()
        above = torch.nonzero(flat >= self.plan.candidate_rule.floor)[:, 0]
        above = above[torch.argsort(flat[above], descending=True, stable=True)][
            : 4 * MOST_IN_A_TILE
        ]
        anchor, label = above // probabilities.shape[1], above % probabilities.shape[1] + 1
        boxes, scores = decode_boxes(deltas[anchor], self._anchors[anchor]), flat[above]
        sound = ~is_degenerate(boxes)
        self.n_degenerate += int((~sound).sum())
        boxes, scores, label = boxes[sound], scores[sound], label[sound]
        best = batched_nms(boxes, scores, label, SAME_LESION_IN_A_TILE)[:MOST_IN_A_TILE]
        boxes = _unflipped(boxes[best], flipped, self.plan.tile_shape)
        weight = self._weight_at(split_box(boxes)[0])
        damped = torch.where(self._is_cut(boxes, tile), weight, torch.ones_like(weight))
        placed = boxes + self._starts[tile].repeat(2)
        return _ViewBoxes(placed, scores[best] * damped, label[best], weight)

    def _weight_at(self, centres: Tensor) -> Tensor:
        """The tile weight at points of the tile; that of the nearest voxel beyond it."""
        limit = torch.tensor(self._weight.shape, device=centres.device) - 1
        place = centres.floor().long().clamp(min=0).minimum(limit)
        weight: Tensor = self._weight[place.unbind(-1)]
        return weight

    def _is_cut(self, boxes: Tensor, tile: int) -> Tensor:
        """Whether a box reaches a side of its tile that is no side of the volume."""
        start = self._starts[tile]
        shape = torch.tensor(self._weight.shape, device=start.device)
        end = torch.tensor(self.grid.padded_shape, device=start.device)
        low, high = boxes.chunk(2, dim=-1)
        cut = ((low <= 0) & (start > 0)) | ((high >= shape) & (start + shape < end))
        return cut.any(-1)

    def _merged(self, boxes: Tensor, scores: Tensor, labels: Tensor, weights: Tensor) -> FoundBoxes:
        anchors = planned_anchors(self.plan)
        threshold = anchors.merge_iou
        if anchors.merge == "nms":
            best = batched_nms(boxes, scores, labels, threshold)
            return FoundBoxes(boxes[best], scores[best], labels[best])
        expected = self._expected(split_box(boxes)[0])
        merged = []
        for label in sorted(set(labels.tolist())):
            mine = labels == label
            clusters = weighted_box_clustering(
                boxes[mine],
                scores[mine],
                threshold,
                weights=weights[mine],
                expected=expected[mine],
            )
            alone = nms(clusters.boxes, clusters.scores, threshold)  # averages may meet again
            kept_scores = clusters.scores[alone]
            merged.append(
                FoundBoxes(clusters.boxes[alone], kept_scores, torch.full_like(alone, label))
            )
        if not merged:
            return FoundBoxes(boxes, scores, labels)
        return FoundBoxes(
            torch.cat([m.boxes for m in merged]),
            torch.cat([m.scores for m in merged]),
            torch.cat([m.labels for m in merged]),
        )

    def _expected(self, centres: Tensor) -> Tensor:
        """Summed weight `[n]` of all views that had each point in their tile."""
        shape = torch.tensor(self._weight.shape, device=centres.device)
        total = torch.zeros(len(centres), device=centres.device)
        for tile in self._tiles:
            here = centres - self._starts[tile]
            inside = ((here >= 0) & (here < shape)).all(-1)
            total[inside] += self._weight_at(here[inside])
        return total * self._n_views


@dataclass(frozen=True, eq=False)
class _ViewBoxes:
    """Boxes `[n, 2·dims]` of one view, with score, label and trust `[n]` each."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    weights: Tensor


def _joined(views: Sequence[_ViewBoxes], dims: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not views:
        empty = torch.zeros(0)
        return torch.zeros((0, 2 * dims)), empty, empty.long(), empty
    return (
        torch.cat([v.boxes for v in views]),
        torch.cat([v.scores for v in views]),
        torch.cat([v.labels for v in views]),
        torch.cat([v.weights for v in views]),
    )


def _unflipped(boxes: Tensor, flipped: Sequence[int], tile_shape: Sequence[int]) -> Tensor:
    """Boxes of a mirrored tile, mirrored back.

    >>> _unflipped(torch.tensor([[1.0, 0.0, 3.0, 2.0]]), [0], (10, 10)).tolist()
    [[7.0, 0.0, 9.0, 2.0]]
    """
    start, stop = (part.clone() for part in boxes.chunk(2, dim=-1))
    for axis in flipped:
        n = tile_shape[axis]
        start[:, axis], stop[:, axis] = n - stop[:, axis], n - start[:, axis]
    return torch.cat([start, stop], dim=-1)
