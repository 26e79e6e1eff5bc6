"""Focal loss (Lin et al. 2017, arXiv 1708.02002) for voxels of any dimension and for anchors.

    FL(p_t) = −α_t · (1 − p_t)^γ · log p_t

α_t weights the class of the truth: α for lesion, 1 − α for background. γ = 0 and α = ½ is half of
the cross-entropy, γ = 0 without α is the cross-entropy.

Everything is computed from the *error logit* z of an element, sigmoid(z) = 1 − p_t: z = −x or +x
for a sigmoid logit x of a lesion or of background, z = logsumexp(others) − (true logit) for a
softmax. Then −log p_t = softplus(z), and no probability is ever subtracted from 1:

    FL = α_t · sigmoid(z)^γ · softplus(z)
    dFL/dz = α_t · sigmoid(z)^γ · (γ · sigmoid(−z) · softplus(z) + sigmoid(z))
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lesionseg.errors import ConfigError, ContentError, GeometryError
from lesionseg.ops.constants import constant

Reduction = Literal["none", "mean", "sum", "per_positive"]
Alpha = float | Sequence[float] | None
Normaliser = float | Tensor | None
BLOCK = 1 << 18  # voxels that a CPU's cache holds with all that is computed of them


def sigmoid_focal_loss(
    logits: Float[Tensor, "b k *spatial"],
    target: Shaped[Tensor, "..."],
    *,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "per_positive",
    valid: Shaped[Tensor, "..."] | None = None,
    normaliser: Normaliser = None,
) -> Float[Tensor, "..."]:
    """Focal loss of K independent lesion classes; background has no logit of its own.

    In fp32 (fp64 for fp64 logits); value and gradient are finite for logits up to 1e4 in any type.
    Empty input gives 0. Reduced losses differentiate once, and keep 4 bytes per logit for it.

    Args:
        logits: `[B, K, *spatial]`, or `[n, K]` for anchors.
        target: a label map without the class axis (0 background, k = class k; any integer dtype,
            bool when K = 1), or of the logits' shape with 0/1 of any dtype.
        alpha: the weight of lesions (1 − α that of background), one number or one per class, None
            for no weighting.
        gamma: how strongly well-classified elements are silenced, 0 or more.
        reduction: `none` (the logits' shape, 0 where left out), `sum`, `mean` over the valid
            logits, or `per_positive`: the sum divided by `normaliser`.
        valid: `[B, *spatial]` or of the logits' shape; False or 0 leaves out.
        normaliser: None for the number of valid lesion elements, at least 1.

    Raises `ConfigError` (settings), `GeometryError` (shapes), `ContentError` (dtypes, and labels
    outside 0..K; values are looked at on the CPU only, since a GPU would have to be waited for).

    >>> logits = torch.zeros(1, 1, 2)  # p = ½ everywhere
    >>> loss = sigmoid_focal_loss(logits, torch.tensor([[0, 1]]), reduction="none")
    >>> [round(value, 5) for value in loss.flatten().tolist()]  # 0.75·¼·log 2, 0.25·¼·log 2
    [0.12997, 0.04332]
    """
    check_settings(alpha, gamma, reduction, normaliser)
    lesion, n_classes = lesion_target(target, logits, valid), logits.shape[1]
    keep = None if valid is None else valid.bool()
    if keep is not None and keep.shape != logits.shape:
        keep = keep.unsqueeze(1).expand_as(logits)
    _check_labels(target, keep, 1 if target.shape == logits.shape else n_classes)
    positive = _per_class(alpha, n_classes)
    negative = positive if alpha is None else [1 - a for a in positive]
    double = logits.dtype == torch.float64
    if reduction == "none" or double or torch.compiler.is_compiling():
        # zero where left out: a NaN there must reach neither value nor gradient
        x = logits if keep is None else logits.masked_fill(~keep, 0)
        x = x if double else x.float()
        of_lesion = constant(positive, x, n_after=x.ndim - 2)
        weight = torch.where(lesion, of_lesion, constant(negative, x, n_after=x.ndim - 2))
        loss: Any = weight * _formula(torch.where(lesion, -x, x), gamma)
    else:
        alike = len({*positive}) == 1
        sums: list[Any] = [
            _SummedFocal.apply(  # type: ignore[no-untyped-call]
                *(t if t is None else t[:, k] for t in (logits, lesion, keep)),
                *(positive[k][0], negative[k][0], gamma),
            )
            for k in ([slice(None)] if alike else [slice(k, k + 1) for k in range(n_classes)])
        ]
        loss = torch.stack(sums).sum()
    return _reduced(loss, lesion, keep, reduction, normaliser)


def softmax_focal_loss(
    logits: Float[Tensor, "b c *spatial"],
    target: Shaped[Tensor, "b *spatial"],
    *,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "per_positive",
    valid: Shaped[Tensor, "..."] | None = None,
    normaliser: Normaliser = None,
) -> Float[Tensor, "..."]:
    """Focal loss of 1 + K mutually exclusive classes; class 0 is background.

    Arguments and errors as of `sigmoid_focal_loss`, but: `logits` are `[B, 1+K, *spatial]` or
    `[n, 1+K]`, `target` is a label map of any integer dtype. A number `alpha` weights lesions by α
    and background by 1 − α; a sequence has 1 + K entries. `none` gives `[B, *spatial]`. A voxel
    counts where `valid` holds for all its classes; it is positive where its label is above 0.

    """
    check_settings(alpha, gamma, reduction, normaliser)
    check_shapes(logits, target, valid, exclusive=True)
    weights = _per_class(alpha, logits.shape[1])
    if isinstance(alpha, int | float):
        weights[0] = 1 - weights[0]
    keep = None if valid is None else valid.bool()
    if keep is not None and keep.shape == logits.shape:
        keep = keep.all(dim=1)
    x = logits if logits.dtype == torch.float64 else logits.float()
    if len(weights) == 2:  # the softmax of two classes is the sigmoid of their difference
        total = sum(weights)
        how: Any = {"gamma": gamma, "reduction": reduction, "normaliser": normaliser}
        share = weights[1] / total if total else 0
        loss = sigmoid_focal_loss(x[:, 1:] - x[:, :1], target, alpha=share, valid=keep, **how)
        return total * (loss[:, 0] if reduction == "none" else loss)
    _check_labels(target, keep, len(weights) - 1)
    if keep is not None:
        x, target = x.masked_fill(~keep.unsqueeze(1), 0), target.masked_fill(~keep, 0)
    index = target.long().unsqueeze(1)
    others = torch.logsumexp(x.scatter(1, index, -torch.inf), dim=1)
    loss = _formula(others - x.gather(1, index)[:, 0], gamma) * constant(weights, x)[index[:, 0]]
    return _reduced(loss, target > 0, keep, reduction, normaliser)


class _SummedFocal(torch.autograd.Function):
    """Compute the sum and its gradient in one pass over the elements, in blocks on a CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        lesion: Tensor,
        keep: Tensor | None,
        positive: float,
        negative: float,
        gamma: float,
    ) -> Tensor:
        gradient = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        total = gradient.new_zeros(())
        on_cpu = logits.device.type == "cpu"
        size = BLOCK if on_cpu else max(logits.numel(), 1)
        blocks = [torch.split(t.reshape(-1), size) for t in (logits, lesion, gradient)]
        masks = [None] * len(blocks[0]) if keep is None else torch.split(keep.reshape(-1), size)
        add_block = _sparse_block if on_cpu else _dense_block
        for x, is_lesion, out, mask in zip(*blocks, masks, strict=True):
            x = x.float()
            if mask is not None:  # a NaN that is left out must reach neither value nor gradient
                x, is_lesion = x.masked_fill(~mask, 0), is_lesion & mask
            total += add_block(x, is_lesion, mask, positive, negative, gamma, out)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype), None, None, None, None, None


