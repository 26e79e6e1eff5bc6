"""Focal loss (Lin et al. 2017, arXiv 1708.02002) for voxels of any dimension and for anchors.

    FL(p_t) = −α_t · (1 − p_t)^γ · log p_t

α_t weights the class of the truth: α for lesion, 1 − α for background. γ = 0 and α = ½ is half of
the cross-entropy, γ = 0 without α is the cross-entropy.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from lesionseg.losses.inputs import (
    Alpha,
    Normaliser,
    Reduction,
    check_label_shape,
    check_logits,
    check_settings,
    check_valid,
    check_values,
    is_label_map,
    labelled,
    sigmoid_weights,
    softmax_weights,
)
from lesionseg.ops.kernels.focal_fused import fused_sigmoid_sums, fused_softmax_sums
from lesionseg.ops.kernels.focal_plain import (
    FocalSums,
    lesion_of_class,
    sigmoid_focal_plain,
    soft_focal_plain,
    softmax_focal_plain,
)


def sigmoid_focal_loss(
    logits: Float[Tensor, "b k *spatial"],
    target: Shaped[Tensor, "..."],
    *,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "per_positive",
    valid: Shaped[Tensor, "..."] | None = None,
    normaliser: Normaliser = None,
    ignore_index: int | None = None,
) -> Float[Tensor, "..."]:
    """Focal loss of K independent lesion classes; background has no logit of its own.

    Computed and returned in fp32 (fp64 for fp64 logits); finite, with finite
    gradient, for logits up to 1e4 in fp32, bf16 and fp16. Nothing to judge gives 0.

    Args:
        logits: `[B, K, *spatial]`, or `[n, K]` for anchors.
        target: a label map without the class axis (0 background, k = class k; any integer dtype,
            bool when K = 1), or of the logits' shape with 0/1 (floating: or values between).
        alpha: the weight of lesions (1 − α that of background), one number or one a class, None
            for no weighting.
        gamma: how fast easy elements fall silent, 0 or more.
        reduction: `none` (the logits' shape, 0 where left out), `sum`, `mean` over the valid
            logits, or `per_positive`: the sum divided by `normaliser`.
        valid: `[B, *spatial]` or of the logits' shape; False or 0 leaves out.
        normaliser: None for the number of valid lesion elements, at least 1.
        ignore_index: voxels with this label are left out, too.

    Raises `ConfigError` (settings), `GeometryError` (shapes), `ContentError` (dtypes, and labels
    outside 0..K; values are looked at on the CPU only, since a GPU would have to be waited for).

    >>> import torch
    >>> logits = torch.zeros(1, 1, 2)  # p = ½ everywhere
    >>> loss = sigmoid_focal_loss(logits, torch.tensor([[0, 1]]), reduction="none")
    >>> [round(value, 5) for value in loss.flatten().tolist()]  # 0.75·¼·log 2, 0.25·¼·log 2
    [0.12997, 0.04332]
    """
    check_settings(gamma, reduction, normaliser)
    check_logits(logits, min_classes=1)
    check_valid(logits, valid)
    is_map = is_label_map(logits, target)
    weights = sigmoid_weights(alpha, logits.shape[1])
    valid = labelled(target, valid, ignore_index)
    check_values(target, valid, logits.shape[1] if is_map else 1)
    if reduction != "none":
        sums = fused_sigmoid_sums(logits, target, valid, *weights, gamma)
        if sums is not None:
            return divided(sums, reduction, normaliser)
    keep = None if valid is None else valid.bool()
    if keep is not None and keep.ndim < logits.ndim:
        keep = keep.unsqueeze(1).expand_as(logits)
    logits = _upcast(logits, keep)
    lesion = lesion_of_class(target, logits.shape[1]) if is_map else target
    if lesion.is_floating_point():
        loss = soft_focal_plain(logits, lesion.to(logits.dtype), *weights, gamma)
    else:
        loss = sigmoid_focal_plain(logits, lesion.bool(), *weights, gamma)
    return _reduced(loss, lesion, keep, reduction, normaliser)


def softmax_focal_loss(
    logits: Float[Tensor, "b c *spatial"],
    target: Shaped[Tensor, "..."],
    *,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "per_positive",
    valid: Shaped[Tensor, "..."] | None = None,
    normaliser: Normaliser = None,
    ignore_index: int | None = None,
) -> Float[Tensor, "..."]:
    """Focal loss of 1 + K mutually exclusive classes; class 0 is background.

    All else, the errors too, as `sigmoid_focal_loss`.

    Args:
        logits: `[B, 1+K, *spatial]` or `[n, 1+K]`.
        target: label map without the class axis, any integer dtype.
        alpha: a number weights lesions by α and background by 1 − α; a sequence has 1 + K entries.
        gamma: how fast easy elements fall silent, 0 or more.
        reduction: `none` gives `[B, *spatial]`; the others as there.
        valid: `[B, *spatial]`; of the logits' shape, a voxel counts where all its classes do.
        normaliser: None for the number of valid voxels with a label above 0, at least 1.
        ignore_index: voxels with this label are left out, too.

    >>> import torch
    >>> logits = torch.zeros(1, 2, 2)  # p = ½ everywhere
    >>> loss = softmax_focal_loss(logits, torch.tensor([[0, 1]]), reduction="none")
    >>> [round(value, 5) for value in loss.flatten().tolist()]  # 0.75·¼·log 2, 0.25·¼·log 2
    [0.12997, 0.04332]
    """
    check_settings(gamma, reduction, normaliser)
    check_logits(logits, min_classes=2)
    check_valid(logits, valid)
    check_label_shape(logits, target)
    weights = softmax_weights(alpha, logits.shape[1])
    if valid is not None and valid.shape == logits.shape:
        valid = valid.bool().all(dim=1)
    valid = labelled(target, valid, ignore_index)
    check_values(target, valid, logits.shape[1] - 1)
    if reduction != "none":
        sums = fused_softmax_sums(logits, target, valid, weights, gamma)
        if sums is not None:
            return divided(sums, reduction, normaliser)
    keep = None if valid is None else valid.bool()
    if keep is not None:
        target = target.masked_fill(~keep, 0)
    logits = _upcast(logits, None if keep is None else keep.unsqueeze(1))
    loss = softmax_focal_plain(logits, target, weights, gamma)
    return _reduced(loss, target > 0, keep, reduction, normaliser)


def _upcast(logits: Tensor, keep: Tensor | None) -> Tensor:
    """At least fp32, zero where left out: a NaN there must reach neither value nor gradient."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if keep is None else logits.masked_fill(~keep, 0)


def _reduced(
    loss: Float[Tensor, "*shape"],
    lesion: Shaped[Tensor, "*shape"],
    keep: Bool[Tensor, "*shape"] | None,
    reduction: Reduction,
    normaliser: Normaliser,
) -> Float[Tensor, "..."]:
    if keep is not None:
        loss, lesion = loss.masked_fill(~keep, 0), lesion.masked_fill(~keep, 0)
    if reduction == "none":
        return loss
    n_valid = loss.new_full((), loss.numel()) if keep is None else keep.sum()
    return divided(FocalSums(loss.sum(), lesion.sum(), n_valid), reduction, normaliser)


def divided(sums: FocalSums, reduction: Reduction, normaliser: Normaliser) -> Float[Tensor, ""]:
    """The sum divided as `reduction` says, all on the sums' device."""
    if reduction == "sum":
        return sums.total
    if reduction == "mean":
        return sums.total / sums.n_valid.clamp_min(1)
    if normaliser is None:
        return sums.total / sums.n_positive.clamp_min(1)
    if isinstance(normaliser, Tensor):
        normaliser = normaliser.to(sums.total, non_blocking=True)
    return sums.total / normaliser


Weights = float | Sequence[float] | None


def posterior_logits(
    logits: Float[Tensor, "b k *spatial"], *, alpha: Weights = 0.25, gamma: float = 2.0
) -> Float[Tensor, "b k *spatial"]:
    """Logits of η for K independent classes trained by `sigmoid_focal_loss` with α and γ.

    At the minimum of η·α·FL₁(p) + (1−η)·(1−α)·FL₀(p) the derivatives balance, which gives
    η : 1−η = h(p)/α : h(1−p)/(1−α) with h(v) = v / ((1−v)^γ − γ(1−v)^(γ−1)·v·log v)
    (Charoenphakdee et al., CVPR 2021, theorem 11, with α added). Strictly increasing, hence no
    ranking changes. `alpha`: one number or one a class; None is ½. γ = 0 and α = ½ change nothing.
    fp32; finite for finite logits.

    >>> import torch
    >>> half = torch.zeros(1, 1, 1)
    >>> round(float(posterior_logits(half, alpha=0.25, gamma=2.0).sigmoid()), 6)
    0.75
    """
    logits = logits.float()
    # by softplus: ONNX writes log-sigmoid as a log of a sigmoid, which is infinite from -18 on
    log_p, log_q = -functional.softplus(-logits), -functional.softplus(logits)
    ratio = _log_h(log_p, log_q, gamma) - _log_h(log_q, log_p, gamma)
    return ratio - _alpha_logits(alpha, logits)


def _log_h(log_v: Tensor, log_rest: Tensor, gamma: float) -> Tensor:
    """log h(v) from log v and log(1−v): log v − (γ−1)·log(1−v) − log((1−v) − γ·v·log v)."""
    # (1−v) − γ·v·log v = (1−v)·(1 + γ·v·(−log v)/(1−v)); the quotient tends to 1 as v tends to 1
    quotient = torch.where(
        log_rest > -15, log_v.exp() * -log_v / log_rest.exp().clamp_min(1e-30), 1.0
    )
    return log_v - gamma * log_rest - torch.log1p(gamma * quotient)


def _alpha_logits(alpha: Weights, logits: Tensor) -> Tensor:
    """log(α/(1−α)) per class, shaped to the class axis of `logits`."""
    values = [0.5] if alpha is None else [alpha] if isinstance(alpha, float | int) else [*alpha]
    odds = [math.log(a) - math.log1p(-a) if 0 < a < 1 else 0.0 for a in values]
    return torch.tensor(odds, device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
