"""Focal loss and cross-entropy as modules with named terms, each also combined with Dice."""

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
    """Compute the soft Dice loss, 1 − (2·Σ p·y + s) / (Σ p + Σ y + s), as a mean over classes.

    The formula is that of Milletari et al. 2016 with sums instead of sums of squares. The sums run
    over the voxels of the whole batch.

    Args:
        logits: `[B, K, *spatial]` for a sigmoid, `[B, 1+K, *spatial]` for a softmax.
        labels: `[B, *spatial]`, 0 for background and k for class k, or 0/1 `[B, K, *spatial]`.
        activation: `sigmoid` or `softmax`.
        valid: `[B, *spatial]`, False for voxels to ignore. None uses all voxels.
        smooth: s, in voxels. Without lesions, it keeps the loss within [0, 1] and gives it a
            gradient that lowers p.
        per_tile: True computes the loss of each tile and returns the mean over tiles and classes.

    Returns:
        fp32 scalar, 0 for empty input.

    Raises:
        GeometryError: The shapes do not fit together.
        ContentError: A label map or the logits have the wrong dtype.
    """
    p, lesion = lesion_probabilities(logits, labels, activation, valid)
    axes = tuple(range(2, p.ndim))
    if not per_tile:
        axes = (0, *axes)
    hit = torch.where(lesion, p, 0).sum(axes)
    overlap: Tensor = (2 * hit + smooth) / (p.sum(axes) + lesion.sum(axes) + smooth)
    return (1 - overlap).sum() / max(overlap.numel(), 1)


def lesion_probabilities(
    logits: Logits, labels: Labels, activation: str, valid: Valid
) -> tuple[Float[Tensor, "b k *spatial"], Bool[Tensor, "b k *spatial"]]:
    """Return p of each lesion class in fp32 and the mask of its voxels.

    Voxels that are not valid have p = 0 and belong to no lesion.
    """
    x = logits.float()
    p = torch.softmax(x, dim=1)[:, 1:] if activation == "softmax" else torch.sigmoid(x)
    lesion = lesion_target(labels, p)
    if valid is None:
        return p, lesion
    keep = valid.bool().unsqueeze(1)
    return p.masked_fill(~keep, 0), lesion & keep


class FocalLoss(VoxelLoss):
    """Focal loss as the term `focal`.

    Args:
        alpha: As in `sigmoid_focal_loss`.
        gamma: As in `sigmoid_focal_loss`.
        reduction: As in `sigmoid_focal_loss`, except `none`.
        activation: `sigmoid` or `softmax`.
        weight: Factor of the term.

    Raises:
        ConfigError: A setting is outside its range.
    """

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
            raise ConfigError(
                "loss.reduction=none gives no single number to train with. "
                "Set it to per_positive, mean or sum."
            )
        check_settings(alpha, gamma, reduction)  # before the training, not at its first step
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.weight = weight
        # the correction is derived for independent classes
        self.link = (alpha, gamma) if activation == "sigmoid" else None

    def forward(
        self, logits: Logits, labels: Labels, *, valid: Valid = None, normaliser: Normaliser = None
    ) -> LossTerms:
        """Compute the term of a batch, see `VoxelLoss.forward`."""
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
    """Cross-entropy as the term `cross_entropy`, binary for a sigmoid: a focal loss with γ = 0.

    Args:
        lesion_weight: Weight of a lesion voxel. A background voxel has the weight 1.
        reduction: As in `FocalLoss`.
        activation: `sigmoid` or `softmax`.
        weight: Factor of the term.

    Raises:
        ConfigError: A setting is outside its range.
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
            raise ConfigError(f"loss.lesion_weight={lesion_weight} must be above 0 and finite.")
        alpha = lesion_weight / (1 + lesion_weight)  # α : 1 − α = lesion_weight : 1
        super().__init__(
            alpha=alpha,
            gamma=0.0,
            reduction=reduction,
            activation=activation,
            weight=weight * (1 + lesion_weight),
        )


class DiceFocalLoss(VoxelLoss):
    """Soft Dice plus focal loss, as the terms `dice` and `focal`.

    The scores are not corrected after training (`link` is None), unless `dice_weight` is 0. The
    Dice term already sharpens them: it drives p to 1 if the chance that a voxel is lesion is above
    Dice/2, and to 0 otherwise. `posterior_logits` would sharpen them a second time.

    With a softmax, α = ½, γ = 0, `reduction` mean, `focal_weight` 2 and `smooth` 1e-5, the loss
    equals that of nnU-Net plus the constant 1. `per_tile=True` corresponds to `batch_dice: false`
    in nnU-Net's plans.

    Args:
        alpha: As in `FocalLoss`.
        gamma: As in `FocalLoss`.
        reduction: As in `FocalLoss`.
        activation: `sigmoid` or `softmax`.
        focal_weight: Factor of the focal term.
        dice_weight: Factor of the Dice term.
        smooth: As in `dice_loss`.
        per_tile: As in `dice_loss`.

    Raises:
        ConfigError: A setting is outside its range.
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
        self.voxel_term: VoxelLoss = FocalLoss(
            alpha=alpha,
            gamma=gamma,
            reduction=reduction,
            activation=activation,
            weight=focal_weight,
        )
        self.link = self.voxel_term.link if dice_weight == 0 else None
        self.dice_weight = dice_weight
        self.smooth = smooth
        self.per_tile = per_tile

    def forward(
        self, logits: Logits, labels: Labels, *, valid: Valid = None, normaliser: Normaliser = None
    ) -> LossTerms:
        """Compute both terms of a batch, see `VoxelLoss.forward`."""
        dice = dice_loss(
            logits,
            labels,
            activation=self.activation,
            valid=valid,
            smooth=self.smooth,
            per_tile=self.per_tile,
        )
        terms: LossTerms = self.voxel_term(logits, labels, valid=valid, normaliser=normaliser)
        return {"dice": self.dice_weight * dice, **terms}


class DiceCrossEntropyLoss(DiceFocalLoss):
    """Soft Dice plus cross-entropy, as the terms `dice` and `cross_entropy`.

    Args:
        lesion_weight: As in `CrossEntropyLoss`.
        reduction: As in `CrossEntropyLoss`.
        activation: `sigmoid` or `softmax`.
        cross_entropy_weight: Factor of the cross-entropy term.
        dice_weight: Factor of the Dice term.
        smooth: As in `dice_loss`.
        per_tile: As in `dice_loss`.

    Raises:
        ConfigError: A setting is outside its range.
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
        self.voxel_term = CrossEntropyLoss(
            lesion_weight=lesion_weight,
            reduction=reduction,
            activation=activation,
            weight=cross_entropy_weight,
        )
        self.link = self.voxel_term.link if dice_weight == 0 else None
