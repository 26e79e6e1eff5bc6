"""A detector's boxes as candidates: maximum, merging of tiles, fusion with voxel candidates.

They are restored to the file's grid. `ops.suppression` has the algorithm of merging.

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
    """Return a `Boxes` without boxes, for a scan that the detector does not process.

    Args:
        dims: Number of spatial axes.
    """
    return Boxes(
        boxes=torch.zeros((0, 2 * dims)),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
    )


class _View(NamedTuple):
    """The boxes of one view (`BoxCollector`), or of all views concatenated.

    `boxes` is `[n, 2·dims]` in voxels. `scores`, `labels` (from 1) and `readings` are `[n]`.
    `readings` is the number of the reading that predicted the box.
    """

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
        self._tile_weight = gaussian_weight(plan.tile_shape)
        # The first view is empty, so that `finish` can concatenate the views if there are none.
        self._views = [
            _View(
                boxes=torch.zeros((0, 2 * plan.dims)),
                scores=torch.zeros(0),
                labels=torch.zeros(0).long(),
                readings=torch.zeros(0).long(),
            )
        ]
        # Tile, mirrored axes, reading and packed boxes of views that are still on their way from
        # the GPU.
        self._waiting_tiles: list[tuple[int, Sequence[int], int, Tensor]] = []
        self.n_left_out = 0  # see `Boxes.n_left_out`

    def add(
        self,
        output: DetectorOutput,
        tiles: Sequence[int],
        flipped: Sequence[int],
        reading: int = 0,
    ) -> None:
        """Add the boxes of a batch of tiles: for each tile, the `MAX_ANCHORS` boxes of top score.

        An anchor has one score per label, so it can give several boxes. The boxes stay on the
        device until `gather` copies them to the CPU.

        Args:
            output: The network's output. Rows after the first `len(tiles)` rows fill the batch and
                are ignored.
            tiles: The numbers of the tiles in the grid.
            flipped: The spatial axes along which the tiles were mirrored.
            reading: The number of the reading, below `n_readings`.
        """
        n = len(tiles)
        probabilities = box_scores(output.class_logits[:n].float(), self.plan)  # [n, anchors, K]
        flat = probabilities.flatten(1)
        has_nan = flat.isnan().any(1)  # reported by `gather`, because reading it waits for a GPU
        flat = flat.nan_to_num(nan=0.0)  # topk treats NaN as the highest
        # left-out scores are reported only if they reach both floors, because many do not
        n_above = (flat >= max(self.plan.box_floor, self.plan.candidate_rule.floor)).sum(1)
        scores, flat_index = flat.topk(min(MAX_ANCHORS, flat.shape[1]), dim=1)
        self._anchors = self._anchors.to(scores.device)
        anchor = flat_index // probabilities.shape[-1]  # flat index = anchor · K + label
        anchor_of_delta = anchor[..., None].expand(-1, -1, 2 * self.plan.dims)
        deltas = output.box_deltas[:n].float().gather(1, anchor_of_delta)
        boxes = decode_boxes(deltas, self._anchors[anchor])
        # one table needs only one synchronisation with a GPU; float64 represents indices exactly
        tile_columns = torch.stack([n_above, has_nan.long()], dim=-1)[:, None].expand(
            -1, len(flat_index[0]), -1
        )
        # columns of `table`: box, score, flat index of anchor and label, n_above, has_nan
        columns = torch.cat(
            [scores.double()[..., None], flat_index[..., None], tile_columns], dim=-1
        )
        table = torch.cat([boxes.double(), columns], dim=-1)  # `_to_view` describes the columns
        for tile, rows in zip(tiles, table, strict=True):
            self._waiting_tiles.append((tile, flipped, reading, rows))

    def forget_waiting(self) -> None:
        """Drop the boxes that were added since the last call of `gather`.

        Called if a batch ran out of memory, because its tiles are predicted again.
        """
        self._waiting_tiles = []

    def gather(self) -> None:
        """Copy the boxes that were added since the last call of `gather` to the CPU, and apply NMS.

        All boxes are copied at once, because each copy waits for the GPU.

        Raises:
            ContentError: If a score is NaN.
        """
        if not self._waiting_tiles:
            return
        tables = torch.stack([rows for *_, rows in self._waiting_tiles]).cpu()
        for (tile, flipped, reading, _), rows in zip(self._waiting_tiles, tables, strict=True):
            self._views.append(self._to_view(rows, tile, flipped, reading))
        self._waiting_tiles = []

    def _to_view(self, rows: Tensor, tile: int, flipped: Sequence[int], reading: int) -> _View:
        """Convert the table of one tile's boxes to a `_View` in voxels of the padded volume.

        Boxes with a score below the plan's `box_floor`, degenerate boxes and boxes that NMS
        suppresses are dropped. The skipped anchors are added to `n_left_out`.

        Args:
            rows: Table `[k, 2·dims + 4]`. Its columns are the box in voxels of the tile, the score,
                the flat index of anchor and label, the number of the tile's scores above the
                floors, and 1 if a score of the tile is NaN. The last two columns are equal in all
                rows.
            tile: The number of the tile in the grid.
            flipped: The spatial axes along which the tile was mirrored.
            reading: The number of the reading.

        Raises:
            ContentError: If a score of the tile is NaN.
        """
        n_coordinates = 2 * self.plan.dims
        boxes = rows[:, :n_coordinates]
        scores = rows[:, n_coordinates]
        flat_index = rows[:, n_coordinates + 1]
        if len(rows):
            self.n_left_out += max(int(rows[0, n_coordinates + 2]) - len(rows), 0)
            if rows[0, n_coordinates + 3]:
                raise ContentError("The scores of boxes contain NaN. Try inference.precision=fp32.")
        chosen = (scores.float() >= self.plan.box_floor).nonzero()[:, 0]
        # by descending score, and equal scores by index, because topk has no order of ties
        chosen = chosen[flat_index[chosen].argsort()]
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)]
        chosen = chosen[~is_degenerate(boxes[chosen].float())]
        boxes = boxes[chosen].float()
        scores = scores[chosen].float()
        # flat index = anchor · K + label, and labels are numbered from 1
        labels = flat_index[chosen].long() % len(self.plan.labels.lesion_names) + 1
        # drop the boxes that overlap one of a higher score, and move the others to the volume
        survivors = batched_nms(boxes, scores, labels, SAME_LESION_IN_A_TILE)
        boxes = flip_back(boxes[survivors], flipped, self.plan.tile_shape)
        scores = scores[survivors] * self._edge_weights(boxes, tile)
        return _View(
            boxes=boxes + torch.tensor(self.grid.starts[tile], dtype=torch.float32).repeat(2),
            scores=scores,
            labels=labels[survivors],
            readings=torch.full_like(labels[survivors], reading),
        )

    def _edge_weights(self, boxes: Tensor, tile: int) -> Tensor:
        """Return a factor `[n]` for the score of each box `[n, 2·dims]` of a tile.

        The factor lowers the score of a box that an edge of the tile cuts, because a neighbouring
        tile contains the entire lesion. A box is cut if it reaches the outermost voxel of the tile
        and the volume continues there. Its factor is the tile weight at its centre. The factor of
        other boxes is 1.
        """
        shape = torch.tensor(self._tile_weight.shape)
        centres, _ = split_box(boxes)
        weight = self._tile_weight[
            centres.floor().long().clamp(min=0).minimum(shape - 1).unbind(-1)
        ]
        start = torch.tensor(self.grid.starts[tile], dtype=torch.float32)
        end = torch.tensor(self.grid.padded_shape)
        low, high = boxes.chunk(2, dim=-1)
        is_cut_at_start = (low < 1) & (start > 0)
        is_cut_at_end = (high > shape - 1) & (start + shape < end)
        is_cut = (is_cut_at_start | is_cut_at_end).any(-1)
        return torch.where(is_cut, weight, torch.ones_like(weight))

    def finish(self) -> Boxes:
        """Merge the boxes of all views, and clip merged boxes to the volume without its padding.

        Called once after the last tile. Merged boxes that are entirely in the padding, or whose
        mean score is below the plan's `box_floor`, are dropped. Raise `ContentError` if a score is
        NaN.
        """
        self.gather()
        # one `_View` with the concatenated boxes, scores, labels and readings of all views
        views = _View(*(torch.cat(parts) for parts in zip(*self._views, strict=True)))
        merged, merged_scores = self._merge(views)
        padding = torch.tensor([before for before, _ in self.grid.pad], dtype=torch.float32)
        upper_limit = torch.tensor(self.grid.shape, dtype=torch.float32).repeat(2)
        clipped = (views.boxes[merged] - padding.repeat(2)).clamp(min=0).minimum(upper_limit)
        # a box within the padding is empty now, and edge weights and means have lowered some scores
        remains = ~is_degenerate(clipped) & (merged_scores >= self.plan.box_floor)
        remaining = torch.nonzero(remains)[:, 0]
        return Boxes(
            boxes=clipped[remaining],
            scores=merged_scores[remaining],
            labels=views.labels[merged][remaining],
            n_left_out=self.n_left_out,
        )

    def _merge(self, views: _View) -> tuple[Tensor, Tensor]:
        """Merge overlapping boxes of all views by NMS, each into the box of the highest score.

        To save time, only the boxes of the highest scores are merged, until there are as many
        merged boxes as the plan allows candidates. A box is never suppressed by a box of a lower
        score, so boxes that are not processed could only add candidates beyond that limit. Their
        number is added to `n_left_out`, and they do not contribute to the mean scores.

        Returns:
            Indices into `views` of the boxes that NMS keeps, and their mean scores over the
            readings, by descending mean score.
        """
        merge_iou = planned_anchors(self.plan).merge_iou
        boxes, scores, labels, readings = views
        order = scores.argsort(descending=True, stable=True)
        limit = self.plan.candidate_rule.candidate_limit
        n = MERGED_AT_FIRST
        while True:
            highest = order[:n]
            # for each box, the position of the box into which it is merged, which may be itself
            keeper_of_box = cluster_boxes(
                boxes[highest], scores[highest], labels[highest], merge_iou
            )
            merged = torch.nonzero(keeper_of_box == torch.arange(len(keeper_of_box)))[:, 0]
            if n >= len(order) or len(merged) >= limit:
                break
            n *= 4  # too few merged boxes: try again with more
        self.n_left_out += len(order) - len(highest)
        means = _mean_over_readings(
            scores[highest], keeper_of_box, readings[highest], self.n_readings
        )
        merged = merged[means[merged].argsort(descending=True, stable=True)]
        return highest[merged], means[merged]


def _mean_over_readings(
    scores: Tensor, keeper_of_box: Tensor, readings: Tensor, n_readings: int
) -> Tensor:
    """Compute the score of each cluster of overlapping boxes: the mean over all readings.

    Each reading contributes the highest score of its boxes in the cluster, or 0 if it has no box
    in the cluster.

    Args:
        scores: Scores of all boxes `[n]`.
        keeper_of_box: For each box, the index of the box that represents its cluster `[n]`.
        readings: The number of the reading of each box `[n]`.
        n_readings: Number of readings.

    Returns:
        Means `[n]`, each at the index of the box that represents the cluster. The elements of all
        other boxes are 0.
    """
    # a table [n, n_readings] that is filled by flat index
    highest = torch.zeros(len(scores), n_readings)
    highest.view(-1).scatter_reduce_(0, keeper_of_box * n_readings + readings, scores, "amax")
    return highest.mean(dim=1)


def flip_back(boxes: Tensor, flipped: Sequence[int], tile_shape: Sequence[int]) -> Tensor:
    """Mirror the boxes `[n, 2·dims]` of a mirrored tile back to the original tile.

    Args:
        boxes: Boxes in voxels of the mirrored tile, starts then stops.
        flipped: The spatial axes along which the tile was mirrored.
        tile_shape: Shape of the tile.

    >>> flip_back(torch.tensor([[1.0, 0.0, 3.0, 2.0]]), [0], (10, 10)).tolist()
    [[7.0, 0.0, 9.0, 2.0]]
    """
    # clone, because chunks share the memory of `boxes`
    start, stop = (corner.clone() for corner in boxes.chunk(2, dim=-1))
    for axis in flipped:
        n = tile_shape[axis]
        new_start = n - stop[:, axis]
        stop[:, axis] = n - start[:, axis]
        start[:, axis] = new_start
    return torch.cat([start, stop], dim=-1)


def restore_boxes(
    boxes: NDArray[np.float32], plan_geometry: Geometry, file_geometry: Geometry
) -> NDArray[np.float32]:
    """Convert boxes `[n, 2·dims]` from voxels of the plan's grid to voxels of the file's grid.

    The converted boxes are clipped to the file's grid.
    """
    file_boxes = move_boxes(boxes, plan_geometry, file_geometry)
    upper_limits = np.array(2 * file_geometry.shape, float)  # of starts, then of stops
    return file_boxes.clip(0, upper_limits).astype(np.float32)


def box_candidates(
    detections: Boxes,
    plan_geometry: Geometry,
    file_geometry: Geometry,
    label_values: Sequence[int],
) -> tuple[Candidate, ...]:
    """Convert the boxes of a detector to candidates without masks, with the ids 1, 2, 3, ….

    The diameter of a candidate is the diameter of the ellipsoid (2-D: ellipse) inscribed in the
    box. Boxes outside the file's grid are left out, and boxes whose geometric mean side is shorter
    than half a voxel.

    Args:
        detections: Boxes on the plan's grid, by descending score.
        plan_geometry: The plan's grid.
        file_geometry: The grid of the scan's file, which the candidates get.
        label_values: The mask value of each label of the plan.

    Returns:
        The candidates by descending score.
    """
    boxes = restore_boxes(detections.boxes.numpy(), plan_geometry, file_geometry)
    scores = detections.scores.clamp(0, 1)
    rows = zip(boxes.tolist(), scores.tolist(), detections.labels.tolist(), strict=True)
    min_volume = 0.5**file_geometry.dims  # in voxels, for a mean side of half a voxel
    large = []
    for box, score, label in rows:
        # the id is a placeholder until all candidates are numbered
        candidate = Candidate.from_box(
            id=1,
            label=label_values[label - 1],  # labels are numbered from 1
            score=score,
            box=box,
            geometry=file_geometry,
        )
        if prod(np.subtract(candidate.stop_vox, candidate.start_vox).tolist()) >= min_volume:
            large.append(candidate)
    return _number_candidates(large)


def fuse(voxels: Prediction, boxes: Sequence[Candidate]) -> Prediction:
    """Fuse the candidates from voxels and from boxes into one list, by descending new score.

    - A candidate from voxels and a detector's box of the same label are fused if the IoU of their
      boxes is at least 0.1 (`_partners`). The fused candidate has the mask of the voxels and the
      mean of the two scores.
    - A candidate without such a partner gets half its score, because the other head counts as 0.
      The removed objects of `voxels` get half their score, too.
    - Ids are renumbered from 1 by descending new score, also in `instances`.
    """
    partner_of = _partners(voxels.candidates, boxes)
    scored = [
        (
            candidate,
            (candidate.score + (boxes[partner_of[i]].score if i in partner_of else 0.0)) / 2,
        )
        for i, candidate in enumerate(voxels.candidates)
    ]
    fused_boxes = set(partner_of.values())
    scored += [(box, box.score / 2) for j, box in enumerate(boxes) if j not in fused_boxes]
    scored.sort(key=lambda pair: -pair[1])  # stable: at ties, candidates from voxels come first
    new_id_of = np.zeros(len(voxels.candidates) + 1, np.int32)  # by old id; 0 is background
    for number, (candidate, _) in enumerate(scored, start=1):
        if candidate.has_mask:  # boxes have no voxels in `instances`
            new_id_of[candidate.id] = number
    candidates = _number_candidates(
        [replace(candidate, score=score) for candidate, score in scored]
    )
    removed = tuple(replace(c, score=c.score / 2) for c in voxels.removed)
    instances = None if voxels.instances is None else new_id_of[voxels.instances]
    return replace(voxels, candidates=candidates, instances=instances, removed=removed)


def _number_candidates(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return copies of the candidates with the ids 1, 2, 3, … in the order of `candidates`."""
    return tuple(replace(c, id=i) for i, c in enumerate(candidates, start=1))


