"""What a network is taught: the targets of a batch and the named terms of its loss."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lesionseg.losses import (
    count_positives,
    mask_unannotated,
    nearest_lesions,
    region_target,
)
from lesionseg.plan.plan import Architecture, Plan, total_strides

Terms = dict[str, Tensor]


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
        """The targets of a batch; invalid voxels carry no label.

        `regions` are sets of labels, as `Plan.label_regions` has them; none: each label is a class.
        """
        valid = batch["valid"].bool()
        labels = batch["labels"].masked_fill(~valid, 0)
        return cls(
            region_target(labels, regions) if regions else labels,
            batch["instances"].masked_fill(~valid, 0),
            valid,
            batch.get("nearest"),
        )


class Objective(ABC):
    """Makes targets of a batch, and of a network's output on it the terms of the loss.

    Terms are fp32 scalars by name, each already weighted: the loss is their sum. Each group of them
    has a normaliser; the targets' `counts()` and `normalisers` are in the order of `expected`.
    `takes_nearest`: whether a batch should have `nearest`, which is else made of its instances.
    """

    takes_nearest = False

    @abstractmethod
    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """Positives that `n_tiles` tiles are expected to have, one number per normaliser."""

    @abstractmethod
    def targets(self, batch: Mapping[str, Tensor]) -> Any:
        """The targets of a batch of tiles; their `counts()` `[n]` are the positives found."""

    @abstractmethod
    def terms(self, output: Any, targets: Any, normalisers: Tensor) -> Terms:
        """The terms of the loss; `normalisers` `[n]`."""

    @abstractmethod
    def known(self, output: Any, unannotated: Tensor) -> Any:
        """The output where labels `[B, K]` were not annotated: `mask_unannotated`."""

    @abstractmethod
    def observed(self, output: Any, targets: Any) -> tuple[Tensor, int, LevelTargets]:
        """The finest logits, the axis of their classes, and their targets."""


@dataclass(frozen=True, eq=False)
class VoxelTargets:
    """The targets of every supervised level, finest first."""

    levels: tuple[LevelTargets, ...]

    def counts(self) -> Tensor:
        """Lesion voxels of each level."""
        return torch.stack([count_positives(t.labels, t.valid) for t in self.levels])


class VoxelObjective(Objective):
    """Teaches voxels, on every supervised level of a U-Net, by a `losses.VoxelLoss`."""

    def __init__(self, loss: nn.Module, plan: Plan) -> None:
        self.loss, self.plan = loss, plan
        self.strides = supervised_strides(plan.architecture)
        self.takes_nearest = "nearest" in inspect.signature(loss.forward).parameters

    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """What the plan's lesion fraction makes of the tiles' voxels, one number per level."""
        voxels = n_tiles * prod(self.plan.tile_shape)
        return tuple(self.plan.lesion_fraction * voxels / prod(stride) for stride in self.strides)

    def targets(self, batch: Mapping[str, Tensor]) -> VoxelTargets:
        """The label map at every level."""
        finest = LevelTargets.of(batch, self.plan.label_regions)
        if self.takes_nearest and finest.nearest is None:
            finest = replace(finest, nearest=nearest_lesions(finest.instances))
        smaller = middles if self.plan.architecture.layout == "nnunet" else coarsen
        return VoxelTargets(tuple(smaller(finest, stride) for stride in self.strides))

    def terms(self, output: Sequence[Tensor], targets: VoxelTargets, normalisers: Tensor) -> Terms:
        """The loss's terms, weighted and summed over the levels; computed in fp32."""
        total: Terms = {}
        with torch.autocast(output[0].device.type, enabled=False):
            levels = zip(
                level_weights(len(output)), output, targets.levels, normalisers, strict=False
            )
            for weight, logits, level, normaliser in levels:
                extra = {"nearest": level.nearest} if self.takes_nearest else {}
                terms: Terms = self.loss(
                    logits.float(), level.labels, valid=level.valid, normaliser=normaliser, **extra
                )
                for name, term in terms.items():
                    total[name] = total.get(name, 0.0) + weight * term
        return total

    def known(self, output: Sequence[Tensor], unannotated: Tensor) -> list[Tensor]:
        """Every level."""
        return [mask_unannotated(level, unannotated, self.plan.activation) for level in output]

    def observed(
        self, output: Sequence[Tensor], targets: VoxelTargets
    ) -> tuple[Tensor, int, LevelTargets]:
        """The finest level."""
        return output[0], 1, targets.levels[0]


def coarsen(targets: LevelTargets, stride: Sequence[int]) -> LevelTargets:
    """Targets on a grid `stride` times coarser; spatial axes are multiples of `stride`.

    A coarse voxel takes the highest label in its block, or belongs to every region in it. Nearest
    sampling would drop a lesion of a few voxels and teach the coarse levels that it is background:
    exactly the lesions that matter here. A block with an invalid voxel is invalid unless a lesion
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
    """Targets on a grid `stride` times coarser: the voxel in the middle of each block, as nnU-Net
    teaches; of an even number the one after the middle. A small lesion may be lost."""
    places: Any = (..., *(slice(s // 2, None, s) for s in stride))
    nearest = None if targets.nearest is None else targets.nearest[places]
    masks = targets.labels[places], targets.instances[places], targets.valid[places]
    return LevelTargets(*masks, nearest)


def _block_max(
    values: Shaped[Tensor, "b *spatial"], stride: Sequence[int]
) -> Shaped[Tensor, "b *smaller"]:
    """The highest value in each block of the last axes."""
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
    ones = (1,) * len(architecture.strides[0])  # heads undo a space-to-depth stem
    return total_strides((ones, *architecture.strides[1:]))[: architecture.n_supervised]


def level_weights(n_levels: int) -> tuple[float, ...]:
    """1, ½, ¼ … scaled to a sum of 1, finest first (Isensee et al. 2021).

    >>> level_weights(2)
    (0.6666666666666666, 0.3333333333333333)
    """
    weights = [0.5**level for level in range(n_levels)]
    return tuple(w / sum(weights) for w in weights)
