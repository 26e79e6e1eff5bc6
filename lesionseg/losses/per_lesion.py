"""Dice and focal loss of the batch, plus terms in which each lesion has the same weight."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lesionseg.errors import GeometryError
from lesionseg.losses.base import Labels, Logits, LossTerms, Valid
from lesionseg.losses.dice import (
    FOCAL,
    DiceFocalLoss,
    dice_of_sums,
    lesion_probabilities,
    require_weight,
)
from lesionseg.losses.focal import (
    Alpha,
    Normaliser,
    check_settings,
    reduce_losses,
    to_signed,
)
from lesionseg.ops.blocks import block_maxima

_LESION_WEIGHT = 0.5  # of the terms per lesion
_N_PARTS = 64  # partial sums of a cell
_LARGE_TILE = 64**3  # voxels; in larger tiles, distances are computed for blocks of two voxels


class LesionBalancedLoss(DiceFocalLoss):
    """Dice and focal loss of the batch, plus the mean of both over the cells of its lesions.

    The cell of a lesion consists of the voxels of its tile that are nearer to it than to any other
    lesion (as in CC-DiceCE, arXiv 2511.17146). Within the cell, Dice is computed for this lesion
    only, and the focal loss is divided by the number of its voxels. In these means, a lesion of 20
    voxels has the same weight as one of 20 000.

    The terms are `dice`, `focal`, `lesion_dice` and `lesion_focal`. The first two are those of
    `DiceFocalLoss` with the reduction `per_positive`. The last two are 0 for a batch without
    lesions. If their factor is 0, they are left out.

    Args:
        alpha: As in `DiceFocalLoss`, for both focal terms.
        gamma: As in `DiceFocalLoss`, for both focal terms.
        activation: `sigmoid` or `softmax`.
        focal_weight: Factor of both focal terms. At least one of this and `dice_weight` is above 0.
        dice_weight: Factor of both Dice terms.
        lesion_weight: Further factor of `lesion_dice` and `lesion_focal`, at least 0. `auto` is
            0.5, or 0 for a network that has boxes.
        smooth: As in `dice_loss`, for both Dice terms.
        has_boxes: True if the network predicts boxes too, whose loss is added to this one.

    Raises:
        ConfigError: A setting is outside its range.
    """

    def __init__(
        self,
        alpha: Alpha = 0.5,
        gamma: float = 1.0,
        activation: str = "sigmoid",
        focal_weight: float = 0.06,
        dice_weight: float = 1.0,
        lesion_weight: float | Literal["auto"] = "auto",
        smooth: float = 1.0,
        has_boxes: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha,
            gamma=gamma,
            reduction="per_positive",
            activation=activation,
            focal_weight=focal_weight,
            dice_weight=dice_weight,
            smooth=smooth,
        )
        if lesion_weight == "auto":
            lesion_weight = 0.0 if has_boxes else _LESION_WEIGHT
        require_weight("lesion_weight", lesion_weight)
        self.lesion_weight = lesion_weight
        if lesion_weight != 0:
            self.link = None  # voxels have different weights, for which no correction is known

    @property
    def needs_nearest(self) -> bool:
        """True if the loss has terms per lesion."""
        return self.lesion_weight != 0

    def forward(
        self,
        logits: Logits,
        labels: Labels,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
        nearest: Integer[Tensor, "b *spatial"] | None = None,
    ) -> LossTerms:
        """Compute the terms of a batch.

        `lesion_focal` is the mean over all cells. `lesion_dice` is the mean over all pairs of a
        cell and a class that its lesion has.

        Args:
            logits: As in `VoxelLoss`.
            labels: As in `VoxelLoss`.
            valid: As in `VoxelLoss`.
            normaliser: Divisor of the term `focal`. None uses the number of lesion voxels.
            nearest: The id of each voxel's nearest lesion, see `nearest_lesions`; not used if
                `lesion_weight` is 0. The memory grows with the highest id of a tile, so number the
                lesions of each tile from 1. With uint8, the host does not wait for a GPU.

        Raises:
            GeometryError: `nearest` is missing or has another shape.
            ConfigError: `normaliser` is a number that is not above 0.
        """
        if not self.needs_nearest:
            return super().forward(logits, labels, valid=valid, normaliser=normaliser)
        spatial = (logits.shape[0], *logits.shape[2:])
        if nearest is None or nearest.shape != spatial:
            given = None if nearest is None else tuple(nearest.shape)
            raise GeometryError(
                f"LesionBalancedLoss needs the nearest lesion of each voxel, of shape {spatial}, "
                f"not {given}. Pass nearest=nearest_lesions(instances) with the batch's lesion ids."
            )
        alpha = self.voxel_term.alpha
        gamma = self.voxel_term.gamma
        check_settings(alpha, gamma, "per_positive", normaliser)
        p, lesion = lesion_probabilities(logits, labels, self.activation, valid)
        focal = FOCAL[self.activation](
            logits, labels, alpha=alpha, gamma=gamma, reduction="none", valid=valid
        )
        # a sigmoid has one loss per class, a softmax one loss per voxel without a class axis
        if focal.ndim == p.ndim:
            focal = focal.sum(1)
        cells = _Cells.of(nearest)
        sums = _Sums(
            lesion=cells.sum_voxels(lesion),
            p=cells.sum_voxels(p),
            hit=cells.sum_voxels(p * lesion),
            focal=cells.sum_voxels(focal.unsqueeze(1)),
        )
        batch = sums.of_batch()
        # `lesion` contains only valid voxels, so `reduce_losses` needs no mask
        batch_focal = reduce_losses(batch.focal.sum(), lesion, None, "per_positive", normaliser)
        has_class = (sums.lesion > 0) & cells.is_cell
        has_lesion = has_class.any(1, keepdim=True)
        # as in "per_positive", the divisor counts the lesion's voxels, not those of its cell
        per_lesion = sums.focal / sums.lesion.sum(1, keepdim=True).clamp_min(1)
        lesion_dice = _mean(sums.dice(self.smooth), has_class)
        lesion_focal = _mean(per_lesion, has_lesion)
        return {
            "dice": self.dice_weight * batch.dice(self.smooth).mean(),
            "focal": self.voxel_weight * batch_focal,
            "lesion_dice": self.lesion_weight * self.dice_weight * lesion_dice,
            "lesion_focal": self.lesion_weight * self.voxel_weight * lesion_focal,
        }


def _mean(values: Float[Tensor, "*n"], is_counted: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Return the mean of the counted values, or 0 if no value is counted."""
    return values.where(is_counted, 0).sum() / is_counted.sum().clamp_min(1)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the voxels of each row of a table of cells.

    Attributes:
        lesion: Number of lesion voxels per class `[rows, k]`.
        p: Sum of the probabilities of all voxels per class `[rows, k]`.
        hit: Sum of the probabilities of the lesion voxels per class `[rows, k]`.
        focal: Sum of the focal losses `[rows, 1]`.
    """

    lesion: Float[Tensor, "rows k"]
    p: Float[Tensor, "rows k"]
    hit: Float[Tensor, "rows k"]
    focal: Float[Tensor, "rows 1"]

    def of_batch(self) -> "_Sums":
        """Return the sums over all rows, as a single row."""
        return _Sums(
            lesion=self.lesion.sum(0, keepdim=True),
            p=self.p.sum(0, keepdim=True),
            hit=self.hit.sum(0, keepdim=True),
            focal=self.focal.sum(0, keepdim=True),
        )

    def dice(self, smooth: float) -> Float[Tensor, "rows k"]:
        """Return the Dice loss of each row and class."""
        return dice_of_sums(self.hit, self.p, self.lesion, smooth)


@dataclass(frozen=True, eq=False)
class _Cells:
    """The cells of all lesions of a batch, as rows of a table.

    Every tile has `n_ids` rows, one per lesion id. Row 0 of a tile collects its voxels if the tile
    has no lesion. A row has several partial sums, to which the voxels along the last axis are added
    in turn. In a single sum, a large cell would lose small values, and a GPU would be slow, because
    it adds to one address one value after the other.

    Attributes:
        part_of_voxel: The number of the partial sum to which each voxel of the batch is added, from
            0 to 64 · `n_rows` − 1.
        n_rows: The number of rows.
        is_cell: False for row 0 of each tile `[rows, 1]`.
    """

    part_of_voxel: Integer[Tensor, " voxels"]
    n_rows: int
    is_cell: Bool[Tensor, "rows 1"]

    @classmethod
    def of(cls, nearest: Integer[Tensor, "b *spatial"]) -> "_Cells":
        """Make the rows from the nearest lesion of each voxel."""
        n_tiles = len(nearest)
        n_ids = _count_ids(nearest)
        n_spatial = nearest.ndim - 1
        tile = torch.arange(n_tiles, device=nearest.device).reshape((-1,) + (1,) * n_spatial)
        row = torch.arange(n_tiles * n_ids, device=nearest.device)
        part = torch.arange(nearest.shape[-1], device=nearest.device) % _N_PARTS
        return cls(
            part_of_voxel=((nearest.long() + n_ids * tile) * _N_PARTS + part).flatten(),
            n_rows=n_tiles * n_ids,
            is_cell=(row % n_ids > 0).unsqueeze(1),
        )

    def sum_voxels(self, values: Shaped[Tensor, "b k *spatial"]) -> Float[Tensor, "rows k"]:
        """Sum the values of all voxels of each row, class by class."""
        by_class = values.float().transpose(0, 1).flatten(1)  # [k, voxels of the batch]
        table = by_class.new_zeros(len(by_class), self.n_rows * _N_PARTS)
        parts = table.scatter_add(1, self.part_of_voxel.expand_as(by_class), by_class)
        return parts.reshape(len(by_class), self.n_rows, _N_PARTS).sum(2).T


def _count_ids(nearest: Integer[Tensor, "b *spatial"]) -> int:
    """Return the number of possible ids, including 0.

    On a GPU, uint8 gives 256 without reading the values, so that the host need not wait.
    """
    if nearest.dtype == torch.uint8 and nearest.device.type != "cpu":
        return 256
    return int(to_signed(nearest).max()) + 1 if nearest.numel() else 1


def nearest_lesions(instances: Integer[Tensor, "b *spatial"]) -> Integer[Tensor, "b *spatial"]:
    """Find the nearest lesion of each voxel within its tile.

    In tiles of more than 64³ voxels, blocks of two voxels along each axis are compared, which takes
    an eighth of the time in 3-D. A lesion that is chosen there may be farther than the nearest one
    by about a block.

    Args:
        instances: Lesion ids, 0 for background. Distances are in voxels.

    Returns:
        int32 ids of the same shape and device, 0 throughout a tile without lesions.

    >>> nearest_lesions(torch.tensor([[3, 0, 0, 0, 7], [0, 0, 0, 0, 0]])).tolist()
    [[3, 3, 3, 7, 7], [0, 0, 0, 0, 0]]
    """
    nearest = np.zeros(tuple(instances.shape), np.int32)
    for out, ids in zip(nearest, instances.cpu().numpy(), strict=True):
        highest = ids.max(initial=0)
        if ((ids == 0) | (ids == highest)).all():  # at most one lesion, the nearest one everywhere
            out[:] = highest
            continue
        if ids.size <= _LARGE_TILE:
            out[:] = _spread(ids)
            continue
        wide = _spread(block_maxima(ids, (2,) * ids.ndim))
        for axis, n in enumerate(ids.shape):
            wide = wide.repeat(2, axis=axis).take(range(n), axis=axis)
        out[:] = np.where(ids > 0, ids, wide)
    return torch.from_numpy(nearest).to(instances.device)


def _spread(ids: NDArray[Any]) -> NDArray[Any]:
    """Return the id of the lesion that is nearest to each voxel `[*spatial]`."""
    places = ndimage.distance_transform_edt(ids == 0, return_distances=False, return_indices=True)
    spread: NDArray[Any] = ids[tuple(places)]
    return spread
