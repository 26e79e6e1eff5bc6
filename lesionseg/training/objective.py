"""Loss terms of a batch: targets of each level, deep supervision, trial batch of noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from math import prod
from typing import Any, Self

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lesionseg.config import DetectionConfig, LossConfig
from lesionseg.errors import ConfigError
from lesionseg.losses import AnchorTargets, DetectionLoss, make_loss
from lesionseg.losses.base import count_positives, mask_unannotated, region_target
from lesionseg.losses.per_lesion import CELL_REACH
from lesionseg.plan.plan import Architecture, Plan, total_strides
from lesionseg.training.batch_targets import AnchorGrid, BatchTargets, anchor_targets

Terms = dict[str, Tensor]
POSITIVES_A_TILE = 4.0  # anchors that ATSS assigns to a lesion of a few voxels


@dataclass(frozen=True, eq=False)
class LevelTargets:
    """The reference of a batch of tiles at one resolution, each `[B, *spatial]`.

    `labels` contains 0 for background and k for class k. With regions it is `[B, K, *spatial]`, and
    True for voxels that belong to the region. `valid` is False for voxels that the loss ignores.
    `instances` contains lesion ids. `nearest` contains the id of the nearest lesion if the loss
    needs it.
    """

    labels: Tensor
    instances: Tensor
    valid: Tensor
    nearest: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], regions: Sequence[Sequence[int]] = ()) -> Self:
        """Return a batch's targets at full resolution. Invalid voxels get no label and no lesion.

        Args:
            batch: The tensors `labels`, `instances` and `valid` `[B, *spatial]`, and `nearest` if
                the loss needs it.
            regions: The label values of each region. Empty for labels that do not overlap.
        """
        valid = batch["valid"].bool()
        labels = batch["labels"].masked_fill(~valid, 0)
        labels = region_target(labels, regions) if regions else labels
        return cls(
            labels=labels,
            instances=batch["instances"].masked_fill(~valid, 0),
            valid=valid,
            nearest=batch.get("nearest"),
        )


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a batch for a detector's anchors and for every level of voxels, finest first.

    `anchors` is None for a network without anchors; `levels` is empty for one without voxels.
    """

    anchors: AnchorTargets | None
    levels: tuple[LevelTargets, ...]

    def counts(self) -> Tensor:
        """Count the positives of the batch, one number per normaliser.

        Returns:
            First the number of positive anchors, if the network has anchors, then the number of
            lesion voxels of each level, finest first.
        """
        counts = [count_positives(level.labels, level.valid) for level in self.levels]
        if self.anchors is not None:
            counts.insert(0, (self.anchors.labels > 0).sum(dtype=torch.float32))
        return torch.stack(counts)


@dataclass(frozen=True, eq=False)
class FinestLogits:
    """The finest logits of a network's output, with their targets.

    Axis `class_axis` of `logits` is that of the classes. `labels` and `valid` have the remaining
    axes. With regions, `labels` has the axis of the classes, too. `activation` is that of the plan
    for voxels. The classes of anchors are always independent ("sigmoid").
    """

    logits: Tensor
    activation: str
    class_axis: int
    labels: Tensor
    valid: Tensor


