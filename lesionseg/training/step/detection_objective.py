"""What a detector is taught: which anchors find which lesion, and the voxels where it has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from lesionseg.data.targets import LesionTargets, lesion_targets
from lesionseg.losses.detection_loss import AnchorTargets, DetectionLoss
from lesionseg.losses.gradient_balance import FocalTerm
from lesionseg.models.detector_output import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops.anchors import AnchorLevel, grid_anchors
from lesionseg.ops.assign import BACKGROUND, IGNORED, Assigner
from lesionseg.ops.boxes import split_box
from lesionseg.plan.plan import Plan
from lesionseg.training.step.objective import (
    BatchTargets,
    Objective,
    Terms,
    VoxelObjective,
    VoxelTargets,
)
from lesionseg.training.step.supervision import LevelTargets

_POSITIVES_A_TILE = 4.0  # what a lesion of a few voxels gets by ATSS


@dataclass(frozen=True, eq=False)
class DetectionTargets(BatchTargets):
    """The targets of all anchors, tile by tile, and of the voxels where the network has them.

    `labels`, `instances` (lesion ids, 0 for background) and `valid`: `[B, n]`; `boxes`: each tile's
    own `[p, 2·dims]`, the lesions of its positive anchors in order.
    """

    labels: Tensor
    instances: Tensor
    valid: Tensor
    boxes: tuple[Tensor, ...]
    voxels: VoxelTargets | None

    def counts(self) -> list[Tensor]:
        """Positive anchors, then lesion voxels of each level."""
        anchors = (self.labels > 0).sum().float()
        return [anchors, *(self.voxels.counts() if self.voxels else ())]

    def split(self, size: int) -> "list[DetectionTargets]":
        """Part by part."""
        n = range(0, len(self.labels), size)
        voxels: Sequence[VoxelTargets | None] = (
            self.voxels.split(size) if self.voxels else [None] * len(n)
        )
        return [
            DetectionTargets(
                self.labels[i : i + size],
                self.instances[i : i + size],
                self.valid[i : i + size],
                self.boxes[i : i + size],
                part,
            )
            for i, part in zip(n, voxels, strict=True)
        ]

    def anchors(self) -> AnchorTargets:
        """The targets as the loss takes them."""
        return AnchorTargets(self.labels, self.valid, torch.cat(self.boxes))


class DetectionObjective(Objective):
    """Teaches a detector's anchors, and its voxels when `voxels` says how.

    Boxes follow from the tile's instances after augmentation. An anchor whose centre lies where the
    reference is to be ignored, or outside the volume, teaches nothing unless it is a lesion's.
    """

    def __init__(
        self,
        loss: DetectionLoss,
        plan: Plan,
        voxels: VoxelObjective | None,
    ) -> None:
        self.loss, self.plan, self.voxels = loss, plan, voxels

    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """A few positive anchors a tile, then what the voxels expect."""
        voxels = self.voxels.expected(n_tiles) if self.voxels else ()
        return (_POSITIVES_A_TILE * n_tiles, *voxels)

    def targets(self, batch: Mapping[str, Tensor]) -> DetectionTargets:
        """Assign every tile's lesions to its anchors."""
        levels, anchors = self._grid(tuple(batch["labels"].shape[1:]), batch["labels"].device)
        finest = LevelTargets.of(batch)
        labels = finest.labels.sign() if self.plan.regions else finest.labels  # one lesion, one box
        assign = self.loss.assigner
        rows = [
            _tile(assign, levels, anchors, *tile)
            for tile in zip(finest.instances, labels, finest.valid, strict=True)
        ]
        return DetectionTargets(
            labels=torch.stack([row.labels for row in rows]),
            instances=torch.stack([row.ids for row in rows]),
            valid=torch.stack([row.valid for row in rows]),
            boxes=tuple(row.boxes for row in rows),
            voxels=self.voxels.targets(batch) if self.voxels else None,
        )

    def terms(
        self, output: DetectorOutput, targets: DetectionTargets, normalisers: Sequence[Tensor]
    ) -> Terms:
        """The anchors' terms, and the voxels' by their own names; computed in fp32."""
        with torch.autocast(output.class_logits.device.type, enabled=False):
            _, anchors = self._grid(self.plan.tile_shape, output.class_logits.device)
            terms: Terms = self.loss(
                output.class_logits.float(),
                output.box_deltas.float(),
                anchors,
                targets.anchors(),
                normaliser=normalisers[0],
            )
        if self.voxels is None or targets.voxels is None:
            return terms
        return terms | self.voxels.terms(output.segmentation, targets.voxels, normalisers[1:])

    def shown(
        self, output: DetectorOutput, targets: DetectionTargets
    ) -> tuple[Tensor, LevelTargets]:
        """The finest voxels, or the anchors as if they were voxels in a row."""
        if self.voxels is not None and targets.voxels is not None:
            return self.voxels.shown(output.segmentation, targets.voxels)
        logits = output.class_logits.detach().transpose(1, 2)
        return logits, LevelTargets(targets.labels, targets.instances, targets.valid)

    def focal_terms(self) -> tuple[FocalTerm, ...]:
        """Those of the voxels' loss, or that of the anchors'."""
        if self.voxels is not None:
            return self.voxels.focal_terms()
        return () if self.loss.link is None else (FocalTerm(*self.loss.link, 1.0),)

    def _grid(
        self, shape: Sequence[int], device: torch.device
    ) -> tuple[tuple[AnchorLevel, ...], Tensor]:
        levels = planned_anchors(self.plan).levels(self.plan.architecture.strides, shape)
        return levels, _anchors(levels, device)


