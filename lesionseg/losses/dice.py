"""Dice loss, cross-entropy and focal loss as modules: `loss.*` weights, smoothing, named terms.

Focal loss and cross-entropy may each be combined with Dice.
"""

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lesionseg.errors import ConfigError
from lesionseg.losses.base import (
    LabelTensor,
    Logits,
    LossTerms,
    SumProcesses,
    Valid,
    VoxelLoss,
    own_sums,
)
from lesionseg.losses.focal import (
    Alpha,
    Normaliser,
    Reduction,
    as_number,
    check_settings,
    lesion_target,
    sigmoid_focal_loss,
    softmax_focal_loss,
)

FOCAL = {"sigmoid": sigmoid_focal_loss, "softmax": softmax_focal_loss}


def dice_loss(
    logits: Logits,
    labels: LabelTensor,
    *,
    activation: str = "sigmoid",
    valid: Valid = None,
    smooth: float = 1.0,
    per_tile: bool = False,
    sum_processes: SumProcesses = own_sums,
) -> Float[Tensor, ""]:
    """Compute the soft Dice loss, 1 − (2·Σ p·y + s) / (Σ p + Σ y + s), as a mean over classes.

    The formula is that of Milletari et al. 2016 with sums instead of sums of squares. The sums run
    over the voxels of the whole batch.

    Args:
        logits: `[B, K, *spatial]` for a sigmoid, `[B, 1+K, *spatial]` for a softmax.
        labels: `[B, *spatial]`, 0 for background and k for class k, or 0/1 `[B, K, *spatial]`.
        activation: `sigmoid` or `softmax`.
        valid: `[B, *spatial]`, False for voxels to ignore. None uses all voxels.
        smooth: The term s, in voxels, above 0. Without lesions, it keeps the loss within [0, 1] and
            gives it a gradient that lowers p.
        per_tile: True computes the loss of each tile and returns the mean over tiles and classes.
        sum_processes: As in `VoxelLoss`. It is not used if `per_tile` is True.

    Returns:
        fp32 scalar, 0 for empty input.

    Raises:
        ConfigError: If `smooth` is not a finite number above 0.
        GeometryError: If the shapes do not fit together.
        ContentError: If a label map or the logits have the wrong dtype.
    """
    _require_above_0("smooth", smooth)
    p, lesion = lesion_probabilities(logits, labels, activation, valid)
    summed_axes = tuple(range(2, p.ndim))  # the spatial axes
    if not per_tile:
        summed_axes = (0, *summed_axes)  # and the tiles of the batch
    sums = torch.stack(
        [torch.where(lesion, p, 0).sum(summed_axes), p.sum(summed_axes), lesion.sum(summed_axes)]
    )
    if not per_tile:
        sums = sum_processes(sums)
    hit, total, size = sums
    loss = dice_of_sums(hit, total, size, smooth)
    return loss.sum() / max(loss.numel(), 1)  # the mean, but 0 for empty input


def dice_of_sums(
    hit: Float[Tensor, "*n"], p: Float[Tensor, "*n"], size: Shaped[Tensor, "*n"], smooth: float
) -> Float[Tensor, "*n"]:
    """Compute soft Dice losses from sums over voxels, one loss per element.

    Args:
        hit: Sum of the probabilities over the lesion voxels.
        p: Sum of the probabilities over all voxels.
        size: Number of lesion voxels.
        smooth: The term s of `dice_loss`.
    """
    return 1 - (2 * hit + smooth) / (p + size + smooth)


def _require_above_0(name: str, value: float) -> None:
    """Raise `ConfigError` that names the setting if it is not a finite number above 0."""
    if not 0 < as_number(name, value) < math.inf:
        raise ConfigError(f"{name}={value} must be a finite number above 0.")


def require_weight(name: str, weight: float) -> None:
    """Raise `ConfigError` if a weight of a loss is negative or not finite.

    Args:
        name: The setting below `loss`, for the message.
        weight: Its value.
    """
    if not 0 <= as_number(f"loss.{name}", weight) < math.inf:
        raise ConfigError(f"loss.{name}={weight} must be a finite number of at least 0.")


def _require_weights(**weights: float) -> None:
    """Raise `ConfigError` if a weight of a combined loss is wrong, or if all its weights are 0.

    The weights are passed by the names of their settings. With all weights 0, nothing could be
    trained.
    """
    for name, weight in weights.items():
        require_weight(name, weight)
    if not any(weights.values()):
        zeros = " ".join(f"loss.{name}=0" for name in weights)
        raise ConfigError(f"{zeros} leaves no loss to train with. Set a weight above 0.")


def lesion_probabilities(
    logits: Logits, labels: LabelTensor, activation: str, valid: Valid
) -> tuple[Float[Tensor, "b k *spatial"], Bool[Tensor, "b k *spatial"]]:
    """Return the probability and the mask of each lesion class.

    Args:
        logits: As in `VoxelLoss`.
        labels: As in `VoxelLoss`.
        activation: `sigmoid` or `softmax`. The background channel of a softmax is left out.
        valid: As in `VoxelLoss`. Voxels that are not valid have p = 0 and belong to no lesion.

    Returns:
        Probabilities in fp32 and bool masks, both `[B, K, *spatial]`.
    """
    logits_fp32 = logits.float()
    p = (
        torch.softmax(logits_fp32, dim=1)[:, 1:]
        if activation == "softmax"
        else torch.sigmoid(logits_fp32)
    )
    lesion = lesion_target(labels, p)
    if valid is None:
        return p, lesion
    is_valid = valid.bool().unsqueeze(1)
    return p.masked_fill(~is_valid, 0), lesion & is_valid


