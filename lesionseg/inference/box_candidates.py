"""The boxes of a detector: collected from tiles, merged, restored to the file's grid.

They are the candidates of a case, or are fused with the candidates from voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.data.tiling import TileGrid
from lesionseg.errors import ContentError
from lesionseg.inference.probabilities import box_scores
from lesionseg.inference.stitch import gaussian_weight
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import (
    decode_boxes,
    is_degenerate,
    move_boxes,
    overlapping_pairs,
    split_box,
)
from lesionseg.ops.suppression import batched_nms, cluster_boxes
from lesionseg.plan.plan import Plan

MAX_ANCHORS = 10_000  # NMS processes at most this many anchors of a view, by descending score
# Boxes of all views that are merged at first. More are merged only if fewer than the limit of
# candidates remain, because a network that has hardly learnt gives millions of boxes.
MERGED_AT_FIRST = 100_000
SAME_LESION = 0.1  # IoU from which candidates of both heads are one lesion, as in matching
# NMS threshold (IoU) in one view; the threshold for all views is `AnchorPlan.merge_iou`
SAME_LESION_IN_A_TILE = 0.3


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one case, by descending score, on the CPU.

    `boxes` `[n, 2·dims]` float32 in voxels, starts then stops, half-open. `scores` `[n]` in [0, 1].
    `labels` `[n]` int64, k ≥ 1 for the plan's k-th label. `n_left_out` counts the skipped anchors
    and the boxes that were not merged. An anchor is skipped if its view has `MAX_ANCHORS` of a
    higher score, and counts if it reaches the floors of boxes and of the candidate rule. Boxes are
    not merged if the case has enough of higher scores.
    """

    boxes: Float[Tensor, "n two_d"]
    scores: Float[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    n_left_out: int = 0

    def __len__(self) -> int:
        return len(self.scores)


def no_boxes(dims: int) -> Boxes:
    """Return an empty `Boxes`."""
    return Boxes(torch.zeros((0, 2 * dims)), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


class _View(NamedTuple):
    """The boxes `[n, 2·dims]` of a finished view, with the score, label and reading of each."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    readings: Tensor


class BoxCollector:
    """A collector of the boxes of all tiles, mirrored views and ensemble members.

    A reading is the output of one network for the whole volume or its mirror image. A view is the
    output for one tile. Within a view, NMS keeps one box per lesion, and boxes that are empty or
    not finite are dropped. If an edge of the tile inside the volume cuts a box, its score is
    multiplied by the tile weight at its centre, because a neighbouring tile contains the whole
    lesion. `finish` merges the boxes of all views by NMS. The score of a merged box is a mean over
    all readings: each reading counts with its highest score in this place, or with 0 if it has no
    box there.

    Args:
        grid: The tiles of the volume.
        plan: Plan of the networks.
        n_readings: Number of readings. Each of them reads all tiles that are read.
    """

    def __init__(self, grid: TileGrid, plan: Plan, n_readings: int = 1) -> None:
        self.grid = grid
        self.plan = plan
        self.n_readings = n_readings
        self._anchors = grid_anchors(plan.anchor_levels)
        self._weight = gaussian_weight(plan.tile_shape)
        # The first view is empty, so that `finish` can concatenate the views if there are none.
        none = torch.zeros(0)
        self._views = [_View(torch.zeros((0, 2 * plan.dims)), none, none.long(), none.long())]
        # Tile, mirrored axes, reading and packed boxes of views that are still on their way from
        # the GPU.
        self._waiting: list[tuple[int, Sequence[int], int, Tensor]] = []
        self.n_left_out = 0  # see `Boxes.n_left_out`

    def add(
        self,
        output: DetectorOutput,
        tiles: Sequence[int],
        flipped: Sequence[int],
        reading: int = 0,
    ) -> None:
        """Add the boxes of the `MAX_ANCHORS` highest scores of each tile in a batch.

        An anchor has a score for each label, and each counts. The boxes stay on the device until
        `gather`.

        Args:
            output: The network's output. It may have more rows than `tiles`; these are ignored.
            tiles: The numbers of the tiles in the grid.
            flipped: The spatial axes along which the tiles were mirrored.
            reading: The number of the reading, below `n_readings`.
        """
        n = len(tiles)
        probabilities = box_scores(output.class_logits[:n].float(), self.plan)  # [n, anchors, K]
        flat = probabilities.flatten(1)
        is_nan = flat.isnan().any(1)  # reported by `gather`, because reading it waits for a GPU
        flat = flat.nan_to_num(nan=0.0)  # topk treats NaN as the highest
        # anchors below one of the floors are many and not worth a warning
        n_above = (flat >= max(self.plan.box_floor, self.plan.candidate_rule.floor)).sum(1)
        scores, index = flat.topk(min(MAX_ANCHORS, flat.shape[1]), dim=1)
        self._anchors = self._anchors.to(scores.device)
        anchor = index // probabilities.shape[-1]
        per_box = anchor[..., None].expand(-1, -1, 2 * self.plan.dims)
        deltas = output.box_deltas[:n].float().gather(1, per_box)
        boxes = decode_boxes(deltas, self._anchors[anchor])
        # one table needs only one synchronisation with a GPU; float64 represents indices exactly
        of_tile = torch.stack([n_above, is_nan.long()], dim=-1)[:, None].expand(
            -1, len(index[0]), -1
        )
        columns = torch.cat([scores.double()[..., None], index[..., None], of_tile], dim=-1)
        table = torch.cat([boxes.double(), columns], dim=-1)  # `_view` describes the columns
        for tile, rows in zip(tiles, table, strict=True):
            self._waiting.append((tile, flipped, reading, rows))

    def forget_waiting(self) -> None:
        """Drop the boxes of all batches since the last call of `gather`."""
        self._waiting = []

    def gather(self) -> None:
        """Copy the boxes of all batches since the last call to the CPU at once.

        Raises:
            ContentError: If a score is NaN.
        """
        if not self._waiting:
            return
        tables = torch.stack([rows for *_, rows in self._waiting]).cpu()
        for (tile, flipped, reading, _), rows in zip(self._waiting, tables, strict=True):
            self._views.append(self._view(rows, tile, flipped, reading))
        self._waiting = []

    def _view(self, rows: Tensor, tile: int, flipped: Sequence[int], reading: int) -> _View:
        """Return the boxes of a view in voxels of the padded volume, and count those left out.

        Boxes below the plan's floor, degenerate boxes and all but one of each lesion are dropped.
        Raise `ContentError` if a score is NaN. `rows` is `[k, 2·dims + 4]`: boxes in the tile,
        scores, flat indices of anchor and label. The last two columns are equal in all rows: the
        number of anchors above the floor, and 1 if a score of the tile is NaN.
        """
        n_coordinates = 2 * self.plan.dims
        boxes = rows[:, :n_coordinates]
        scores = rows[:, n_coordinates]
        index = rows[:, n_coordinates + 1]
        if len(rows):
            self.n_left_out += max(int(rows[0, n_coordinates + 2]) - len(rows), 0)
            if rows[0, n_coordinates + 3]:
                raise ContentError("The scores of boxes contain NaN. Try inference.precision=fp32.")
        kept = (scores.float() >= self.plan.box_floor).nonzero()[:, 0]
        # by descending score, and equal scores by index, because topk has no order of ties
        kept = kept[index[kept].argsort()]
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        kept = kept[~is_degenerate(boxes[kept].float())]
        boxes = boxes[kept].float()
        scores = scores[kept].float()
        labels = index[kept].long() % len(self.plan.labels.lesion_names) + 1
        best = batched_nms(boxes, scores, labels, SAME_LESION_IN_A_TILE)
        boxes = flip_back(boxes[best], flipped, self.plan.tile_shape)
        scores = scores[best] * self._edge_weights(boxes, tile)
        return _View(
            boxes=boxes + torch.tensor(self.grid.starts[tile], dtype=torch.float32).repeat(2),
            scores=scores,
            labels=labels[best],
            readings=torch.full_like(labels[best], reading),
        )

    def _edge_weights(self, boxes: Tensor, tile: int) -> Tensor:
        """Return the factors `[n]` of the scores of boxes `[n, 2·dims]` in a tile.

        It is the tile weight at the centre of a box that reaches the outermost voxel of the tile,
        unless the edge is that of the volume. For other boxes it is 1.
        """
        shape = torch.tensor(self._weight.shape)
        centres, _ = split_box(boxes)
        weight = self._weight[centres.floor().long().clamp(min=0).minimum(shape - 1).unbind(-1)]
        start = torch.tensor(self.grid.starts[tile], dtype=torch.float32)
        end = torch.tensor(self.grid.padded_shape)
        low, high = boxes.chunk(2, dim=-1)
        is_cut_at_start = (low < 1) & (start > 0)
        is_cut_at_end = (high > shape - 1) & (start + shape < end)
        is_cut = (is_cut_at_start | is_cut_at_end).any(-1)
        return torch.where(is_cut, weight, torch.ones_like(weight))

    def finish(self) -> Boxes:
        """Merge the boxes of all views, and clip them to the volume without its padding.

        Boxes in the padding, and those whose final score is below the plan's floor, are dropped.
        Raise `ContentError` if a score is NaN.
        """
        self.gather()
        found = _View(*(torch.cat(parts) for parts in zip(*self._views, strict=True)))
        best, merged_scores = self._merge(found)
        padding = torch.tensor([before for before, _ in self.grid.pad], dtype=torch.float32)
        highest = torch.tensor(self.grid.shape, dtype=torch.float32).repeat(2)
        inside = (found.boxes[best] - padding.repeat(2)).clamp(min=0).minimum(highest)
        # a box within the padding is empty now, and edge weights and means have lowered some scores
        is_kept = ~is_degenerate(inside) & (merged_scores >= self.plan.box_floor)
        kept = torch.nonzero(is_kept)[:, 0]
        return Boxes(inside[kept], merged_scores[kept], found.labels[best][kept], self.n_left_out)

    def _merge(self, found: _View) -> tuple[Tensor, Tensor]:
        """Return the indices of the merged boxes and their scores, by descending score.

        The number of boxes that are not merged is added to `n_left_out`. These boxes do not count
        in the means. A box cannot be dropped because of one with a lower score. So the merged boxes
        of the highest scores are the first of all merged boxes, and those after the limit of
        candidates are not needed.
        """
        merge_iou = planned_anchors(self.plan).merge_iou
        boxes, scores, labels, readings = found
        order = scores.argsort(descending=True, stable=True)
        limit = self.plan.candidate_rule.candidate_limit
        n = MERGED_AT_FIRST
        while True:
            highest = order[:n]
            keeper = cluster_boxes(boxes[highest], scores[highest], labels[highest], merge_iou)
            merged = torch.nonzero(keeper == torch.arange(len(keeper)))[:, 0]
            if n >= len(order) or len(merged) >= limit:
                break
            n *= 4
        self.n_left_out += len(order) - len(highest)
        means = _mean_over_readings(scores[highest], keeper, readings[highest], self.n_readings)
        merged = merged[means[merged].argsort(descending=True, stable=True)]
        return highest[merged], means[merged]


def _mean_over_readings(
    scores: Tensor, keeper: Tensor, readings: Tensor, n_readings: int
) -> Tensor:
    """Return for each kept box the mean over all readings of the highest score of its cluster.

    Args:
        scores: Scores of all boxes `[n]`.
        keeper: Index of the kept box of each box's cluster `[n]`.
        readings: The reading of each box `[n]`.
        n_readings: Number of readings. One without a box in a cluster counts as 0.

    Returns:
        Means `[n]`; 0 for boxes that are not kept.
    """
    highest = torch.zeros(len(scores), n_readings)
    highest.view(-1).scatter_reduce_(0, keeper * n_readings + readings, scores, "amax")
    return highest.mean(dim=1)


def flip_back(boxes: Tensor, flipped: Sequence[int], tile_shape: Sequence[int]) -> Tensor:
    """Mirror boxes `[n, 2·dims]` of a tile that was mirrored along the axes `flipped`.

    >>> flip_back(torch.tensor([[1.0, 0.0, 3.0, 2.0]]), [0], (10, 10)).tolist()
    [[7.0, 0.0, 9.0, 2.0]]
    """
    start, stop = (part.clone() for part in boxes.chunk(2, dim=-1))
    for axis in flipped:
        n = tile_shape[axis]
        new_start = n - stop[:, axis]
        stop[:, axis] = n - start[:, axis]
        start[:, axis] = new_start
    return torch.cat([start, stop], dim=-1)


def restore_boxes(
    boxes: NDArray[np.float32], plan_geometry: Geometry, file_geometry: Geometry
) -> NDArray[np.float32]:
    """Convert boxes `[n, 2·dims]` on the plan's grid to the file's grid, clipped to it."""
    shifted = move_boxes(boxes, plan_geometry, file_geometry)
    return shifted.clip(0, np.array(2 * file_geometry.shape, float)).astype(np.float32)


def box_candidates(
    detections: Boxes,
    plan_geometry: Geometry,
    file_geometry: Geometry,
    label_values: Sequence[int],
) -> tuple[Candidate, ...]:
    """Return a detector's boxes as candidates without masks, by descending score, ids from 1.

    The diameter is that of the ellipsoid (2-D: ellipse) inscribed in the box. Boxes outside the
    file's grid, or with sides of less than half a voxel (geometric mean), are left out.
    """
    boxes = restore_boxes(detections.boxes.numpy(), plan_geometry, file_geometry)
    scores = detections.scores.clamp(0, 1)
    rows = zip(boxes.tolist(), scores.tolist(), detections.labels.tolist(), strict=True)
    min_volume = 0.5**file_geometry.dims
    large = []
    for box, score, label in rows:
        # the id is a placeholder until all candidates are numbered
        candidate = Candidate.from_box(1, label_values[label - 1], score, box, file_geometry)
        if prod(np.subtract(candidate.stop_vox, candidate.start_vox).tolist()) >= min_volume:
            large.append(candidate)
    return _number_candidates(large)


def fuse(voxels: Prediction, boxes: Sequence[Candidate]) -> Prediction:
    """Fuse the candidates from voxels and from boxes into one list, by descending new score.

    A candidate from voxels and a box of the same label are one lesion if the IoU of their boxes is
    at least 0.1. Each is used once, the largest IoU first. The fused candidate has the voxels' mask
    and the mean of both scores. A candidate of only one head has half its score, which is the mean
    with 0, as in an ensemble. Ids follow the new scores. Removed objects have half their score too.
    """
    partner = _partners(voxels.candidates, boxes)
    scored = [
        (candidate, (candidate.score + (boxes[partner[i]].score if i in partner else 0.0)) / 2)
        for i, candidate in enumerate(voxels.candidates)
    ]
    fused_boxes = set(partner.values())
    scored += [(box, box.score / 2) for j, box in enumerate(boxes) if j not in fused_boxes]
    scored.sort(key=lambda pair: -pair[1])  # stable: at ties, candidates from voxels come first
    new_id_of = np.zeros(len(voxels.candidates) + 1, np.int32)  # by old id; 0 is background
    for number, (candidate, _) in enumerate(scored, start=1):
        if candidate.has_mask:
            new_id_of[candidate.id] = number
    candidates = _number_candidates(
        [replace(candidate, score=score) for candidate, score in scored]
    )
    removed = tuple(replace(c, score=c.score / 2) for c in voxels.removed)
    instances = None if voxels.instances is None else new_id_of[voxels.instances]
    return replace(voxels, candidates=candidates, instances=instances, removed=removed)


def _number_candidates(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates with the ids 1, 2, 3, … in their order."""
    return tuple(replace(c, id=i) for i, c in enumerate(candidates, start=1))


def _partners(from_voxels: Sequence[Candidate], from_boxes: Sequence[Candidate]) -> dict[int, int]:
    """Pair candidates from voxels with those from boxes, of the same label, the best pair first.

    The IoU of their boxes must be at least `SAME_LESION`. Return the index of the box for the index
    of each candidate that has a partner. Ties go to the first candidate, then to the first box.
    """
    if not from_voxels or not from_boxes:
        return {}
    voxel_boxes = torch.tensor([[*c.start_vox, *c.stop_vox] for c in from_voxels])
    other_boxes = torch.tensor([[*c.start_vox, *c.stop_vox] for c in from_boxes])
    voxel_labels = np.array([c.label for c in from_voxels])
    other_labels = np.array([c.label for c in from_boxes])
    rows, columns, ious = overlapping_pairs(voxel_boxes, voxel_labels, other_boxes, other_labels)
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for pair in np.lexsort((columns, rows, -ious)):
        i = int(rows[pair])
        j = int(columns[pair])
        if ious[pair] >= SAME_LESION and i not in partner and j not in taken:
            partner[i] = j
            taken.add(j)
    return partner
