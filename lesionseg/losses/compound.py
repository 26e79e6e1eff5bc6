"""Focal loss, cross-entropy, and both with Dice, as modules with named terms."""

from typing import cast

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lesionseg.errors import require
from lesionseg.losses.focal import sigmoid_focal_loss, softmax_focal_loss
from lesionseg.losses.inputs import (
    Alpha,
    Normaliser,
    Reduction,
    check_alpha,
    check_settings,
    check_valid,
    lesion_target,
)
from lesionseg.losses.voxel_loss import LossTerms, VoxelLoss


def lesion_probabilities(
    logits: Float[Tensor, "b c *spatial"], activation: str
) -> Float[Tensor, "b k *spatial"]:
    """Probabilities of the K lesion classes in fp32; a softmax's background is dropped."""
    if activation == "softmax":
        return torch.softmax(logits.float(), dim=1)[:, 1:]
    return torch.sigmoid(logits.float())


def overlap_sums(
    probabilities: Float[Tensor, "b k *spatial"],
    lesion: Bool[Tensor, "b k *spatial"],
    valid: Bool[Tensor, "b *spatial"] | None = None,
    *,
    per_tile: bool = False,
) -> Float[Tensor, "3 *k"]:
    """Σ p·y, Σ p and Σ y of the valid voxels per class, over the whole batch or `per_tile`."""
    if valid is not None:
        keep = valid.bool().unsqueeze(1)
        probabilities = probabilities.masked_fill(~keep, 0)
        lesion = lesion & keep
    axes = (*([] if per_tile else [0]), *range(2, probabilities.ndim))
    hit = torch.where(lesion, probabilities, 0).sum(axes)
    return torch.stack([hit, probabilities.sum(axes), lesion.sum(axes).to(hit)])


def dice_loss(
    logits: Float[Tensor, "b c *spatial"],
    labels: Shaped[Tensor, "b *any"],
    *,
    activation: str = "sigmoid",
    valid: Bool[Tensor, "b *spatial"] | None = None,
    smooth: float = 1.0,
    per_tile: bool = False,
) -> Float[Tensor, ""]:
    """1 − (2·Σ p·y + s) / (Σ p + Σ y + s), summed over the batch, then the mean over classes.

    `labels`: a label map, or 0/1 of the probabilities' shape. `per_tile`: summed over each tile,
    then the mean over tiles and classes. Milletari et al. 2016 with sums instead of squares.
    Summing over the batch and `smooth` (in voxels) keep the loss of a lesion-free batch within
    [0, 1] with a gradient that lowers p. Empty input gives 0. fp32.
    """
    check_valid(logits, valid)
    probabilities = lesion_probabilities(logits, activation)
    lesion = lesion_target(labels, probabilities)
    hit, predicted, present = overlap_sums(probabilities, lesion, valid, per_tile=per_tile)
    overlap: Tensor = (2 * hit + smooth) / (predicted + present + smooth)
    return (1 - overlap).sum() / max(overlap.numel(), 1)


