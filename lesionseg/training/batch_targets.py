"""Targets computed in a loader's worker on the CPU: anchors, nearest lesions, renumbered ids.

A GPU would wait for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from lesionseg.losses import AnchorTargets, nearest_lesions
from lesionseg.ops.anchors import BACKGROUND, IGNORED, AnchorLevel, assign_atss, grid_anchors
from lesionseg.ops.boxes import split_box, tile_boxes
from lesionseg.ops.components import nonzero_voxels
from lesionseg.plan.plan import Plan

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class BatchTargets:
    """The targets that are added to a batch before it is moved to the device.

    Attributes:
        nearest: True if the loss needs the nearest lesion of each voxel. The batch then gets
            `nearest` `[B, *tile]`, and its instances are renumbered.
        anchors: The anchors of a detector, None for other networks. With anchors, the batch gets
            the fields of `AnchorTargets`: `anchor_labels` and `anchor_valid` `[B, n]`,
            `anchor_boxes` `[p, 2·dims]` and `anchor_places` `[p]`.
        reach: The distance along each axis, in voxels, from which a voxel has no nearest lesion.
            None is the default of `nearest_lesions`.
    """

    nearest: bool = False
    anchors: "AnchorGrid | None" = None
    reach: tuple[float, ...] | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the targets that the loss needs, if they are not in it yet.

        The input batch is not changed. Voxels that are not valid count as background for the
        targets. If the nearest lesions are added, the lesions are also renumbered (`renumber`).
        """
        lacks_nearest = self.nearest and "nearest" not in batch
        lacks_anchors = self.anchors is not None and "anchor_labels" not in batch
        if not lacks_nearest and not lacks_anchors:
            return batch
        # in the targets, ignored voxels are background; the losses leave them out by `valid`
        valid = batch["valid"].bool()
        completed = dict(batch)
        if lacks_nearest:
            instances = renumber(batch["instances"], valid)
            completed["instances"] = instances
            completed["nearest"] = nearest_lesions(instances, self.reach)
        else:
            instances = batch["instances"].masked_fill(~valid, 0)
        if lacks_anchors and self.anchors is not None:
            labels = batch["labels"].masked_fill(~valid, 0)
            targets = self.anchors.targets(labels, instances, valid)
            completed["anchor_labels"] = targets.labels
            completed["anchor_valid"] = targets.valid
            completed["anchor_boxes"] = targets.boxes
            completed["anchor_places"] = targets.places
        return completed

    def tile_bytes(self, n_voxels: int) -> int:
        """Return the approximate number of bytes that the targets add to a tile of `n_voxels`.

        The number limits the number of loader workers. It is 0 if no targets are added.
        """
        n_bytes = 0
        if self.nearest:
            n_bytes += n_voxels  # one uint8 per voxel
        if self.anchors is not None:
            n_anchors = sum(level.n_anchors for level in self.anchors.levels)
            n_bytes += 2 * n_anchors  # one byte for the label, one for `valid`
        return n_bytes


def renumber(
    instances: Integer[Tensor, "b *tile"], valid: Bool[Tensor, "b *tile"]
) -> Integer[Tensor, "b *tile"]:
    """Renumber each tile's lesions 1, 2, … in the order of ids. Invalid voxels become 0.

    The result is uint8 if no tile has more than 255 lesions, otherwise int32. uint8 has two
    advantages: four times fewer bytes are moved to a GPU, and a loss knows the maximum without
    reading the ids.

    >>> renumber(torch.tensor([[0, 700, 3, 700], [0, 0, 0, 9]]), torch.ones(2, 4).bool()).tolist()
    [[0, 2, 1, 2], [0, 0, 0, 1]]
    """
    voxels_of_tiles = []
    new_ids_of_tiles = []
    for ids, is_valid in zip(instances.cpu().numpy(), valid.cpu().numpy(), strict=True):
        lesion_voxels = nonzero_voxels(ids)  # flat indices; lesions are few voxels
        voxels = lesion_voxels[is_valid.reshape(-1)[lesion_voxels]]
        old_ids = ids.reshape(-1)[voxels]
        is_present = np.zeros(int(old_ids.max(initial=0)) + 1, np.int64)
        is_present[old_ids] = 1
        voxels_of_tiles.append(voxels)
        # the cumulative sum at an id counts the ids up to it: this is its new id
        new_ids_of_tiles.append(is_present.cumsum()[old_ids])
    maximum = max((int(new_ids.max(initial=0)) for new_ids in new_ids_of_tiles), default=0)
    renumbered = np.zeros(tuple(instances.shape), np.uint8 if maximum < 256 else np.int32)
    for tile, voxels, new_ids in zip(renumbered, voxels_of_tiles, new_ids_of_tiles, strict=True):
        tile.reshape(-1)[voxels] = new_ids
    return torch.from_numpy(renumbered).to(instances.device)