class Objective:
    """The targets of a batch, and the terms of the loss of a network's output.

    - `loss` applies to voxels on every supervised level, `detection` to anchors, if the plan's
      network has anchors.
    - Terms are weighted fp32 scalars by name. The loss of a training step is their sum.
    - The anchors and each level have a normaliser, in the order of `expected_positives` and
      `Targets.counts`.
    - A loader's worker should apply `batch_targets` to each batch, because a GPU would wait for
      these targets. Otherwise `targets` applies it.
    """

    def __init__(self, plan: Plan, loss: nn.Module, detection: DetectionLoss) -> None:
        self.plan = plan
        self.loss = loss
        self.detection = detection
        self.strides = supervised_strides(plan.architecture) if plan.has_voxels else ()
        # A loss may have the parameter, but not need it with its present settings. Its attribute
        # `needs_nearest`, if present, says so.
        takes_nearest = "nearest" in signature(loss.forward).parameters
        needs_nearest = getattr(loss, "needs_nearest", takes_nearest)
        self.batch_targets = BatchTargets(
            nearest=bool(self.strides) and needs_nearest,
            anchors=AnchorGrid.of(plan) if plan.has_boxes else None,
            # CELL_REACH counts voxels of the finest axis; the reach is equal in mm along all axes
            reach=tuple(CELL_REACH * min(plan.spacing_mm) / mm for mm in plan.spacing_mm),
        )

    def expected_positives(self, n_tiles: int) -> tuple[float, ...]:
        """Return the expected number of positives in `n_tiles` tiles, one number per normaliser.

        The moving averages of the normalisers start at these numbers.

        Returns:
            First the number of positive anchors, four per tile, if the network has anchors. Then
            the number of lesion voxels of each level, from the plan's lesion fraction.
        """
        n_lesion_voxels = self.plan.lesion_fraction * n_tiles * prod(self.plan.tile_shape)
        expected = [n_lesion_voxels / prod(stride) for stride in self.strides]
        if self.plan.has_boxes:
            expected.insert(0, POSITIVES_A_TILE * n_tiles)
        return tuple(expected)

    def targets(self, batch: Mapping[str, Tensor]) -> Targets:
        """Return the targets of a batch, for the anchors and for each supervised level.

        If no loader's worker has applied `batch_targets` to the batch, this is done here, which
        makes a GPU wait. Coarser levels are made by `coarsen` or, for a network with the layout of
        nnU-Net, by `select_middle_voxels`, as in nnU-Net.
        """
        batch = self.batch_targets(dict(batch))
        anchors = anchor_targets(batch) if self.plan.has_boxes else None
        if not self.strides:
            return Targets(anchors, ())
        finest = LevelTargets.of(batch, self.plan.labels.channel_labels)
        reduce = select_middle_voxels if self.plan.architecture.layout == "nnunet" else coarsen
        return Targets(anchors, tuple(reduce(finest, stride) for stride in self.strides))

    def terms(self, output: Any, targets: Targets, normalisers: Tensor) -> Terms:
        """Return the loss terms of the anchors and of the voxels by name, in fp32.

        The terms of voxels are weighted means over the levels of `output`. Each level has half the
        weight of the next finer level.

        Args:
            output: The output of the network.
            targets: The targets of the batch.
            normalisers: The divisors of terms per positive, in the order of `expected_positives`.
        """
        total: Terms = {}
        # losses sum over many voxels, for which half precision is too coarse
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
                normalisers = normalisers[1:]  # those of the voxels remain
            voxels = self._voxel_logits(output)
            # 1, ½, ¼ …, finest first, then scaled to a sum of 1 (Isensee et al. 2021)
            halves = [0.5**level for level in range(len(voxels))]
            weights = [half / sum(halves) for half in halves]
            # in eval mode the network returns only the finest level
            levels = zip(weights, voxels, targets.levels, normalisers, strict=False)
            for weight, logits, level, normaliser in levels:
                for name, term in self._voxel_terms(logits, level, normaliser).items():
                    total[name] = total.get(name, 0.0) + weight * term
        return total

    def _voxel_terms(self, logits: Tensor, level: LevelTargets, normaliser: Tensor) -> Terms:
        """Return the loss terms of the voxels of one level, in fp32.

        The nearest lesions are passed only to a loss that needs them (`batch_targets.nearest` is
        True), because other losses do not have this parameter. `normaliser` is the average number
        of positives, by which the loss divides its sums over voxels.
        """
        optional = {"nearest": level.nearest} if self.batch_targets.nearest else {}
        terms: Terms = self.loss(
            logits.float(), level.labels, valid=level.valid, normaliser=normaliser, **optional
        )
        return terms

    def _voxel_logits(self, output: Any) -> Sequence[Tensor]:
        """Return the logits of voxels from a network's output, one tensor per level, finest first.

        The output of a detector contains them as `segmentation`; that of other networks consists of
        them.
        """
        result: Sequence[Tensor] = output.segmentation if self.plan.has_boxes else output
        return result

    def mask_unannotated(self, output: Any, unannotated: Tensor) -> Any:
        """Return a network's output in which unannotated classes have p = 0 and no gradient.

        Thereby a tile that does not annotate a class trains the network only on the other classes.
        With a softmax, the probability of the unannotated classes is added to the background.

        Args:
            output: The output of the network.
            unannotated: `[B, K]`, True for each class that the tile does not annotate.

        Returns:
            The output with the same fields, with logits in fp32.
        """
        activation = self.plan.activation
        voxels = [mask_unannotated(x, unannotated, activation) for x in self._voxel_logits(output)]
        if not self.plan.has_boxes:
            return voxels
        # logits of anchors are `[B, n, K]`, but the function expects the classes on axis 1
        scores = mask_unannotated(output.class_logits.transpose(1, 2), unannotated, "sigmoid")
        return replace(output, class_logits=scores.transpose(1, 2), segmentation=tuple(voxels))

    def finest_logits(self, output: Any, targets: Targets) -> FinestLogits:
        """Return the finest logits of voxels with their targets, for `FocalStatistics`.

        For a network without voxels, these are the logits of anchors.
        """
        if not targets.levels and targets.anchors is not None:
            anchors = targets.anchors
            return FinestLogits(
                logits=output.class_logits,
                activation="sigmoid",
                class_axis=2,
                labels=anchors.labels,
                valid=anchors.valid,
            )
        finest = targets.levels[0]
        return FinestLogits(
            logits=self._voxel_logits(output)[0],
            activation=self.plan.activation,
            class_axis=1,
            labels=finest.labels,
            valid=finest.valid,
        )