class FocalLoss(VoxelLoss):
    """Focal loss as the term `focal`; settings as in `sigmoid_focal_loss`."""

    def __init__(
        self,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        reduction: Reduction = "per_positive",
        activation: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        super().__init__(activation)
        one = reduction != "none"
        require(one, "A training loss is one number.", where="reduction", seen=reduction)
        check_settings(gamma, reduction, None)  # here, not at the first step of a training
        check_alpha(alpha)
        self.alpha, self.gamma, self.reduction, self.weight = alpha, gamma, reduction, weight

    @property
    def link(self) -> tuple[Alpha, float] | None:
        """α and γ for independent classes; nothing is undone for exclusive ones."""
        return (self.alpha, self.gamma) if self.activation == "sigmoid" else None

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The term `focal`."""
        function = softmax_focal_loss if self.activation == "softmax" else sigmoid_focal_loss
        loss = function(
            logits,
            labels,
            alpha=self.alpha,
            gamma=self.gamma,
            reduction=self.reduction,
            valid=valid,
            normaliser=normaliser if self.reduction == "per_positive" else None,
        )
        return {"focal": self.weight * loss}


class CrossEntropyLoss(VoxelLoss):
    """Cross-entropy (binary for a sigmoid) as the term `cross_entropy`.

    Lesion voxels count `lesion_weight` times. It is a focal loss with γ = 0.
    """

    def __init__(
        self,
        lesion_weight: float = 1.0,
        reduction: Reduction = "mean",
        activation: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        super().__init__(activation)
        positive = 0 < lesion_weight < float("inf")
        require(positive, "A weight must be above 0.", where="lesion_weight", seen=lesion_weight)
        # α : 1 − α = lesion_weight : 1
        alpha = lesion_weight / (1 + lesion_weight)
        self.focal = FocalLoss(alpha, 0.0, reduction, activation, weight * (1 + lesion_weight))

    @property
    def link(self) -> tuple[Alpha, float] | None:
        """α of the weight, γ = 0."""
        return self.focal.link

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The term `cross_entropy`."""
        terms = self.focal(logits, labels, valid=valid, normaliser=normaliser)
        return {"cross_entropy": terms["focal"]}


class _DiceAnd(VoxelLoss):
    """Soft Dice as the term `dice`, and the terms of another loss."""

    def __init__(self, other: VoxelLoss, dice_weight: float, smooth: float, per_tile: bool) -> None:
        super().__init__(other.activation)
        self.other = other
        self.dice_weight, self.smooth, self.per_tile = dice_weight, smooth, per_tile

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The term `dice` and the other loss's."""
        dice = dice_loss(
            logits,
            labels,
            activation=self.activation,
            valid=valid,
            smooth=self.smooth,
            per_tile=self.per_tile,
        )
        terms: LossTerms = self.other(logits, labels, valid=valid, normaliser=normaliser)
        return {"dice": self.dice_weight * dice, **terms}


class DiceFocalLoss(_DiceAnd):
    """Soft Dice plus focal loss, the terms `dice` and `focal`; `per_tile` as in `dice_loss`.

    With a softmax, α ½, γ 0, `reduction` mean, `focal_weight` 2 and `smooth` 1e-5 it is nnU-Net's
    loss plus 1 (there −Dice stands for 1 − Dice); `per_tile` is what its plans call a `batch_dice`
    of false.

    Args:
        alpha: of the focal loss: the weight of lesions, 0 to 1, or one per class; None for none.
        gamma: of the focal loss: 0 is cross-entropy.
        reduction: of the focal loss, see `sigmoid_focal_loss`.
        activation: `sigmoid` or `softmax`.
        focal_weight: factor of the term `focal`.
        dice_weight: factor of the term `dice`.
        smooth: voxels added above and below Dice's fraction line, so that empty tiles have a value.
        per_tile: one Dice for each tile and their mean, in place of one for the batch.
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
        focal = FocalLoss(alpha, gamma, reduction, activation, focal_weight)
        super().__init__(focal, dice_weight, smooth, per_tile)

    @property
    def focal(self) -> FocalLoss:
        """The focal term."""
        return cast(FocalLoss, self.other)

    @property
    def link(self) -> tuple[Alpha, float] | None:
        """The focal term's; Dice asks for 0 or 1, which undoing α and γ leaves as they are."""
        return self.focal.link


class DiceCrossEntropyLoss(_DiceAnd):
    """Soft Dice plus cross-entropy, the terms `dice` and `cross_entropy`; no link.

    Args:
        lesion_weight: of a lesion voxel against one of background.
        reduction: of the cross-entropy, see `sigmoid_focal_loss`.
        activation: `sigmoid` or `softmax`.
        cross_entropy_weight: factor of the term `cross_entropy`.
        dice_weight: factor of the term `dice`.
        smooth: voxels added above and below Dice's fraction line, so that empty tiles have a value.
        per_tile: one Dice for each tile and their mean, in place of one for the batch.
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
        other = CrossEntropyLoss(lesion_weight, reduction, activation, cross_entropy_weight)
        super().__init__(other, dice_weight, smooth, per_tile)
