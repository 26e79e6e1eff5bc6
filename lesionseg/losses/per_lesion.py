"""A loss in which each lesion has the same weight, whether it has 20 voxels or 20 000."""

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy import ndimage
from torch import Tensor

from lesionseg.errors import GeometryError
from lesionseg.losses.base import Labels, Logits, LossTerms, Valid
from lesionseg.losses.dice import FOCAL, DiceFocalLoss, lesion_probabilities
from lesionseg.losses.focal import Alpha, Normaliser


class LesionBalancedLoss(DiceFocalLoss):
    """Dice and focal loss of the batch, plus the mean of both over the cells of its lesions.

    The cell of a lesion consists of the voxels of its tile that are nearer to it than to any other
    lesion (as in CC-DiceCE, arXiv 2511.17146). Within the cell, Dice is computed for this lesion
    only, and the focal loss is divided by the number of its voxels. A small lesion therefore has
    the same weight as a large one.

    The terms are `dice`, `focal`, `lesion_dice` and `lesion_focal`. The last two are 0 for a batch
    without lesions.

    Args:
        alpha: As in `DiceFocalLoss`. This and the following settings apply to all four terms.
        gamma: As in `DiceFocalLoss`.
        activation: `sigmoid` or `softmax`.
        focal_weight: Factor of both focal terms.
        dice_weight: Factor of both Dice terms.
        lesion_weight: Further factor of `lesion_dice` and `lesion_focal`.
        smooth: As in `dice_loss`.
    """

    def __init__(
        self,
        alpha: Alpha = 0.5,
        gamma: float = 1.0,
        activation: str = "sigmoid",
        focal_weight: float = 0.06,
        dice_weight: float = 1.0,
        lesion_weight: float = 1.0,
        smooth: float = 1.0,
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
        self.alpha = alpha
        self.gamma = gamma
        self.focal_weight = focal_weight
        self.lesion_weight = lesion_weight

    def forward(
        self,
        logits: Logits,
        labels: Labels,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
        nearest: Integer[Tensor, "b *spatial"] | None = None,
    ) -> LossTerms:
        """Compute the four terms of a batch.

        Args:
            logits: As in `VoxelLoss`.
            labels: As in `VoxelLoss`.
            valid: As in `VoxelLoss`.
            normaliser: Divisor of the term `focal`.
            nearest: The id of each voxel's nearest lesion, see `nearest_lesions`. With uint8 the
                host need not wait for a GPU.

        Raises:
            GeometryError: `nearest` is missing or has another shape.
        """
        spatial = (logits.shape[0], *logits.shape[2:])
        if nearest is None or nearest.shape != spatial:
            raise GeometryError(f"This loss needs the nearest lesions, of shape {spatial}.")
        terms = super().forward(logits, labels, valid=valid, normaliser=normaliser)
        p, lesion = lesion_probabilities(logits, labels, self.activation, valid)
        focal = FOCAL[self.activation](
            logits, labels, alpha=self.alpha, gamma=self.gamma, reduction="none", valid=valid
        )
        focal = focal.view(len(focal), -1, *p.shape[2:]).sum(1, keepdim=True)  # over the classes
        # one row per tile and lesion id: row 0 of a tile collects the voxels without a lesion
        n_ids = _limit_of_ids(nearest)
        n_rows = len(nearest) * n_ids
        tiles = torch.arange(len(nearest), device=nearest.device).view(-1, *[1] * (p.ndim - 2))
        rows = (nearest.long() + n_ids * tiles).flatten()
        size = _sum_by_row(lesion, rows, n_rows)
        total = _sum_by_row(p, rows, n_rows)
        hit = _sum_by_row(p * lesion, rows, n_rows)
        is_cell = (torch.arange(n_rows, device=size.device) % n_ids > 0).unsqueeze(1)
        has_class = (size > 0) & is_cell
        dice = 1 - (2 * hit + self.smooth) / (total + size + self.smooth)
        dice_term = dice.where(has_class, 0).sum() / has_class.sum().clamp_min(1)
        has_lesion = has_class.any(1, keepdim=True)
        n_voxels = size.sum(1, keepdim=True)
        per_lesion = _sum_by_row(focal, rows, n_rows) / n_voxels.clamp_min(1)
        focal_term = per_lesion.where(has_lesion, 0).sum() / has_lesion.sum().clamp_min(1)
        return terms | {
            "lesion_dice": self.lesion_weight * self.dice_weight * dice_term,
            "lesion_focal": self.lesion_weight * self.focal_weight * focal_term,
        }


def _sum_by_row(
    values: Float[Tensor, "b k *spatial"], rows: Integer[Tensor, " voxels"], n_rows: int
) -> Float[Tensor, "rows k"]:
    """Sum the values of all voxels of a row, class by class; `rows` has the row of each voxel."""
    flat = values.float().transpose(0, 1).flatten(1).T
    return flat.new_zeros(n_rows, flat.shape[1]).index_add(0, rows, flat)


def _limit_of_ids(nearest: Integer[Tensor, "b *spatial"]) -> int:
    """Return a number above all ids. uint8 gives 256, so that the host need not wait for a GPU."""
    if nearest.dtype == torch.uint8:
        return 256
    return int(nearest.max()) + 1 if nearest.numel() else 1


def nearest_lesions(instances: Integer[Tensor, "b *spatial"]) -> Integer[Tensor, "b *spatial"]:
    """Find the nearest lesion of each voxel within its tile.

    Args:
        instances: Lesion ids, 0 for background. Distances are in voxels.

    Returns:
        int32 ids of the same shape and device, 0 throughout a tile without lesions.

    >>> nearest_lesions(torch.tensor([[3, 0, 0, 0, 7], [0, 0, 0, 0, 0]])).tolist()
    [[3, 3, 3, 7, 7], [0, 0, 0, 0, 0]]
    """
    nearest = np.zeros(tuple(instances.shape), np.int32)
    for cells, ids in zip(nearest, instances.cpu().numpy(), strict=True):
        if ids.any():
            places = ndimage.distance_transform_edt(
                ids == 0, return_distances=False, return_indices=True
            )
            cells[:] = ids[tuple(places)]
    return torch.from_numpy(nearest).to(instances.device)