def make_objective(
    plan: Plan, loss: LossConfig | nn.Module, detection: DetectionConfig
) -> Objective:
    """Return the objective of the plan's network.

    Args:
        plan: The plan.
        loss: The loss of voxels, or its settings.
        detection: The settings of the loss of anchors.

    Raises:
        ConfigError: If the loss cannot be built, or if its activation is not that of the plan:
            sigmoid for independent labels, softmax for exclusive labels.
    """
    if isinstance(loss, LossConfig):
        loss = make_loss(loss, plan.activation, has_boxes=plan.has_boxes)
    activation = getattr(loss, "activation", plan.activation)
    if activation != plan.activation:
        raise ConfigError(
            f"The network's logits are for {plan.activation}, the loss is for {activation}. Set "
            f"model.activation={activation}, or +loss.activation={plan.activation}."
        )
    return Objective(plan, loss, make_detection_loss(detection))


def make_detection_loss(settings: DetectionConfig) -> DetectionLoss:
    """Return the loss of a detector's anchors with the user's settings."""
    return DetectionLoss(
        alpha=settings.alpha,
        gamma=settings.gamma,
        hard_negatives=settings.hard_negatives,
    )


def noise_batch(plan: Plan, n_tiles: int) -> dict[str, Tensor]:
    """Return a batch of noise for a trial step, with a lesion in the middle of each tile.

    The lesion has the label 1 and 3 voxels along each axis. The same arguments give the same batch.

    Returns:
        The tensors `image` `[B, C, *tile]`, `labels`, `instances` and `valid` `[B, *tile]`.
    """
    noise = torch.Generator().manual_seed(0)
    shape = (n_tiles, *plan.tile_shape)
    labels = torch.zeros(shape, dtype=torch.uint8)
    middle = tuple(slice(n // 2 - 1, n // 2 + 2) for n in plan.tile_shape)  # 3 voxels
    labels[(slice(None), *middle)] = 1
    image = torch.randn((n_tiles, len(plan.channel_names), *plan.tile_shape), generator=noise)
    valid = torch.ones(shape, dtype=torch.bool)
    return {"image": image, "labels": labels, "instances": labels.int(), "valid": valid}


def try_step(
    network: nn.Module, objective: Objective, observe: Callable[[FinestLogits], None] | None = None
) -> None:
    """Run the forward and backward pass of a training step on a batch of noise.

    The function tests if a step compiles, or fits into memory. The batch has the plan's size, on
    the network's device. The caller sets autocast.

    Args:
        network: The network. Gradients are added to its weights.
        objective: The objective.
        observe: Is called with the finest logits before the backward pass, as in training.
    """
    device = next(network.parameters()).device
    # on the CPU, as a loader's worker does; `targets` makes the targets of each level from these
    batch = objective.batch_targets(noise_batch(objective.plan, objective.plan.batch_size))
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    targets = objective.targets(batch)
    output = network(batch["image"])
    if observe is not None:
        observe(objective.finest_logits(output, targets))
    # a trial step needs no loss of the right size, so all normalisers are 1
    terms = objective.terms(output, targets, normalisers=torch.ones_like(targets.counts()))
    with torch.autocast(device.type, enabled=False):
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]


def coarsen(targets: LevelTargets, stride: Sequence[int]) -> LevelTargets:
    """Return the targets on a grid that is `stride` times coarser, for a supervised coarse level.

    Each coarse voxel represents a block of fine voxels:

    - Its label is the highest label in the block, because nearest sampling would drop small
      lesions. With regions, it belongs to all regions of its voxels.
    - It is valid if all voxels of the block are valid, or if the block contains a valid lesion
      voxel.
    - Its instance id is that of the middle voxel.

    If the loss needs nearest lesions, the ids of a block with lesion voxels follow other rules.
    Both the instance and the nearest lesion are the highest id among the voxels with the block's
    label. With regions, they are the highest id of all voxels, also if lesions of several regions
    share the block. In a block without lesion voxels, the nearest lesion is that of the middle
    voxel.

    Args:
        targets: The targets at full resolution.
        stride: The factor along each spatial axis. The sides of the tile must be multiples of it.
    """
    if prod(stride) == 1:
        return targets
    labels = _block_max(targets.labels, stride)
    is_complete = ~_block_max(~targets.valid, stride)  # no voxel of the block is invalid
    has_region_axis = labels.ndim > is_complete.ndim
    has_lesion = labels.any(1) if has_region_axis else labels > 0
    valid = is_complete | has_lesion
    middle = select_middle_voxels(targets, stride)
    if middle.nearest is None:
        return LevelTargets(labels=labels, instances=middle.instances, valid=valid)
    ids, within = _split_into_blocks(targets.instances, stride)
    if not has_region_axis:
        fine_labels, _ = _split_into_blocks(targets.labels, stride)
        # the labels of blocks, with axes of size 1 within a block, to compare with those of voxels
        shape = [1 if axis in within else n for axis, n in enumerate(fine_labels.shape)]
        ids = ids.where(fine_labels == labels.reshape(shape), 0)
    ids = ids.amax(dim=within)
    nearest = torch.where(ids > 0, ids, middle.nearest)
    return LevelTargets(labels=labels, instances=ids, valid=valid, nearest=nearest)


def select_middle_voxels(targets: LevelTargets, stride: Sequence[int]) -> LevelTargets:
    """Return coarse targets as in nnU-Net: each block gets the targets of its middle voxel.

    For an even stride this is the voxel after the middle. `coarsen` describes the arguments.
    """
    # start at the middle of the first block, then one voxel per block
    middle: Any = (..., *(slice(s // 2, None, s) for s in stride))
    return LevelTargets(
        labels=targets.labels[middle],
        instances=targets.instances[middle],
        valid=targets.valid[middle],
        nearest=None if targets.nearest is None else targets.nearest[middle],
    )


def _block_max(
    values: Shaped[Tensor, "b *spatial"], stride: Sequence[int]
) -> Shaped[Tensor, "b *smaller"]:
    """Return the maximum of each block of `stride` voxels. For bool it is True if any voxel is."""
    blocks, within = _split_into_blocks(values, stride)
    return blocks.amax(dim=within)


def _split_into_blocks(
    values: Shaped[Tensor, "b *spatial"], stride: Sequence[int]
) -> tuple[Shaped[Tensor, "b *blocks"], tuple[int, ...]]:
    """Reshape an array so that each spatial axis becomes two: blocks, and voxels of a block.

    A reduction over the second axes then gives one number per block. For example, `[B, 4, 6]` with
    stride (2, 3) becomes `[B, 2, 2, 2, 3]`, and the axes within a block are 2 and 4.

    Returns:
        The reshaped array, and the axes within a block.
    """
    n_leading = values.ndim - len(stride)
    shape = list(values.shape[:n_leading])
    within: list[int] = []
    for n, s in zip(values.shape[n_leading:], stride, strict=True):
        shape += [n // s, s]  # number of blocks, size of a block
        within.append(len(shape) - 1)
    return values.reshape(shape), tuple(within)


def supervised_strides(architecture: Architecture) -> tuple[tuple[int, ...], ...]:
    """Return the stride from the input to each supervised level, finest first.

    A supervised level is a resolution at which the network has an output with a loss. The stride of
    the finest level is 1.

    A network of another package has its strides in `levels`. Otherwise they are the products of
    `strides`, with a first stride of 1.

    >>> table = Architecture("unet", (8, 16, 32), ((1, 1), (1, 2), (2, 2)), ((3, 3),) * 3)
    >>> supervised_strides(table)
    ((1, 1), (1, 2), (2, 4))
    """
    if architecture.levels:
        return architecture.levels
    # a backbone may begin with a stride above 1, but its finest head returns full resolution
    ones = (1,) * len(architecture.strides[0])
    return total_strides((ones, *architecture.strides[1:]))[: architecture.n_supervised]
