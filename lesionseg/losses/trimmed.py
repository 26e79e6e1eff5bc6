"""Losses that choose their voxels: without the hardest few, or with hardly any of the easy ones."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lesionseg.errors import require
from lesionseg.losses.focal import sigmoid_focal_loss, softmax_focal_loss
from lesionseg.losses.inputs import (
    Alpha,
    Normaliser,
    check_alpha,
    check_settings,
    everywhere,
    lesion_target,
)
from lesionseg.losses.voxel_loss import LossTerms, VoxelLoss


class TrimmedFocalLoss(VoxelLoss):
    """Focal loss without the hardest `percent` of voxels, suspected mislabels: the term `focal`.

    The hardest are sought among background and among lesion voxels apart. Early in training lesions
    are the hardest of all, and would be dropped first. Divided by the remaining lesion voxels or by
    `normaliser`. Start it from a trained network: an untrained one finds everything hard.
    """

    def __init__(
        self,
        percent: float = 0.1,
        lesion_percent: float = 0.1,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        activation: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        super().__init__(activation)
        for name, value in (("percent", percent), ("lesion_percent", lesion_percent)):
            require(0 <= value < 100, "A percentage lies in [0, 100).", where=name, seen=value)
        check_settings(gamma, "mean", None)
        check_alpha(alpha)
        self.percent, self.lesion_percent = percent, lesion_percent
        self.alpha, self.gamma, self.weight = alpha, gamma, weight

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The term `focal`."""
        loss, lesion, background = _loss_map(
            logits, labels, valid, self.alpha, self.gamma, self.activation
        )
        lesion = without_hardest(loss, lesion, self.lesion_percent / 100)
        background = without_hardest(loss, background, self.percent / 100)
        total = torch.where(lesion | background, loss, 0).sum()
        if normaliser is None:
            normaliser = lesion.sum().clamp_min(1)
        return {"focal": self.weight * total / normaliser}


class MinedCrossEntropyLoss(VoxelLoss):
    """Cross-entropy of all lesion voxels and of the hardest background: `cross_entropy`.

    Hard-negative mining as in SSD (Liu et al. 2016), what focal loss is compared with: `ratio`
    background voxels for each lesion voxel, at least `minimum`, the rest thrown away; the mean over
    those kept.
    """

    def __init__(
        self,
        ratio: float = 3.0,
        minimum: int = 100,
        activation: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        super().__init__(activation)
        known = f"ratio {ratio}, minimum {minimum}"
        require(ratio >= 0 and minimum >= 0, "ratio and minimum must be at least 0.", seen=known)
        self.ratio, self.minimum, self.weight = ratio, minimum, weight

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The term `cross_entropy`."""
        loss, lesion, background = _loss_map(logits, labels, valid, None, 0.0, self.activation)
        n_lesion = int(lesion.sum())
        n_kept = min(max(round(self.ratio * n_lesion), self.minimum), int(background.sum()))
        total = loss[lesion].sum() + loss[background].topk(n_kept).values.sum()
        return {"cross_entropy": self.weight * total / max(n_lesion + n_kept, 1)}


def without_hardest(
    loss: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], share: float
) -> Bool[Tensor, "*shape"]:
    """The mask without that share of its elements, rounded down, whose loss is highest.

    Elements as hard as the hardest kept one stay. Nothing waits for a GPU.
    """
    most = int(share * mask.numel())  # no more than this can be dropped, whatever the mask holds
    if most == 0:
        return mask
    hardest = torch.where(mask, loss.detach(), -1).flatten().topk(most + 1).values
    n_dropped = (share * mask.sum()).floor().long()
    return mask & (loss.detach() <= hardest.gather(0, n_dropped.view(1)))


def _loss_map(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    alpha: Alpha,
    gamma: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal loss of each element, and which are valid lesion and valid background."""
    function = softmax_focal_loss if activation == "softmax" else sigmoid_focal_loss
    loss = function(logits, labels, alpha=alpha, gamma=gamma, reduction="none", valid=valid)
    kept = everywhere(logits) if valid is None else valid.bool()
    if activation == "softmax":
        return loss, kept & (labels > 0), kept & (labels == 0)
    kept, lesion = kept.unsqueeze(1), lesion_target(labels, logits)
    return loss, kept & lesion, kept & ~lesion