def anchor_targets(batch: Mapping[str, Tensor]) -> AnchorTargets:
    """Return the targets of anchors from a batch to which `BatchTargets` has added them."""
    return AnchorTargets(
        labels=batch["anchor_labels"],
        valid=batch["anchor_valid"],
        boxes=batch["anchor_boxes"],
        places=batch["anchor_places"],
    )


@dataclass(frozen=True)
class AnchorGrid:
    """The anchors of a tile, to which lesions are assigned.

    Attributes:
        levels: The anchor grid of each level of the pyramid, finest first.
        has_regions: True if labels overlap. Each lesion is then one box with label 1.
    """

    levels: tuple[AnchorLevel, ...]
    has_regions: bool

    @classmethod
    def of(cls, plan: Plan) -> "AnchorGrid":
        """Return the anchor grid of a plan. It has no levels if the network has no anchors."""
        return cls(plan.anchor_levels, bool(plan.labels.regions))

    def boxes(self, device: torch.device) -> Float[Tensor, "n two_d"]:
        """Return the boxes of all anchors in voxels `[n, 2·dims]`, computed once per device."""
        return _grid(self.levels, device)

    def targets(
        self,
        labels: Integer[Tensor, "b *tile"],
        instances: Integer[Tensor, "b *tile"],
        valid: Bool[Tensor, "b *tile"],
    ) -> AnchorTargets:
        """Assign each tile's lesions to its anchors by ATSS, and return the targets of the anchors.

        The boxes of lesions are computed from the instances, because augmentation changes them. An
        anchor whose centre is in an invalid voxel is ignored, unless a lesion is assigned to it.

        Args:
            labels: Label of each voxel, 0 in invalid voxels.
            instances: Lesion id of each voxel, 0 in invalid voxels.
            valid: False for voxels that the loss ignores.
        """
        anchors = self.boxes(valid.device)
        # with regions, each lesion has label 1
        labels_of_boxes = labels.sign() if self.has_regions else labels
        boxes, lesion_labels = tile_boxes(instances, labels_of_boxes)
        # `[B, n]`: the number of the anchor's lesion in its tile, BACKGROUND or IGNORED
        lesions = torch.stack([assign_atss(self.levels, anchors, tile) for tile in boxes])
        is_hidden = ~valid.flatten(1)[:, _centre_voxels(anchors, valid.shape[1:])]
        lesions = torch.where(is_hidden & (lesions == BACKGROUND), IGNORED, lesions)
        # BACKGROUND and IGNORED are negative; `gather` needs indices from 0
        assigned_labels = lesion_labels.gather(1, lesions.clamp(min=0))
        anchor_labels = torch.where(lesions >= 0, assigned_labels, 0)
        # flat indices of anchors in `[B, n]`, so that a quotient by n is the tile of an anchor
        positive = (anchor_labels > 0).flatten().nonzero()[:, 0]
        tiles = positive // max(len(anchors), 1)  # a tile may have no anchors
        assigned_boxes = boxes[tiles, lesions.flatten()[positive]]
        if labels.dtype == torch.uint8:  # fewer bytes to move to a GPU
            anchor_labels = anchor_labels.to(torch.uint8)
        return AnchorTargets(
            labels=anchor_labels,
            valid=lesions != IGNORED,
            boxes=assigned_boxes,
            places=positive,
        )


def _centre_voxels(
    anchors: Float[Tensor, "n two_d"], tile_shape: Sequence[int]
) -> Integer[Tensor, " n"]:
    """Return the flat index of the voxel that contains the centre of each anchor.

    A centre outside the tile gets the nearest voxel at the border.
    """
    index = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    # the first result of `split_box` is the centre; voxel i covers i to i + 1
    centres = split_box(anchors)[0].floor().long().unbind(1)
    for centre, n in zip(centres, tile_shape, strict=True):  # C order: the last axis is fastest
        index = index * n + centre.clamp(0, n - 1)
    return index


@lru_cache(maxsize=4)
def _grid(levels: tuple[AnchorLevel, ...], device: torch.device) -> Tensor:
    """Return the boxes of all anchors in voxels `[n, 2·dims]`.

    The result is cached: the caller must not change it.
    """
    return grid_anchors(levels, device=device)