class FocalLoss(VoxelLoss):
    """Focal loss as the term `focal`. Only a sigmoid has a `link`.

    Args:
        alpha: As in `sigmoid_focal_loss`.
        gamma: As in `sigmoid_focal_loss`.
        reduction: As in `sigmoid_focal_loss`, except `none`.
        activation: `sigmoid` or `softmax`.
        weight: Factor of the term, above 0.

    Raises:
        ConfigError: If a setting is outside its range.
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
        _require_above_0("loss.weight", weight)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.weight = weight
        # the settings by which `posterior_logits` corrects scores; it needs independent classes
        self.link = (alpha, gamma) if activation == "sigmoid" else None

    def forward(
        self,
        logits: Logits,
        labels: LabelTensor,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """Compute the term of a batch, with the arguments of `VoxelLoss.forward`.

        The normaliser is used only with the reduction `per_positive`.
        """
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
        lesion_weight: Weight of a lesion voxel. A background voxel has the weight 1. (In
            `LesionBalancedLoss`, this name is the factor of the terms per lesion.)
        reduction: As in `FocalLoss`.
        activation: `sigmoid` or `softmax`.
        weight: Factor of the term, above 0.

    Raises:
        ConfigError: If a setting is outside its range.
    """

    term = "cross_entropy"

    def __init__(
        self,
        lesion_weight: float = 1.0,
        reduction: Reduction = "mean",
        activation: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        _require_above_0("loss.lesion_weight", lesion_weight)
        _require_above_0("loss.weight", weight)
        # cross-entropy is the focal loss with γ = 0
        alpha = lesion_weight / (1 + lesion_weight)  # α : 1 − α = lesion_weight : 1
        super().__init__(
            alpha=alpha,
            gamma=0.0,
            reduction=reduction,
            activation=activation,
            weight=weight * (1 + lesion_weight),  # times 1 − α, background has `weight`
        )


class DiceFocalLoss(VoxelLoss):
    """Soft Dice plus focal loss, as the terms `dice` and `focal`.

    The scores are not corrected after training (`link` is None), unless `dice_weight` is 0 and the
    activation is a sigmoid. The Dice term already sharpens them: it drives p to 1 if the chance
    that a voxel is lesion is above Dice/2, and to 0 otherwise. `posterior_logits` would sharpen
    them a second time.

    With a softmax, α = ½, γ = 0, `reduction` mean, `focal_weight` 2 and `smooth` 1e-5, the loss
    equals that of nnU-Net plus the constant 1. `per_tile=True` corresponds to `batch_dice: false`
    in nnU-Net's plans.

    Args:
        alpha: As in `FocalLoss`.
        gamma: As in `FocalLoss`.
        reduction: As in `FocalLoss`.
        activation: `sigmoid` or `softmax`.
        focal_weight: Factor of the focal term. At least one of the two factors is above 0.
        dice_weight: Factor of the Dice term.
        smooth: As in `dice_loss`.
        per_tile: As in `dice_loss`.

    Raises:
        ConfigError: If a setting is outside its range.
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
        _require_weights(focal_weight=focal_weight, dice_weight=dice_weight)
        _require_above_0("loss.smooth", smooth)
        self.voxel_term = FocalLoss(
            alpha=alpha,
            gamma=gamma,
            reduction=reduction,
            activation=activation,
        )
        # no correction of scores (`posterior_logits`) is known for a sum with Dice
        self.link = self.voxel_term.link if dice_weight == 0 else None
        self.voxel_weight = focal_weight
        self.dice_weight = dice_weight
        self.smooth = smooth
        self.per_tile = per_tile

    def forward(
        self,
        logits: Logits,
        labels: LabelTensor,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """Compute the Dice term and the focal term, with the arguments of `VoxelLoss.forward`."""
        dice = dice_loss(
            logits,
            labels,
            activation=self.activation,
            valid=valid,
            smooth=self.smooth,
            per_tile=self.per_tile,
            sum_processes=self.sum_processes,
        )
        terms = self.voxel_term(logits, labels, valid=valid, normaliser=normaliser)
        weighted = {name: self.voxel_weight * term for name, term in terms.items()}
        return {"dice": self.dice_weight * dice, **weighted}


class DiceCrossEntropyLoss(DiceFocalLoss):
    """Soft Dice plus cross-entropy, as the terms `dice` and `cross_entropy`.

    Args:
        lesion_weight: As in `CrossEntropyLoss`.
        reduction: As in `CrossEntropyLoss`.
        activation: `sigmoid` or `softmax`.
        cross_entropy_weight: Factor of the cross-entropy term. At least one of the two factors is
            above 0.
        dice_weight: Factor of the Dice term.
        smooth: As in `dice_loss`.
        per_tile: As in `dice_loss`.

    Raises:
        ConfigError: If a setting is outside its range.
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
        _require_weights(cross_entropy_weight=cross_entropy_weight, dice_weight=dice_weight)
        super().__init__(
            activation=activation, dice_weight=dice_weight, smooth=smooth, per_tile=per_tile
        )
        # replaces the focal term of the base class
        self.voxel_term = CrossEntropyLoss(
            lesion_weight=lesion_weight, reduction=reduction, activation=activation
        )
        self.voxel_weight = cross_entropy_weight
        # no correction of scores (`posterior_logits`) is known for a sum with Dice
        self.link = self.voxel_term.link if dice_weight == 0 else None