@dataclass(frozen=True, eq=False)
class _Tile:
    """One tile's targets: `[n]` each, and the boxes of its positive anchors."""

    labels: Tensor
    ids: Tensor
    valid: Tensor
    boxes: Tensor


def _tile(
    assign: Assigner,
    levels: Sequence[AnchorLevel],
    anchors: Tensor,
    instances: Tensor,
    labels: Tensor,
    valid: Tensor,
) -> _Tile:
    lesions = lesion_targets(instances, labels)
    assigned = assign(levels, anchors, lesions.boxes)
    if not bool(valid.all()):
        hidden = ~_at_centres(valid, anchors) & (assigned == BACKGROUND)
        assigned = torch.where(hidden, IGNORED, assigned)
    return _named(assigned, lesions)


def _named(assigned: Tensor, lesions: LesionTargets) -> _Tile:
    """What the numbers of an assignment stand for."""
    found = assigned >= 0
    lesion = assigned[found]
    blank = torch.zeros_like(assigned)
    return _Tile(
        labels=blank.masked_scatter(found, lesions.labels[lesion]),
        ids=blank.masked_scatter(found, lesions.ids[lesion]),
        valid=assigned != IGNORED,
        boxes=lesions.boxes[lesion],
    )


def _at_centres(valid: Tensor, anchors: Tensor) -> Tensor:
    """Whether the voxel at each anchor's centre `[n]` is valid."""
    limit = torch.tensor(valid.shape, device=valid.device) - 1
    centre = split_box(anchors)[0].floor().long().clamp(min=0).minimum(limit)
    found: Tensor = valid[centre.unbind(1)]
    return found


@lru_cache(maxsize=4)
def _anchors(levels: tuple[AnchorLevel, ...], device: torch.device) -> Tensor:
    return grid_anchors(levels, device=device)


def taught_anchors(plan: Plan, loss: DetectionLoss) -> Plan:
    """The plan with what inference must undo of the anchors' loss."""
    alpha, gamma = loss.link or (None, None)
    alpha = tuple(alpha) if isinstance(alpha, Sequence) else alpha
    return plan.with_(anchors=replace(planned_anchors(plan), alpha=alpha, gamma=gamma))


def make_objective(loss: nn.Module, detection: DetectionLoss, plan: Plan) -> Objective:
    """What the plan's architecture is taught: voxels, anchors or both."""
    voxels = VoxelObjective(loss, plan)
    if not plan.has_boxes:
        return voxels
    return DetectionObjective(detection, plan, voxels if plan.has_voxels else None)
