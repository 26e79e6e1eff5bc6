"""What each supervised level of a network is taught, and how much it counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Self

import torch
from jaxtyping import Shaped
from torch import Tensor

from lesionseg.losses import region_target
from lesionseg.plan.plan import Architecture, total_strides


@dataclass(frozen=True, eq=False)
class LevelTargets:
    """The reference of a batch of tiles at one resolution, each `[B, *spatial]`.

    `labels` holds 0 for background and k for class k; with regions it is `[B, K, *spatial]` and
    says whether a voxel belongs to each. `valid` is False where a voxel teaches nothing.
    `instances` holds lesion ids; where no loss asks for them those of coarse levels are the ids of
    one voxel a block.
    """

    labels: Tensor
    instances: Tensor
    valid: Tensor

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
        )

    def split(self, size: int) -> list["LevelTargets"]:
        """The targets of each `size` tiles in turn."""
        parts = (torch.split(t, size) for t in (self.labels, self.instances, self.valid))
        return [LevelTargets(*part) for part in zip(*parts, strict=True)]


def targets_of_levels(
    batch: Mapping[str, Tensor],
    strides: Sequence[Sequence[int]],
    regions: Sequence[Sequence[int]] = (),
    *,
    middle: bool = False,
    ids: bool = True,
) -> list[LevelTargets]:
    """The targets of a batch at every level, by `coarsen` or by `middles`."""
    finest = LevelTargets.of(batch, regions)
    coarser = middles if middle else partial(coarsen, ids=ids)
    return [coarser(finest, stride) for stride in strides]


def coarsen(targets: LevelTargets, stride: Sequence[int], *, ids: bool = True) -> LevelTargets:
    """Targets on a grid `stride` times coarser; spatial axes are multiples of `stride`.

    A coarse voxel takes the highest label in its block, or belongs to every region in it. Nearest
    sampling would drop a lesion of a few voxels and teach the coarse levels that it is background:
    exactly the lesions that matter here. A block with an invalid voxel is invalid unless a lesion
    is known to be in it. Without `ids` its instances are those of a voxel.
    """
    if prod(stride) == 1:
        return targets
    labels = _block_max(targets.labels, stride)
    complete = ~_block_max(~targets.valid, stride)
    known = labels.any(1) if labels.ndim > complete.ndim else labels > 0
    instances = _block_max(targets.instances, stride) if ids else targets.instances[_every(stride)]
    return LevelTargets(labels, instances, complete | known)


def middles(targets: LevelTargets, stride: Sequence[int]) -> LevelTargets:
    """Targets on a grid `stride` times coarser: the voxel in the middle of each block, as nnU-Net
    teaches; of an even number the one after the middle. A small lesion may be lost."""
    places = _every(stride)
    return LevelTargets(targets.labels[places], targets.instances[places], targets.valid[places])


def _every(stride: Sequence[int]) -> tuple[Any, ...]:
    """An index of the voxel in the middle of each block."""
    return (..., *(slice(s // 2, None, s) for s in stride))


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
    ones = (1,) * len(architecture.strides[0])  # heads undo the stride of a foreign first map
    return total_strides((ones, *architecture.strides[1:]))[: architecture.n_supervised]


def level_weights(n_levels: int) -> tuple[float, ...]:
    """1, ½, ¼ … scaled to a sum of 1, finest first (Isensee et al. 2021).

    >>> level_weights(2)
    (0.6666666666666666, 0.3333333333333333)
    """
    weights = [0.5**level for level in range(n_levels)]
    return tuple(w / sum(weights) for w in weights)
