"""What a detector is taught: which anchors find which lesion, and the voxels where it has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from lesionseg.config import TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.losses import AnchorTargets, DetectionLoss, make_loss, mask_unannotated
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops.anchors import (
    BACKGROUND,
    IGNORED,
    AnchorLevel,
    assign_atss,
    grid_anchors,
)
from lesionseg.ops.boxes import lesion_table, split_box
from lesionseg.plan.plan import Plan
from lesionseg.training.objective import (
    LevelTargets,
    Objective,
    Terms,
    VoxelObjective,
    VoxelTargets,
)

_POSITIVES_A_TILE = 4.0  # what a lesion of a few voxels gets by ATSS


@dataclass(frozen=True, eq=False)
class DetectionTargets:
    """The targets of all anchors, tile by tile, and of the voxels where the network has them.

    `labels`, `instances` (lesion ids, 0 for background) and `valid`: `[B, n]`; `rows` `[B, n]`
    int64: which of the tile's `boxes` `[B, m, 2·dims]` a positive anchor is to find.
    """

    labels: Tensor
    instances: Tensor
    valid: Tensor
    rows: Tensor
    boxes: Tensor
    voxels: VoxelTargets | None

    def counts(self) -> Tensor:
        """Positive anchors, then lesion voxels of each level."""
        anchors = (self.labels > 0).sum(dtype=torch.float32)[None]
        return torch.cat([anchors, self.voxels.counts()]) if self.voxels else anchors

    def anchors(self) -> AnchorTargets:
        """The targets as the loss takes them."""
        n_anchors = self.labels.shape[1]
        place = (self.labels > 0).flatten().nonzero()[:, 0]
        row = self.rows.flatten()[place].clamp(min=0)
        boxes = self.boxes[place // max(n_anchors, 1), row]
        return AnchorTargets(self.labels, self.valid, boxes)


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
        self.takes_nearest = voxels is not None and voxels.takes_nearest

    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """A few positive anchors a tile, then what the voxels expect."""
        voxels = self.voxels.expected(n_tiles) if self.voxels else ()
        return (_POSITIVES_A_TILE * n_tiles, *voxels)

    def targets(self, batch: Mapping[str, Tensor]) -> DetectionTargets:
        """Assign every tile's lesions to its anchors."""
        levels, anchors = self._grid(tuple(batch["labels"].shape[1:]), batch["labels"].device)
        finest = LevelTargets.of(batch)
        labels = finest.labels.sign() if self.plan.regions else finest.labels  # one lesion, one box
        table = lesion_table(finest.instances, labels)
        assigned = torch.stack([assign_atss(levels, anchors, boxes) for boxes in table.boxes])
        hidden = ~_at_centres(finest.valid, anchors)
        assigned = torch.where(hidden & (assigned == BACKGROUND), IGNORED, assigned)
        row, is_positive = assigned.clamp(min=0), assigned >= 0
        return DetectionTargets(
            labels=torch.where(is_positive, table.labels.gather(1, row), 0),
            instances=torch.where(is_positive, table.ids.gather(1, row), 0),
            valid=assigned != IGNORED,
            rows=assigned,
            boxes=table.boxes,
            voxels=self.voxels.targets(batch) if self.voxels else None,
        )

    def terms(
        self, output: DetectorOutput, targets: DetectionTargets, normalisers: Tensor
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

    def known(self, output: DetectorOutput, unannotated: Tensor) -> DetectorOutput:
        """The anchors' scores, which are independent, and the voxels."""
        scores = mask_unannotated(output.class_logits.transpose(1, 2), unannotated, "sigmoid")
        levels = output.segmentation
        if self.voxels is not None:
            levels = tuple(self.voxels.known(levels, unannotated))
        return replace(output, class_logits=scores.transpose(1, 2), segmentation=levels)

    def observed(
        self, output: DetectorOutput, targets: DetectionTargets
    ) -> tuple[Tensor, int, LevelTargets]:
        """The finest voxels, or the anchors as if they were voxels in a row."""
        if self.voxels is not None and targets.voxels is not None:
            return self.voxels.observed(output.segmentation, targets.voxels)
        return (
            output.class_logits,
            2,
            LevelTargets(targets.labels, targets.instances, targets.valid),
        )

    def _grid(
        self, shape: Sequence[int], device: torch.device
    ) -> tuple[tuple[AnchorLevel, ...], Tensor]:
        levels = planned_anchors(self.plan).levels(self.plan.architecture.strides, shape)
        return levels, _anchors(levels, device)


def _at_centres(valid: Tensor, anchors: Tensor) -> Tensor:
    """Whether the voxel at each anchor's centre is valid, `[B, n]` of tiles `[B, *tile]`."""
    centres = split_box(anchors)[0].floor().long().unbind(1)
    places = torch.zeros_like(centres[0])
    for centre, n in zip(centres, valid.shape[1:], strict=True):
        places = places * n + centre.clamp(0, n - 1)
    return valid.flatten(1)[:, places]


@lru_cache(maxsize=4)
def _anchors(levels: tuple[AnchorLevel, ...], device: torch.device) -> Tensor:
    return grid_anchors(levels, device=device)


def taught_anchors(plan: Plan, loss: DetectionLoss) -> Plan:
    """The plan with what inference must undo of the anchors' loss."""
    alpha, gamma = loss.link or (None, None)
    alpha = tuple(alpha) if isinstance(alpha, Sequence) else alpha
    return plan.with_(anchors=replace(planned_anchors(plan), alpha=alpha, gamma=gamma))


def make_objective(plan: Plan, cfg: TrainConfig, loss: nn.Module | None = None) -> Objective:
    """What the plan's architecture is taught: voxels, anchors or both.

    `loss`: of voxels, in place of the configured one. Raises `ConfigError` where a loss for
    independent labels teaches a network of exclusive ones, or the reverse.
    """
    loss = loss or make_loss(cfg.loss, plan.activation)
    activation = getattr(loss, "activation", plan.activation)
    if activation != plan.activation:
        raise ConfigError(
            f"The network's logits are for {plan.activation}, the loss is for {activation}. Set "
            f"model.activation={activation}, or +loss.activation={plan.activation}."
        )
    voxels = VoxelObjective(loss, plan)
    if not plan.has_boxes:
        return voxels
    detection = DetectionLoss(**cfg.detection.plain())
    return DetectionObjective(detection, plan, voxels if plan.has_voxels else None)