def _sparse_block(
    x: Tensor,
    is_lesion: Tensor,
    mask: Tensor | None,
    positive: float,
    negative: float,
    gamma: float,
    out: Tensor,
) -> Tensor:
    """Return the loss of a block on a CPU, and write its gradient to `out`.

    All elements are first treated as background. The few lesion elements are then overwritten.
    """
    place = torch.from_numpy(np.flatnonzero(is_lesion))  # torch takes as long as for two sigmoids
    error, loss = torch.sigmoid(x), F.softplus(x)
    weight = (error**gamma).mul_(negative)
    weight = weight if mask is None else weight.mul_(mask)
    weight.index_fill_(0, place, 0)
    torch.addcmul(error, loss, 1 - error, value=gamma, out=out).mul_(weight)
    total = torch.dot(weight, loss)
    error, loss = torch.sigmoid(-x[place]), F.softplus(-x[place])
    weight = positive * error**gamma
    out[place] = -weight * (gamma * (1 - error) * loss + error)
    return total + torch.dot(weight, loss)


def _dense_block(
    x: Tensor,
    is_lesion: Tensor,
    mask: Tensor | None,
    positive: float,
    negative: float,
    gamma: float,
    out: Tensor,
) -> Tensor:
    """Do the same on a GPU, for which the host would wait to learn where the lesions are."""
    z = torch.where(is_lesion, -x, x)
    error, loss = torch.sigmoid(z), F.softplus(z)
    weight = (error**gamma).mul_(torch.where(is_lesion, positive, negative))
    weight = weight if mask is None else weight.mul_(mask)
    torch.addcmul(error, loss, 1 - error, value=gamma, out=out).mul_(weight)
    torch.where(is_lesion, -out, out, out=out)
    return torch.dot(weight, loss)


