"""What a network is taught: the targets of a batch and the named terms of its loss."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.losses import count_positives, mask_unannotated
from lesionseg.losses.gradient_balance import FocalTerm, focal_terms
from lesionseg.plan.plan import Plan
from lesionseg.training.step.supervision import (
    LevelTargets,
    level_weights,
    supervised_strides,
    targets_of_levels,
)

Terms = dict[str, Tensor]


class BatchTargets(ABC):
    """The targets of some tiles."""

    @abstractmethod
    def counts(self) -> Tensor:
        """Positives that divide each group of terms, `[n]`; the first is the one recorded."""

    @abstractmethod
    def split(self, size: int) -> "Sequence[BatchTargets]":
        """The targets of each `size` tiles in turn."""


class Objective(ABC):
    """Makes targets of a batch, and of a network's output on it the terms of the loss.

    Terms are fp32 scalars by name, each already weighted: the loss is their sum. Each group of them
    has a normaliser; the targets' `counts` and `normalisers` are in the order of `expected`.
    """

    @abstractmethod
    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """Positives that `n_tiles` tiles are expected to have, one number per normaliser."""

    @abstractmethod
    def targets(self, batch: Mapping[str, Tensor]) -> BatchTargets:
        """The targets of a batch of tiles."""

    @abstractmethod
    def terms(self, output: Any, targets: Any, normalisers: Tensor) -> Terms:
        """The terms of the loss; `normalisers` `[n]`."""

    @abstractmethod
    def known(self, output: Any, unannotated: Tensor) -> Any:
        """The output where labels `[B, K]` were not annotated: `mask_unannotated`."""

    @abstractmethod
    def shown(self, output: Any, targets: Any) -> tuple[Tensor, LevelTargets]:
        """Detached logits `[B, K, …]` and their targets, for the module's watchers."""

    @abstractmethod
    def focal_terms(self) -> tuple[FocalTerm, ...]:
        """The focal terms by which the shown logits are taught; none for other losses."""

    @abstractmethod
    def compile(self, backend: str) -> None:
        """Let torch's compiler fuse targets and terms into few kernels, where it can."""


@dataclass(frozen=True, eq=False)
class VoxelTargets(BatchTargets):
    """The targets of every supervised level, finest first."""

    levels: tuple[LevelTargets, ...]

    def counts(self) -> Tensor:
        """Lesion voxels of each level."""
        return torch.stack([count_positives(t.labels, t.valid) for t in self.levels])

    def split(self, size: int) -> "list[VoxelTargets]":
        """Part by part."""
        parts = list(zip(*(t.split(size) for t in self.levels), strict=True))
        return [self] if len(parts) == 1 else [VoxelTargets(part) for part in parts]


class VoxelObjective(Objective):
    """Teaches voxels, on every supervised level of a U-Net, by a `losses.VoxelLoss`."""

    def __init__(self, loss: nn.Module, plan: Plan) -> None:
        self.loss, self.plan = loss, plan
        self.strides = supervised_strides(plan.architecture)
        self._takes_instances = "instances" in inspect.signature(loss.forward).parameters

    def expected(self, n_tiles: int) -> tuple[float, ...]:
        """What the plan's lesion fraction makes of the tiles' voxels, one number per level."""
        voxels = n_tiles * prod(self.plan.tile_shape)
        return tuple(self.plan.lesion_fraction * voxels / prod(stride) for stride in self.strides)

    def targets(self, batch: Mapping[str, Tensor]) -> VoxelTargets:
        """The label map at every level."""
        levels = targets_of_levels(
            batch,
            self.strides,
            self.plan.label_regions,
            middle=self.plan.architecture.layout == "nnunet",
            ids=self._takes_instances,
        )
        return VoxelTargets(tuple(levels))

    def terms(self, output: Sequence[Tensor], targets: VoxelTargets, normalisers: Tensor) -> Terms:
        """The loss's terms, weighted and summed over the levels; computed in fp32."""
        total: Terms = {}
        with torch.autocast(output[0].device.type, enabled=False):
            for weight, level, level_targets, normaliser in zip(
                level_weights(len(output)), output, targets.levels, normalisers, strict=False
            ):
                terms = self._level_terms(level.float(), level_targets, normaliser)
                add_terms(total, {name: weight * term for name, term in terms.items()})
        return total

    def known(self, output: Sequence[Tensor], unannotated: Tensor) -> list[Tensor]:
        """Every level."""
        return [mask_unannotated(level, unannotated, self.plan.activation) for level in output]

    def shown(self, output: Sequence[Tensor], targets: VoxelTargets) -> tuple[Tensor, LevelTargets]:
        """The finest level."""
        return output[0].detach(), targets.levels[0]

    def focal_terms(self) -> tuple[FocalTerm, ...]:
        """Those of the loss."""
        return focal_terms(self.loss)

    def compile(self, backend: str) -> None:
        """Both: some eighty operations a level become a few kernels."""
        for name in ("targets", "terms"):
            setattr(self, name, torch.compile(getattr(self, name), backend=backend))

    def _level_terms(self, logits: Tensor, targets: LevelTargets, normaliser: Tensor) -> Terms:
        extra = {"instances": targets.instances} if self._takes_instances else {}
        terms: Terms = self.loss(
            logits, targets.labels, valid=targets.valid, normaliser=normaliser, **extra
        )
        return terms


def add_terms(total: Terms, terms: Mapping[str, Tensor]) -> None:
    """Add `terms` to `total` by name, in place."""
    for name, term in terms.items():
        total[name] = total[name] + term if name in total else term
