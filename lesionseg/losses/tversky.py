"""Overlap losses that focus: focal Tversky and unified focal loss."""

from math import prod

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lesionseg.errors import require
from lesionseg.losses.compound import FocalLoss, lesion_probabilities, overlap_sums
from lesionseg.losses.inputs import Normaliser, check_valid, lesion_target, spatial_shape
from lesionseg.losses.voxel_loss import LossTerms, VoxelLoss

_SMALLEST = 1e-6  # a power below 1 of less would have an endless slope


def tversky_distance(
    sums: Float[Tensor, "3 k"], false_negative_weight: float, smooth: float = 1.0
) -> Float[Tensor, " k"]:
    """One minus the Tversky index of Σ p·y, Σ p and Σ y, in [0, 1); 0 when both are empty.

    (d·FN + (1−d)·FP) / (TP + d·FN + (1−d)·FP + s), Salehi et al. 2017, written without 1 − index
    so that small distances keep their digits.
    """
    hit, predicted, present = sums
    missed, false = (present - hit).clamp_min(0), (predicted - hit).clamp_min(0)
    wrong = false_negative_weight * missed + (1 - false_negative_weight) * false
    distance: Tensor = wrong / (hit + wrong + smooth)
    return distance


class FocalTverskyLoss(VoxelLoss):
    """(1 − Tversky index)^(1/γ), the mean over classes, as the term `focal_tversky`.

    Abraham & Khan 2019, arXiv 1810.07842: missed lesion voxels weigh 0.7 against 0.3 for false
    ones, γ = 4/3. Sums run over the whole batch.
    """

    def __init__(
        self,
        false_negative_weight: float = 0.7,
        gamma: float = 4 / 3,
        activation: str = "sigmoid",
        weight: float = 1.0,
        smooth: float = 1.0,
    ) -> None:
        super().__init__(activation)
        _check_share(false_negative_weight, "false_negative_weight")
        require(gamma > 0, "γ must be above 0.", where="gamma", seen=gamma)
        self.false_negative_weight, self.gamma = false_negative_weight, gamma
        self.weight, self.smooth = weight, smooth

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The term `focal_tversky`."""
        sums = _lesion_sums(logits, labels, self.activation, valid)
        distance = tversky_distance(sums, self.false_negative_weight, self.smooth)
        loss = distance.clamp_min(_SMALLEST).pow(1 / self.gamma).mean()
        return {"focal_tversky": self.weight * loss}


class UnifiedFocalLoss(VoxelLoss):
    """Asymmetric unified focal loss (Yeung et al. 2022), the terms `focal` and `focal_tversky`.

    λ · [δ · CE of lesion + (1−δ) · focal CE of background, mean over voxels]
    + (1−λ) · mean over classes of [(1−TI)^(1−γ) for lesions, 1−TI for background].
    Only background is silenced, only lesions are enhanced. Unlike the authors' it takes any number
    of classes and lesion-free batches; a sigmoid's classes each have their own background.
    """

    def __init__(
        self,
        share: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        activation: str = "sigmoid",
        smooth: float = 1.0,
    ) -> None:
        super().__init__(activation)
        for name, value in (("share", share), ("delta", delta)):
            _check_share(value, name)
        require(0 <= gamma < 1, "γ must lie in [0, 1).", where="gamma", seen=gamma)
        self.share, self.delta, self.gamma, self.smooth = share, delta, gamma, smooth
        # α = 1 leaves lesion voxels alone, α = 0 background
        self.lesion = FocalLoss(1.0, 0.0, "mean", activation, delta)
        self.background = FocalLoss(0.0, gamma, "mean", activation, 1 - delta)

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The terms `focal` and `focal_tversky`."""
        lesion = self.lesion(logits, labels, valid=valid)["focal"]
        background = self.background(logits, labels, valid=valid)["focal"]
        sums = _lesion_sums(logits, labels, self.activation, valid)
        return {
            "focal": self.share * (lesion + background),
            "focal_tversky": (1 - self.share)
            * self._overlap(sums, prod(spatial_shape(logits)) if valid is None else valid.sum()),
        }

    def _overlap(self, sums: Float[Tensor, "3 k"], n_valid: int | Tensor) -> Float[Tensor, ""]:
        distance = tversky_distance(sums, self.delta, self.smooth)
        lesion = distance.clamp_min(_SMALLEST).pow(1 - self.gamma)
        if self.activation == "softmax":  # one background for all: what is no lesion of any class
            sums = sums.sum(1, keepdim=True)
        hit, predicted, present = sums
        # p and y of background are 1 − p and 1 − y
        empty = torch.stack(
            [n_valid - predicted - present + hit, n_valid - predicted, n_valid - present]
        )
        background = tversky_distance(empty, self.delta, self.smooth)
        return torch.cat([lesion, background]).mean()


def _lesion_sums(
    logits: Tensor, labels: Tensor, activation: str, valid: Tensor | None
) -> Float[Tensor, "3 k"]:
    check_valid(logits, valid)
    probabilities = lesion_probabilities(logits, activation)
    return overlap_sums(probabilities, lesion_target(labels, probabilities), valid)


def _check_share(value: float, name: str) -> None:
    require(0 <= value <= 1, "A share must lie in [0, 1].", where=name, seen=value)
