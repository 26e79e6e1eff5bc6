"""Each lesion counts alike, whether it has 20 voxels or 20 000."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from scipy import ndimage
from torch import Tensor

from lesionseg.errors import GeometryError
from lesionseg.losses.base import Labels, Logits, LossTerms, Valid
from lesionseg.losses.dice import FOCAL, DiceFocalLoss, lesion_probabilities
from lesionseg.losses.focal import Alpha, Normaliser


class LesionBalancedLoss(DiceFocalLoss):
    """Dice and focal loss of the batch, plus the mean of both over the cells of its lesions.

    A lesion's cell is the voxels of its tile that are nearer to it than to any other lesion (as in
    CC-DiceCE, arXiv 2511.17146). In it, Dice is that of the lesion alone, and the focal loss is
    divided by the lesion's own voxels: a small lesion weighs as much as a large one.

    Terms: `dice`, `focal`, `lesion_dice`, `lesion_focal`; the last two are 0 without lesions.
    Settings as of `DiceFocalLoss`, for the lesions' terms too; these also have the factor
    `lesion_weight`. `forward` also takes `nearest` `[B, *spatial]`: see `nearest_lesions`. If it is
    uint8, a GPU is not waited for.
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
            alpha, gamma, "per_positive", activation, focal_weight, dice_weight, smooth
        )
        self.alpha, self.gamma, self.focal_weight = alpha, gamma, focal_weight
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
        """The terms; raises `GeometryError` without `nearest`."""
        spatial = (logits.shape[0], *logits.shape[2:])
        if nearest is None or nearest.shape != spatial:
            raise GeometryError(f"This loss needs the nearest lesions, of shape {spatial}.")
        terms = super().forward(logits, labels, valid=valid, normaliser=normaliser)
        p, lesion = lesion_probabilities(logits, labels, self.activation, valid)
        how: Any = {"alpha": self.alpha, "gamma": self.gamma, "reduction": "none", "valid": valid}
        focal = FOCAL[self.activation](logits, labels, **how)
        focal = focal.view(len(focal), -1, *p.shape[2:]).sum(1, keepdim=True)  # over the classes
        # one row per tile and lesion id; row 0 of a tile is what has no lesion
        width = _width(nearest)
        tiles = torch.arange(len(nearest), device=nearest.device).view(-1, *[1] * (p.ndim - 2))
        rows = (nearest.long() + width * tiles).flatten()

        def summed(values: Tensor) -> Tensor:
            """`[rows, classes]` of values `[B, classes, *spatial]`."""
            flat = values.float().transpose(0, 1).flatten(1).T
            return flat.new_zeros(len(nearest) * width, flat.shape[1]).index_add(0, rows, flat)

        size, total = summed(lesion), summed(p)
        has = (size > 0) & (torch.arange(len(size), device=size.device) % width > 0).unsqueeze(1)
        dice = 1 - (2 * summed(p * lesion) + self.smooth) / (total + size + self.smooth)
        own = size.sum(1, keepdim=True)
        is_lesion = has.any(1, keepdim=True)
        per_lesion = summed(focal) / own.clamp_min(1)
        dice_term = dice.where(has, 0).sum() / has.sum().clamp_min(1)
        focal_term = per_lesion.where(is_lesion, 0).sum() / is_lesion.sum().clamp_min(1)
        return terms | {
            "lesion_dice": self.lesion_weight * self.dice_weight * dice_term,
            "lesion_focal": self.lesion_weight * self.focal_weight * focal_term,
        }


def _width(nearest: Integer[Tensor, "b *spatial"]) -> int:
    """Return a number above all ids; by their dtype alone if that is small, without waiting."""
    if nearest.dtype == torch.uint8:
        return 256
    return int(nearest.max()) + 1 if nearest.numel() else 1


def nearest_lesions(instances: Integer[Tensor, "b *spatial"]) -> Integer[Tensor, "b *spatial"]:
    """The id of each voxel's nearest lesion in its tile, int32; 0 in a tile without lesions.

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