def _formula(error_logit: Tensor, gamma: float) -> Tensor:
    """(1 − p_t)^γ · (−log p_t) of each error logit; differentiable any number of times."""
    return torch.exp(-gamma * F.softplus(-error_logit)) * F.softplus(error_logit)


def _reduced(
    loss: Tensor, lesion: Tensor, keep: Tensor | None, reduction: str, normaliser: Normaliser
) -> Tensor:
    if keep is not None and loss.ndim:
        loss = loss.masked_fill(~keep, 0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        normaliser = max(lesion.numel(), 1) if keep is None else keep.sum().clamp_min(1)
    elif normaliser is None:
        normaliser = (lesion if keep is None else lesion & keep).count_nonzero().clamp_min(1)
    elif isinstance(normaliser, Tensor):
        normaliser = normaliser.to(loss, non_blocking=True)
    return loss.sum() / normaliser


def _per_class(alpha: Alpha, n_classes: int) -> list[float]:
    values = 1.0 if alpha is None else alpha
    each = [values] * n_classes if isinstance(values, int | float) else [*map(float, values)]
    if len(each) != n_classes:
        raise ConfigError(f"alpha has {len(each)} numbers; give one, or {n_classes}, per class.")
    return each


def posterior_logits(
    logits: Float[Tensor, "b k *spatial"], *, alpha: Alpha = 0.25, gamma: float = 2.0
) -> Float[Tensor, "b k *spatial"]:
    """Logits of η for K independent classes trained by `sigmoid_focal_loss` with α and γ.

    At the minimum of η·α·FL₁(p) + (1−η)·(1−α)·FL₀(p) the derivatives balance, which gives
    η : 1−η = h(p)/α : h(1−p)/(1−α) with h(v) = v / ((1−v)^γ − γ(1−v)^(γ−1)·v·log v)
    (Charoenphakdee et al., CVPR 2021, theorem 11, with α added). Strictly increasing, hence no
    ranking changes. `alpha`: one number or one per class; None is ½. γ = 0 and α = ½ change
    nothing. fp32; finite for finite logits.

    >>> half = torch.zeros(1, 1, 1)
    >>> round(float(posterior_logits(half, alpha=0.25, gamma=2.0).sigmoid()), 6)
    0.75
    """
    logits = logits.float()
    # by softplus: ONNX writes log-sigmoid as a log of a sigmoid, which is infinite from -18 on
    log_p, log_q = -F.softplus(-logits), -F.softplus(logits)
    each = _per_class(0.5 if alpha is None else alpha, logits.shape[1])
    odds = [math.log(a) - math.log1p(-a) if 0 < a < 1 else 0.0 for a in each]
    prior = constant(odds, logits, n_after=logits.ndim - 2)
    return _log_h(log_p, log_q, gamma) - _log_h(log_q, log_p, gamma) - prior


def _log_h(log_v: Tensor, log_rest: Tensor, gamma: float) -> Tensor:
    """log h(v) from log v and log(1−v): log v − (γ−1)·log(1−v) − log((1−v) − γ·v·log v)."""
    # (1−v) − γ·v·log v = (1−v)·(1 + γ·v·(−log v)/(1−v)); the quotient tends to 1 as v tends to 1
    quotient = torch.where(
        log_rest > -15, log_v.exp() * -log_v / log_rest.exp().clamp_min(1e-30), 1.0
    )
    return log_v - gamma * log_rest - torch.log1p(gamma * quotient)


def lesion_target(
    labels: Shaped[Tensor, "b *any"], like: Float[Tensor, "b k *spatial"], valid: Any = None
) -> Bool[Tensor, "b k *spatial"]:
    """Whether each voxel is a lesion of each of the K classes that `like` has channels for."""
    check_shapes(like, labels, valid)
    if labels.shape == like.shape:
        return labels.bool()
    if like.shape[1] == 1:  # a comparison would take as long as a sigmoid
        return labels.bool().unsqueeze(1)
    classes = torch.arange(1, like.shape[1] + 1, device=labels.device)
    return labels.unsqueeze(1) == classes.view(-1, *[1] * (labels.ndim - 1))


def check_settings(
    alpha: Alpha, gamma: float, reduction: str = "sum", normaliser: Normaliser = None
) -> None:
    values = () if alpha is None else (alpha,) if isinstance(alpha, int | float) else alpha
    if not all(0 <= value <= 1 for value in values):
        raise ConfigError(f"alpha={alpha}: α must lie in [0, 1].")
    if not 0 <= gamma < math.inf:
        raise ConfigError(f"gamma={gamma}: γ must be a finite number of at least 0.")
    if reduction not in ("none", "mean", "sum", "per_positive"):
        raise ConfigError(f"reduction={reduction!r} must be none, mean, sum or per_positive.")
    if normaliser is not None and reduction != "per_positive":
        raise ConfigError(f"A normaliser belongs to reduction=per_positive, not to {reduction!r}.")
    if isinstance(normaliser, int | float) and normaliser <= 0:
        raise ConfigError(f"normaliser={normaliser} must be above 0.")


def check_shapes(
    logits: Tensor, target: Tensor, valid: Tensor | None, *, exclusive: bool = False
) -> None:
    """Raises for tensors that do not fit; `exclusive`: channel 0 is background, labels a map."""
    if not logits.is_floating_point():
        raise ContentError(f"Logits must be floating point, not {logits.dtype}.")
    shape, least = tuple(logits.shape), 1 + exclusive
    if len(shape) < 2 or shape[1] < least:
        raise GeometryError(f"Logits of shape {shape} need [B, K, …] with K ≥ {least}.")
    spatial = (shape[0], *shape[2:])
    if target.shape == spatial and target.is_floating_point():
        raise ContentError(f"A label map must hold integers, not {target.dtype}.")
    if target.shape != spatial and (exclusive or target.shape != shape):
        raise GeometryError(
            f"A target of shape {tuple(target.shape)} does not fit logits {shape}. "
            f"Give labels {spatial} (0 background, k = class k)."
        )
    if valid is not None and valid.shape not in (shape, spatial):
        raise GeometryError(
            f"valid of shape {tuple(valid.shape)} fits neither {spatial} nor logits."
        )


def _check_labels(target: Tensor, keep: Tensor | None, highest: int) -> None:
    if target.device.type != "cpu" or target.dtype == torch.bool or torch.compiler.is_compiling():
        return  # a look at values would wait for a GPU, or break the graph
    low, high = torch.aminmax(target) if target.numel() else (0, 0)
    if low >= 0 and high <= highest and not (target.is_floating_point() and target.frac().any()):
        return
    if keep is None:
        raise ContentError(
            f"The target holds values from {low} to {high}, but the classes of these logits are "
            f"0 to {highest}. Leave other voxels out with `valid`."
        )
    some = keep.any(1) if keep.ndim > target.ndim else keep
    _check_labels(target.masked_fill(~some, 0), None, highest)
