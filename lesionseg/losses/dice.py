"""Focal loss, cross-entropy, and both with Dice, as modules with named terms."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lesionseg.errors import ConfigError
from lesionseg.losses.base import Labels, Logits, LossTerms, Valid, VoxelLoss
from lesionseg.losses.focal import (
    Alpha,
    Normaliser,
    Reduction,
    check_settings,
    lesion_target,
    sigmoid_focal_loss,
    softmax_focal_loss,
)

FOCAL = {"sigmoid": sigmoid_focal_loss, "softmax": softmax_focal_loss}


def dice_loss(
    logits: Logits,
    labels: Labels,
    *,
    activation: str = "sigmoid",
    valid: Valid = None,
    smooth: float = 1.0,
    per_tile: bool = False,
) -> Float[Tensor, ""]:
    """1 − (2·Σ p·y + s) / (Σ p + Σ y + s), summed over the batch, then the mean over classes.

    `labels`: a label map, or 0/1 of the probabilities' shape. `per_tile`: the mean over tiles, too.
    Milletari et al. 2016 with sums instead of squares. `smooth` (in voxels) keeps the loss of a
    lesion-free batch within [0, 1] with a gradient that lowers p. Empty input gives 0. fp32.
    """
    p, lesion = lesion_probabilities(logits, labels, activation, valid)
    axes = (*([] if per_tile else [0]), *range(2, p.ndim))
    hit = torch.where(lesion, p, 0).sum(axes)
    overlap: Tensor = (2 * hit + smooth) / (p.sum(axes) + lesion.sum(axes) + smooth)
    return (1 - overlap).sum() / max(overlap.numel(), 1)


def lesion_probabilities(
    logits: Logits, labels: Labels, activation: str, valid: Valid
) -> tuple[Float[Tensor, "b k *spatial"], Bool[Tensor, "b k *spatial"]]:
    """p of each lesion class in fp32, and whether it is there; 0 and False where not valid."""
    x = logits.float()
    p = torch.softmax(x, dim=1)[:, 1:] if activation == "softmax" else torch.sigmoid(x)
    lesion = lesion_target(labels, p)
    if valid is None:
        return p, lesion
    keep = valid.bool().unsqueeze(1)
    return p.masked_fill(~keep, 0), lesion & keep


class FocalLoss(VoxelLoss):
    """Focal loss as the term `focal`; settings as in `sigmoid_focal_loss`."""

    term = "focal"

    def __init__(
        self,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        reduction: Reduction = "per_positive",
        activation: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        super().__init__(activation)
        if reduction == "none":
            raise ConfigError("loss.reduction=none: a training loss must be one number.")
        check_settings(alpha, gamma, reduction)  # here, not at the first step of a training
        self.alpha, self.gamma, self.reduction, self.weight = alpha, gamma, reduction, weight
        self.link = (alpha, gamma) if activation == "sigmoid" else None  # of independent classes

    def forward(
        self, logits: Logits, labels: Labels, *, valid: Valid = None, normaliser: Normaliser = None
    ) -> LossTerms:
        loss = FOCAL[self.activation](
            logits,
            labels,
            alpha=self.alpha,
            gamma=self.gamma,
            reduction=self.reduction,
            valid=valid,
            normaliser=normaliser if self.reduction == "per_positive" else None,
        )
        return {self.term: self.weight * loss}


class CrossEntropyLoss(FocalLoss):
    """Cross-entropy (binary for a sigmoid) as the term `cross_entropy`: a focal loss with γ = 0.

    Lesion voxels count `lesion_weight` times.
    """

    term = "cross_entropy"

    def __init__(
        self,
        lesion_weight: float = 1.0,
        reduction: Reduction = "mean",
        activation: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        if not 0 < lesion_weight < float("inf"):
            raise ConfigError(f"loss.lesion_weight={lesion_weight} must be above 0.")
        alpha = lesion_weight / (1 + lesion_weight)  # α : 1 − α = lesion_weight : 1
        super().__init__(alpha, 0.0, reduction, activation, weight * (1 + lesion_weight))


class DiceFocalLoss(VoxelLoss):
    """Soft Dice plus focal loss, the terms `dice` and `focal`.

    Its scores are not corrected (`link` is None). Dice already pushes a voxel of chance q to 1
    above q = Dice/2 and to 0 below; undoing γ as well would sharpen twice.

    With a softmax, α ½, γ 0, `reduction` mean, `focal_weight` 2 and `smooth` 1e-5 it is nnU-Net's
    loss plus 1; `per_tile` is what its plans call a `batch_dice` of false.

    `alpha`, `gamma`, `reduction`: of the focal loss. `smooth`, `per_tile`: of `dice_loss`.
    `focal_weight`, `dice_weight`: factors of the terms.
    """

    def __init__(
        self,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        reduction: Reduction = "per_positive",
        activation: str = "sigmoid",
        focal_weight: float = 1.0,
        dice_weight: float = 1.0,
        smooth: float = 1.0,
        per_tile: bool = False,
    ) -> None:
        super().__init__(activation)
        self.other: VoxelLoss = FocalLoss(alpha, gamma, reduction, activation, focal_weight)
        self.dice_weight, self.smooth, self.per_tile = dice_weight, smooth, per_tile

    def forward(
        self, logits: Logits, labels: Labels, *, valid: Valid = None, normaliser: Normaliser = None
    ) -> LossTerms:
        how: Any = {"activation": self.activation, "smooth": self.smooth, "per_tile": self.per_tile}
        dice = dice_loss(logits, labels, valid=valid, **how)
        terms: LossTerms = self.other(logits, labels, valid=valid, normaliser=normaliser)
        return {"dice": self.dice_weight * dice, **terms}


class DiceCrossEntropyLoss(DiceFocalLoss):
    """Soft Dice plus cross-entropy, the terms `dice` and `cross_entropy`.

    `lesion_weight`: of a lesion voxel against one of background; all else as `DiceFocalLoss`.
    """

    def __init__(
        self,
        lesion_weight: float = 1.0,
        reduction: Reduction = "mean",
        activation: str = "sigmoid",
        cross_entropy_weight: float = 1.0,
        dice_weight: float = 1.0,
        smooth: float = 1.0,
        per_tile: bool = False,
    ) -> None:
        super().__init__(
            activation=activation, dice_weight=dice_weight, smooth=smooth, per_tile=per_tile
        )
        self.other = CrossEntropyLoss(lesion_weight, reduction, activation, cross_entropy_weight)
