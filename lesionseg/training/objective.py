"""Targets of a batch, and the named terms of the loss of a network's output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from math import prod
from typing import Any, Self

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lesionseg.config import TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.losses import AnchorTargets, DetectionLoss, make_loss
from lesionseg.losses.base import count_positives, mask_unannotated, region_target
from lesionseg.plan.plan import Architecture, Plan, total_strides
from lesionseg.training.batch_targets import AnchorGrid, BatchTargets, anchor_targets

Terms = dict[str, Tensor]
POSITIVES_A_TILE = 4.0  # anchors that ATSS assigns to a lesion of a few voxels


@dataclass(frozen=True, eq=False)
class LevelTargets:
    """The reference of a batch of tiles at one resolution, each `[B, *spatial]`.

    `labels` contains 0 for background and k for class k. With regions it is `[B, K, *spatial]`, and
    True where a voxel belongs to the region. `valid` is False for voxels that the loss ignores.
    `instances` contains lesion ids. `nearest` contains the id of the nearest lesion if the loss
    needs it.
    """

    labels: Tensor
    instances: Tensor
    valid: Tensor
    nearest: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], regions: Sequence[Sequence[int]] = ()) -> Self:
        """Return the targets of a batch with the plan's regions. Invalid voxels have no label."""
        valid = batch["valid"].bool()
        labels = batch["labels"].masked_fill(~valid, 0)
        instances = batch["instances"].masked_fill(~valid, 0)
        labels = region_target(labels, regions) if regions else labels
        return cls(labels, instances, valid, batch.get("nearest"))


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a batch for a detector's anchors and for every level of voxels, finest first.

    `anchors` is None for a network without anchors; `levels` is empty for one without voxels.
    """

    anchors: AnchorTargets | None
    levels: tuple[LevelTargets, ...]

    def counts(self) -> Tensor:
        """Return the positive anchors, then the lesion voxels of each level: one per normaliser."""
        counts = [count_positives(level.labels, level.valid) for level in self.levels]
        if self.anchors is not None:
            counts.insert(0, (self.anchors.labels > 0).sum(dtype=torch.float32))
        return torch.stack(counts)


class Objective:
    """Computes the targets of a batch, and the terms of the loss of a network's output.

    `loss` applies to voxels on every supervised level, `detection` to anchors, if the plan's
    network has them. Terms are weighted fp32 scalars by name, and the loss is their sum. The
    anchors and each level have a normaliser; `expected` and `Targets.counts` have the same order. A
    worker should add `batch_targets` to a batch; otherwise `targets` does.
    """

    def __init__(self, plan: Plan, loss: nn.Module, detection: DetectionLoss) -> None:
        self.plan = plan
        self.loss = loss
        self.detection = detection
        self.strides = supervised_strides(plan.architecture) if plan.has_voxels else ()
        takes_nearest = "nearest" in signature(loss.forward).parameters
        self.batch_targets = BatchTargets(
            nearest=bool(self.strides) and takes_nearest,
            anchors=AnchorGrid.of(plan) if plan.has_boxes else None,
        )

    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """Return the expected positives of `n_tiles` tiles, of voxels by the lesion fraction."""
        lesion = self.plan.lesion_fraction * n_tiles * prod(self.plan.tile_shape)
        anchors = (POSITIVES_A_TILE * n_tiles,) if self.plan.has_boxes else ()
        return (*anchors, *(lesion / prod(stride) for stride in self.strides))

    def targets(self, batch: Mapping[str, Tensor]) -> Targets:
        """Return the targets of a batch. A GPU waits if the batch has none of `batch_targets`."""
        batch = self.batch_targets(dict(batch))
        anchors = anchor_targets(batch) if self.plan.has_boxes else None
        if not self.strides:
            return Targets(anchors, ())
        finest = LevelTargets.of(batch, self.plan.labels.channel_labels)
        smaller = middles if self.plan.architecture.layout == "nnunet" else coarsen
        return Targets(anchors, tuple(smaller(finest, stride) for stride in self.strides))

    def terms(self, output: Any, targets: Targets, normalisers: Tensor) -> Terms:
        """Return the terms of the anchors, then those of the voxels summed over levels, in fp32."""
        total: Terms = {}
        with torch.autocast(normalisers.device.type, enabled=False):
            if targets.anchors is not None:
                grid = self.batch_targets.anchors or AnchorGrid.of(self.plan)
                total |= self.detection(
                    output.class_logits.float(),
                    output.box_deltas.float(),
                    grid.boxes(output.class_logits.device),
                    targets.anchors,
                    normaliser=normalisers[0],
                )
                normalisers = normalisers[1:]
            voxels = self._voxels(output)
            # 1, ½, ¼ … scaled to a sum of 1, finest first (Isensee et al. 2021)
            weights = [0.5**k / (2 - 2 * 0.5 ** len(voxels)) for k in range(len(voxels))]
            levels = zip(weights, voxels, targets.levels, normalisers, strict=False)
            for weight, logits, level, normaliser in levels:
                extra = {"nearest": level.nearest} if self.batch_targets.nearest else {}
                terms: Terms = self.loss(
                    logits.float(), level.labels, valid=level.valid, normaliser=normaliser, **extra
                )
                for name, term in terms.items():
                    total[name] = total.get(name, 0.0) + weight * term
        return total

    def _voxels(self, output: Any) -> Sequence[Tensor]:
        return output.segmentation if self.plan.has_boxes else output  # type: ignore[no-any-return]

    def known(self, output: Any, unannotated: Tensor) -> Any:
        """Return the output in which labels `[B, K]` that were not annotated have no gradient."""
        activation = self.plan.activation
        voxels = [mask_unannotated(x, unannotated, activation) for x in self._voxels(output)]
        if not self.plan.has_boxes:
            return voxels
        scores = mask_unannotated(output.class_logits.transpose(1, 2), unannotated, "sigmoid")
        return replace(output, class_logits=scores.transpose(1, 2), segmentation=tuple(voxels))

    def observed(self, output: Any, targets: Targets) -> tuple[Tensor, int, Tensor, Tensor]:
        """Return the finest logits, the axis of their classes, and their labels and valid places.

        For a network without voxels they are those of the anchors.
        """
        if not targets.levels and targets.anchors is not None:
            return output.class_logits, 2, targets.anchors.labels, targets.anchors.valid
        finest = targets.levels[0]
        return self._voxels(output)[0], 1, finest.labels, finest.valid


def make_objective(plan: Plan, cfg: TrainConfig, loss: nn.Module | None = None) -> Objective:
    """Return the objective of the plan's network; `loss` replaces the configured one of voxels.

    Raises `ConfigError` if the loss is for independent labels and the network for exclusive ones,
    or the reverse.
    """
    loss = loss or make_loss(cfg.loss, plan.activation)
    activation = getattr(loss, "activation", plan.activation)
    if activation != plan.activation:
        raise ConfigError(
            f"The network's logits are for {plan.activation}, the loss is for {activation}. Set "
            f"model.activation={activation}, or +loss.activation={plan.activation}."
        )
    return Objective(plan, loss, DetectionLoss(**cfg.detection.to_plain()))


def coarsen(targets: LevelTargets, stride: Sequence[int]) -> LevelTargets:
    """Return the targets on a grid that is `stride` times coarser.

    Spatial axes must be multiples of `stride`. A coarse voxel has the highest label of its block,
    or belongs to all regions in it: nearest sampling would drop small lesions. A block with an
    invalid voxel is invalid unless it contains a known lesion voxel. The id is that of the block's
    middle voxel, or the highest one if the loss needs nearest lesions. The nearest lesion of a
    block without a lesion is that of its middle voxel.
    """
    if prod(stride) == 1:
        return targets
    labels = _block_max(targets.labels, stride)
    complete = ~_block_max(~targets.valid, stride)
    known = labels.any(1) if labels.ndim > complete.ndim else labels > 0
    small = middles(targets, stride)
    if small.nearest is None:
        return LevelTargets(labels, small.instances, complete | known)
    ids = _block_max(targets.instances, stride)
    nearest = torch.where(ids > 0, ids, small.nearest)
    return LevelTargets(labels, ids, complete | known, nearest)


def middles(targets: LevelTargets, stride: Sequence[int]) -> LevelTargets:
    """Return nnU-Net's coarse targets: the voxel in, or after, the middle of each block."""
    places: Any = (..., *(slice(s // 2, None, s) for s in stride))
    nearest = None if targets.nearest is None else targets.nearest[places]
    masks = targets.labels[places], targets.instances[places], targets.valid[places]
    return LevelTargets(*masks, nearest)


def _block_max(
    values: Shaped[Tensor, "b *spatial"], stride: Sequence[int]
) -> Shaped[Tensor, "b *smaller"]:
    blocks = list(values.shape[: values.ndim - len(stride)])
    first = len(blocks)
    for n, s in zip(values.shape[first:], stride, strict=True):
        blocks += [n // s, s]
    return values.reshape(blocks).amax(dim=tuple(range(first + 1, len(blocks), 2)))


def supervised_strides(architecture: Architecture) -> tuple[tuple[int, ...], ...]:
    """Return the stride from the input to each supervised level; the finest is first and has 1.

    >>> table = Architecture("unet", (8, 16, 32), ((1, 1), (1, 2), (2, 2)), ((3, 3),) * 3)
    >>> supervised_strides(table)
    ((1, 1), (1, 2), (2, 4))
    """
    if architecture.levels:
        return architecture.levels
    ones = (1,) * len(architecture.strides[0])  # heads undo a first stride of a backbone
    return total_strides((ones, *architecture.strides[1:]))[: architecture.n_supervised]