def _partners(from_voxels: Sequence[Candidate], from_boxes: Sequence[Candidate]) -> dict[int, int]:
    """Pair candidates from voxels with candidates from boxes that are the same lesion.

    A pair has the same label, and an IoU of the bounding boxes of at least `SAME_LESION`. Pairs are
    made greedily by descending IoU, and each candidate is in at most one pair. Equal IoUs are
    ordered by the index of the candidate from voxels, then by the index of the box.

    Returns:
        A dict from indices of `from_voxels` to indices of `from_boxes`. Candidates without a
        partner are not in it.
    """
    if not from_voxels or not from_boxes:
        return {}
    voxel_boxes = torch.tensor([[*c.start_vox, *c.stop_vox] for c in from_voxels])
    other_boxes = torch.tensor([[*c.start_vox, *c.stop_vox] for c in from_boxes])
    voxel_labels = np.array([c.label for c in from_voxels])
    other_labels = np.array([c.label for c in from_boxes])
    rows, columns, ious = overlapping_pairs(voxel_boxes, voxel_labels, other_boxes, other_labels)
    partner_of: dict[int, int] = {}
    paired_boxes: set[int] = set()
    for pair in np.lexsort((columns, rows, -ious)):  # the last key is the first criterion
        i = int(rows[pair])
        j = int(columns[pair])
        if ious[pair] >= SAME_LESION and i not in partner_of and j not in paired_boxes:
            partner_of[i] = j
            paired_boxes.add(j)
    return partner_of
