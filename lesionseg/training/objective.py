"""What a network is taught: the targets of a batch and the named terms of its loss."""

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
POSITIVES_A_TILE = 4.0  # anchors: what a lesion of a few voxels gets by ATSS


@dataclass(frozen=True, eq=False)
class LevelTargets:
    """The reference of a batch of tiles at one resolution, each `[B, *spatial]`.

    `labels` holds 0 for background and k for class k; with regions it is `[B, K, *spatial]` and
    says whether a voxel belongs to each. `valid` is False where a voxel teaches nothing.
    `instances` holds lesion ids, `nearest` the id of the nearest lesion where a loss asks for it.
    """

    labels: Tensor
    instances: Tensor
    valid: Tensor
    nearest: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], regions: Sequence[Sequence[int]] = ()) -> Self:
        """The targets of a batch; invalid voxels carry no label. `regions`: the plan's."""
        valid = batch["valid"].bool()
        labels = batch["labels"].masked_fill(~valid, 0)
        instances = batch["instances"].masked_fill(~valid, 0)
        labels = region_target(labels, regions) if regions else labels
        return cls(labels, instances, valid, batch.get("nearest"))


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a batch: of a detector's anchors, and of every level of voxels, finest first.

    A network without anchors has None, one without voxels no level.
    """

    anchors: AnchorTargets | None
    levels: tuple[LevelTargets, ...]

    def counts(self) -> Tensor:
        """Positive anchors, then lesion voxels of each level: one number per normaliser."""
        counts = [count_positives(level.labels, level.valid) for level in self.levels]
        if self.anchors is not None:
            counts.insert(0, (self.anchors.labels > 0).sum(dtype=torch.float32))
        return torch.stack(counts)


class Objective:
    """Makes targets of a batch, and of a network's output on it the terms of the loss.

    `loss` teaches voxels on every supervised level, `detection` anchors, as far as the plan's
    network has them. Terms are fp32 scalars by name, each already weighted: the loss is their sum.
    The anchors and each level have a normaliser; `expected` and the targets' `counts()` have their
    order. `batch_targets`: what a worker should add to a batch, otherwise `targets` does.
    """

    def __init__(self, plan: Plan, loss: nn.Module, detection: DetectionLoss) -> None:
        self.plan, self.loss, self.detection = plan, loss, detection
        self.strides = supervised_strides(plan.architecture) if plan.has_voxels else ()
        takes_nearest = "nearest" in signature(loss.forward).parameters
        self.batch_targets = BatchTargets(
            nearest=bool(self.strides) and takes_nearest,
            anchors=AnchorGrid.of(plan) if plan.has_boxes else None,
        )

    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """Positives of `n_tiles` tiles: of a level what the lesion fraction makes of its voxels."""
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
        """The terms of the anchors, then those of the voxels, summed over the levels; in fp32."""
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
        """The output without what labels `[B, K]` that were not annotated would teach."""
        activation = self.plan.activation
        voxels = [mask_unannotated(x, unannotated, activation) for x in self._voxels(output)]
        if not self.plan.has_boxes:
            return voxels
        scores = mask_unannotated(output.class_logits.transpose(1, 2), unannotated, "sigmoid")
        return replace(output, class_logits=scores.transpose(1, 2), segmentation=tuple(voxels))

    def observed(self, output: Any, targets: Targets) -> tuple[Tensor, int, Tensor, Tensor]:
        """The finest logits, the axis of their classes, and their labels and valid places.

        Of a network without voxels the anchors, as if they were voxels in a row.
        """
        if not targets.levels and targets.anchors is not None:
            return output.class_logits, 2, targets.anchors.labels, targets.anchors.valid
        finest = targets.levels[0]
        return self._voxels(output)[0], 1, finest.labels, finest.valid


def make_objective(plan: Plan, cfg: TrainConfig, loss: nn.Module | None = None) -> Objective:
    """What the plan's network is taught; `loss` of voxels in place of the configured one.

    Raises `ConfigError` where a loss for independent labels teaches a network of exclusive ones, or
    the reverse.
    """
    loss = loss or make_loss(cfg.loss, plan.activation)
    activation = getattr(loss, "activation", plan.activation)
    if activation != plan.activation:
        raise ConfigError(
            f"The network's logits are for {plan.activation}, the loss is for {activation}. Set "
            f"model.activation={activation}, or +loss.activation={plan.activation}."
        )
    return Objective(plan, loss, DetectionLoss(**cfg.detection.plain()))


def coarsen(targets: LevelTargets, stride: Sequence[int]) -> LevelTargets:
    """Targets on a grid `stride` times coarser; spatial axes are multiples of `stride`.

    A coarse voxel takes the highest label in its block, or belongs to every region in it: nearest
    sampling would drop the small lesions. A block with an invalid voxel is invalid unless a lesion
    is known to be in it. Its id is that of a voxel, or where a loss asks for nearest lesions the
    highest; the nearest lesion of a block without one is that of its middle voxel.
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
    """nnU-Net's coarse targets: the voxel in, or after, the middle of each block."""
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
    """Stride from the input to each supervised level, finest first; the finest has none.

    >>> table = Architecture("unet", (8, 16, 32), ((1, 1), (1, 2), (2, 2)), ((3, 3),) * 3)
    >>> supervised_strides(table)
    ((1, 1), (1, 2), (2, 4))
    """
    if architecture.levels:
        return architecture.levels
    ones = (1,) * len(architecture.strides[0])  # heads undo a first stride of a backbone
    return total_strides((ones, *architecture.strides[1:]))[: architecture.n_supervised]
