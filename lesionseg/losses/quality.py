"""Focal losses for detection scores that say how well a box fits, not only that there is a lesion.

`quality` is 0 for background and, in the column of its class, the overlap (IoU) of a positive
anchor's box with its lesion.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from lesionseg.errors import ContentError, GeometryError
from lesionseg.losses.focal import divided
from lesionseg.losses.inputs import Normaliser, Reduction, check_settings
from lesionseg.ops.kernels.focal_plain import FocalSums


def quality_focal_loss(
    logits: Float[Tensor, "*shape"],
    quality: Float[Tensor, "*shape"],
    *,
    beta: float = 2.0,
    reduction: Reduction = "per_positive",
    valid: Bool[Tensor, "*shape"] | None = None,
    normaliser: Normaliser = None,
) -> Float[Tensor, "..."]:
    """|q − p|^β · cross-entropy of p with q (Li et al. 2020, arXiv 2006.04388, equation 5).

    Least where p = q. Logits and qualities in [0, 1] `[n, K]`; the reductions are those of
    `sigmoid_focal_loss`, a positive has quality above 0. fp32; nothing to judge gives 0. Raises
    `ConfigError`, `GeometryError`, `ContentError` as that does.

    >>> quality_focal_loss(torch.tensor([[0.0]]), torch.tensor([[0.5]])).item()
    0.0
    """
    check_settings(beta, reduction, normaliser)
    logits, quality = _scores(logits, quality)
    loss = _cross_entropy(logits, quality)
    if beta != 0:
        loss = (quality - torch.sigmoid(logits)).abs().pow(beta) * loss
    return _reduced(loss, quality > 0, valid, reduction, normaliser)


def varifocal_loss(
    logits: Float[Tensor, "*shape"],
    quality: Float[Tensor, "*shape"],
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    reduction: Reduction = "per_positive",
    valid: Bool[Tensor, "*shape"] | None = None,
    normaliser: Normaliser = None,
) -> Float[Tensor, "..."]:
    """Varifocal loss (Zhang et al. 2021, arXiv 2008.13367, equation 2).

    q · cross-entropy of p with q for positives, so that good boxes teach most; α · p^γ ·
    (−log(1 − p)) for background, whose easy part alone is silenced. All else as
    `quality_focal_loss`.

    Args:
        logits: of any shape.
        quality: q of the logits' shape, 0 to 1: of a positive its box's IoU, 0 is background.
        alpha: the weight of background, 0 to 1.
        gamma: how fast easy background falls silent, 0 or more.
        reduction: `none`, `sum`, `mean` or `per_positive`.
        valid: of the logits' shape; False leaves out.
        normaliser: what `per_positive` divides by; None for the number of positives, at least 1.
    """
    check_settings(gamma, reduction, normaliser)
    logits, quality = _scores(logits, quality)
    background = alpha * torch.exp(gamma * F.logsigmoid(logits)) * -F.logsigmoid(-logits)
    loss = torch.where(quality > 0, quality * _cross_entropy(logits, quality), background)
    return _reduced(loss, quality > 0, valid, reduction, normaliser)


def _scores(logits: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != quality.shape:
        raise GeometryError(
            "The qualities do not fit the logits.",
            seen=tuple(quality.shape),
            expected=tuple(logits.shape),
        )
    if not logits.is_floating_point() or not quality.is_floating_point():
        raise ContentError(
            "Logits and qualities must be floating point.",
            seen=f"{logits.dtype} and {quality.dtype}",
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits, quality.to(logits.dtype)


def _cross_entropy(logits: Tensor, quality: Tensor) -> Tensor:
    return -quality * F.logsigmoid(logits) - (1 - quality) * F.logsigmoid(-logits)


def _reduced(
    loss: Tensor,
    positive: Tensor,
    valid: Tensor | None,
    reduction: Reduction,
    normaliser: Normaliser,
) -> Tensor:
    kept = torch.ones_like(positive) if valid is None else valid.bool().expand_as(loss)
    loss = torch.where(kept, loss, 0)
    if reduction == "none":
        return loss
    sums = FocalSums(loss.sum(), (positive & kept).sum(), kept.sum())
    return divided(sums, reduction, normaliser)
