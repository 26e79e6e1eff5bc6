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

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lesionseg.errors import ConfigError, ContentError, GeometryError

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

    Computed and returned in fp32 (fp64 for fp64 logits); value and gradient are finite for logits
    up to 1e4 in fp32, bf16 and fp16. Empty input gives 0. Reduced losses of single precision
    differentiate once, and keep 4 bytes per logit for it.

    Args:
        logits: `[B, K, *spatial]`, or `[n, K]` for anchors.
        target: a label map without the class axis (0 background, k = class k; any integer dtype,
            bool when K = 1), or of the logits' shape with 0/1 (floating: or values between).
        alpha: the weight of lesions (1 − α that of background), one number or one per class, None
            for no weighting.
        gamma: how strongly well-classified elements are silenced, 0 or more.
        reduction: `none` (the logits' shape, 0 where left out), `sum`, `mean` over the valid
            logits, or `per_positive`: the sum divided by `normaliser`.
        valid: `[B, *spatial]` or of the logits' shape; False or 0 leaves out.
        normaliser: None for the number of valid lesion elements, at least 1.

    Raises `ConfigError` (settings), `GeometryError` (shapes), `ContentError` (dtypes, and labels
    outside 0..K; values are looked at on the CPU only, since a GPU would have to be waited for).

    >>> import torch
    >>> logits = torch.zeros(1, 1, 2)  # p = ½ everywhere
    >>> loss = sigmoid_focal_loss(logits, torch.tensor([[0, 1]]), reduction="none")
    >>> [round(value, 5) for value in loss.flatten().tolist()]  # 0.75·¼·log 2, 0.25·¼·log 2
    [0.12997, 0.04332]
    """
    check_focal(gamma, reduction, normaliser)
    check_shapes(logits, target, valid)
    n_classes = logits.shape[1]
    positive = (1.0,) * n_classes if alpha is None else _per_class(alpha, n_classes)
    negative = (1.0,) * n_classes if alpha is None else tuple(1 - a for a in positive)
    is_map = target.shape != logits.shape
    check_labels(target, valid, n_classes if is_map else 1)
    lesion = lesion_of_class(target, n_classes) if is_map else target
    keep = None if valid is None else valid.bool()
    if keep is not None and keep.shape != logits.shape:
        keep = keep.unsqueeze(1).expand_as(logits)
    if lesion.is_floating_point() or _needs_formula(logits, reduction):
        # zero where left out: a NaN there must reach neither value nor gradient
        x = logits if keep is None else logits.masked_fill(~keep, 0)
        x = x if x.dtype == torch.float64 else x.float()
        loss = _sigmoid_formula(x, lesion, positive, negative, gamma)
        loss = loss if keep is None else loss.masked_fill(~keep, 0)
        if reduction == "none":
            return loss
        total, n_positive = loss.sum(), (lesion if keep is None else lesion * keep).sum()
    else:
        lesion = lesion.bool()
        same = len(set(positive)) == len(set(negative)) == 1
        columns: Any = [(logits, lesion, keep)]
        if not same:
            masks = [None] * n_classes if keep is None else keep.unbind(1)
            columns = zip(logits.unbind(1), lesion.unbind(1), masks, strict=True)
        weights = zip(positive, negative, strict=True)
        sums: list[Any] = [
            _SummedFocal.apply(x, y, mask, a, b, gamma)  # type: ignore[no-untyped-call]
            for (x, y, mask), (a, b) in zip(columns, weights, strict=False)
        ]
        total, n_positive = (torch.stack(parts).sum() for parts in zip(*sums, strict=True))
    n_valid = lesion.numel() if keep is None else keep.sum()
    return _divided(total, reduction, normaliser, n_positive, n_valid)


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

    All else, the errors too, as `sigmoid_focal_loss`.

    Args:
        logits: `[B, 1+K, *spatial]` or `[n, 1+K]`.
        target: label map without the class axis, any integer dtype.
        alpha: a number weights lesions by α and background by 1 − α; a sequence has 1 + K entries.
        gamma: how strongly well-classified elements are silenced, 0 or more.
        reduction: `none` gives `[B, *spatial]`; the others as there.
        valid: `[B, *spatial]`; of the logits' shape, a voxel counts where all its classes do.
        normaliser: None for the number of valid voxels with a label above 0, at least 1.

    >>> import torch
    >>> logits = torch.zeros(1, 2, 2)  # p = ½ everywhere
    >>> loss = softmax_focal_loss(logits, torch.tensor([[0, 1]]), reduction="none")
    >>> [round(value, 5) for value in loss.flatten().tolist()]  # 0.75·¼·log 2, 0.25·¼·log 2
    [0.12997, 0.04332]
    """
    check_focal(gamma, reduction, normaliser)
    check_shapes(logits, target, valid, least_classes=2, label_map=True)
    n_classes = logits.shape[1]
    weights = (1.0,) * n_classes if alpha is None else _per_class(alpha, n_classes)
    if isinstance(alpha, int | float):
        weights = (1 - weights[0], *weights[1:])
    if valid is not None:
        valid = valid.bool().all(dim=1) if valid.shape == logits.shape else valid.bool()
    check_labels(target, valid, n_classes - 1)
    n_positive = (target > 0 if valid is None else (target > 0) & valid).sum()
    if n_classes > 2 or _needs_formula(logits, reduction):
        labels = (target if valid is None else target.masked_fill(~valid, 0)).long()
        x = logits if valid is None else logits.masked_fill(~valid.unsqueeze(1), 0)
        x = x if x.dtype == torch.float64 else x.float()
        index = labels.unsqueeze(1)
        others = torch.logsumexp(x.scatter(1, index, -torch.inf), dim=1)
        error_logit = others - x.gather(1, index)[:, 0]
        loss = _class_tensor(weights, x)[labels] * _formula(error_logit, gamma)
        loss = loss if valid is None else loss.masked_fill(~valid, 0)
        if reduction == "none":
            return loss
        total = loss.sum()
    else:  # the softmax of two classes is the sigmoid of their difference
        difference = logits[:, 1].float() - logits[:, 0].float()
        total, _ = _SummedFocal.apply(  # type: ignore[no-untyped-call]
            difference, target.bool(), valid, weights[1], weights[0], gamma
        )
    n_valid = target.numel() if valid is None else valid.sum()
    return _divided(total, reduction, normaliser, n_positive, n_valid)


class _SummedFocal(torch.autograd.Function):
    """The sum of the loss and the number of lesion elements; the gradient in the same walk.

    Every block is computed as if it were background, then the few lesion elements anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        lesion: Tensor,
        keep: Tensor | None,
        positive: float,
        negative: float,
        gamma: float,
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        total, n_positive = gradient.new_zeros(()), 0
        size = BLOCK if logits.device.type == "cpu" else max(logits.numel(), 1)
        blocks = [torch.split(t.reshape(-1), size) for t in (logits, lesion, gradient)]
        masks = [None] * len(blocks[0]) if keep is None else torch.split(keep.reshape(-1), size)
        for x, is_lesion, out, mask in zip(*blocks, masks, strict=True):
            x = x.float()
            if mask is not None:  # a NaN that is left out must reach neither value nor gradient
                x, is_lesion = x.masked_fill(~mask, 0), is_lesion & mask
            place = is_lesion.nonzero()[:, 0]
            n_positive += len(place)
            error, loss = torch.sigmoid(x), F.softplus(x)
            weight = (error**gamma).mul_(negative)
            weight = weight if mask is None else weight.mul_(mask)
            weight[place] = 0
            torch.addcmul(error, loss, 1 - error, value=gamma, out=out).mul_(weight)
            total += torch.dot(weight, loss)
            error, loss = torch.sigmoid(-x[place]), F.softplus(-x[place])
            weight = positive * error**gamma
            out[place] = -weight * (gamma * (1 - error) * loss + error)
            total += torch.dot(weight, loss)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        count = total.new_tensor(n_positive)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype), None, None, None, None, None


def posterior_logits(
    logits: Float[Tensor, "b k *spatial"], *, alpha: Alpha = 0.25, gamma: float = 2.0
) -> Float[Tensor, "b k *spatial"]:
    """Logits of η for K independent classes trained by `sigmoid_focal_loss` with α and γ.

    At the minimum of η·α·FL₁(p) + (1−η)·(1−α)·FL₀(p) the derivatives balance, which gives
    η : 1−η = h(p)/α : h(1−p)/(1−α) with h(v) = v / ((1−v)^γ − γ(1−v)^(γ−1)·v·log v)
    (Charoenphakdee et al., CVPR 2021, theorem 11, with α added). Strictly increasing, hence no
    ranking changes. `alpha`: one number or one per class; None is ½. γ = 0 and α = ½ change
    nothing. fp32; finite for finite logits.

    >>> import torch
    >>> half = torch.zeros(1, 1, 1)
    >>> round(float(posterior_logits(half, alpha=0.25, gamma=2.0).sigmoid()), 6)
    0.75
    """
    logits = logits.float()
    # by softplus: ONNX writes log-sigmoid as a log of a sigmoid, which is infinite from -18 on
    log_p, log_q = -F.softplus(-logits), -F.softplus(logits)
    values = [0.5] if alpha is None else [alpha] if isinstance(alpha, float | int) else [*alpha]
    odds = [math.log(a) - math.log1p(-a) if 0 < a < 1 else 0.0 for a in values]
    prior = torch.tensor(odds, device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
    return _log_h(log_p, log_q, gamma) - _log_h(log_q, log_p, gamma) - prior


def _log_h(log_v: Tensor, log_rest: Tensor, gamma: float) -> Tensor:
    """log h(v) from log v and log(1−v): log v − (γ−1)·log(1−v) − log((1−v) − γ·v·log v)."""
    # (1−v) − γ·v·log v = (1−v)·(1 + γ·v·(−log v)/(1−v)); the quotient tends to 1 as v tends to 1
    quotient = torch.where(
        log_rest > -15, log_v.exp() * -log_v / log_rest.exp().clamp_min(1e-30), 1.0
    )
    return log_v - gamma * log_rest - torch.log1p(gamma * quotient)


def _formula(error_logit: Tensor, gamma: float) -> Tensor:
    """(1 − p_t)^γ · (−log p_t) of each error logit; differentiable any number of times."""
    cross_entropy = F.softplus(error_logit)
    if gamma == 0:
        return cross_entropy
    return torch.exp(-gamma * F.softplus(-error_logit)) * cross_entropy


def _sigmoid_formula(
    x: Tensor, target: Tensor, positive: Sequence[float], negative: Sequence[float], gamma: float
) -> Tensor:
    """The loss of each logit; of a target y between 0 and 1, 1 − p_t, log p_t and α_t are mixed."""
    axes = (-1, *[1] * (x.ndim - 2))
    lesion_weight, rest_weight = (_class_tensor(w, x).view(axes) for w in (positive, negative))
    if not target.is_floating_point():
        target = target.bool()
        loss = _formula(torch.where(target, -x, x), gamma)
        return torch.where(target, lesion_weight, rest_weight) * loss
    y = target.to(x.dtype)
    loss = y * F.softplus(-x) + (1 - y) * F.softplus(x)
    if gamma != 0:
        error = y * torch.sigmoid(-x) + (1 - y) * torch.sigmoid(x)
        loss = error.clamp_min(torch.finfo(error.dtype).tiny).pow(gamma) * loss
    return (y * lesion_weight + (1 - y) * rest_weight) * loss


def _divided(
    total: Tensor, reduction: str, normaliser: Normaliser, n_positive: Tensor, n_valid: Tensor | int
) -> Float[Tensor, ""]:
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / (max(n_valid, 1) if isinstance(n_valid, int) else n_valid.clamp_min(1))
    if normaliser is None:
        return total / n_positive.clamp_min(1)
    if isinstance(normaliser, Tensor):
        normaliser = normaliser.to(total, non_blocking=True)
    return total / normaliser


def _needs_formula(logits: Tensor, reduction: str) -> bool:
    """Whether single losses, a compiler's fusion or several derivatives (fp64) are asked for."""
    double = logits.dtype == torch.float64
    return reduction == "none" or double or torch.compiler.is_compiling()


def _class_tensor(weights: Sequence[float], like: Tensor) -> Float[Tensor, " k"]:
    """One number per class on the device of `like`, sent there without waiting for it."""
    return torch.tensor(weights, dtype=like.dtype).to(like.device, non_blocking=True)


def lesion_of_class(
    labels: Shaped[Tensor, "b *spatial"], n_classes: int
) -> Bool[Tensor, "b k *spatial"]:
    """Whether each voxel is a lesion of class 1..K, one channel per class; labels are 0..K."""
    if n_classes == 1:  # bytes are read as they are: a comparison would take as long as a sigmoid
        bits = labels.view(torch.bool) if labels.dtype == torch.uint8 else labels == 1
        return bits.unsqueeze(1)
    classes = torch.arange(1, n_classes + 1, device=labels.device)
    return labels.unsqueeze(1) == classes.view(-1, *[1] * (labels.ndim - 1))


def check_focal(gamma: float, reduction: str, normaliser: Normaliser = None) -> None:
    """Raises `ConfigError` for settings of a focal loss that mean nothing."""
    if not 0 <= gamma < math.inf:
        raise ConfigError(f"gamma={gamma}: γ must be a finite number of at least 0.")
    if reduction not in ("none", "mean", "sum", "per_positive"):
        raise ConfigError(f"reduction={reduction!r} must be none, mean, sum or per_positive.")
    if normaliser is not None and reduction != "per_positive":
        raise ConfigError(f"A normaliser belongs to reduction=per_positive, not to {reduction!r}.")
    if isinstance(normaliser, int | float) and normaliser <= 0:
        raise ConfigError(f"normaliser={normaliser} must be above 0.")


def check_alpha(alpha: Alpha) -> None:
    """Raises `ConfigError` for weights outside [0, 1]."""
    values = () if alpha is None else (alpha,) if isinstance(alpha, int | float) else alpha
    if not all(0 <= value <= 1 for value in values):
        raise ConfigError(f"alpha={alpha}: α must lie in [0, 1].")


def _per_class(alpha: float | Sequence[float], n_classes: int) -> tuple[float, ...]:
    check_alpha(alpha)
    values = (alpha,) * n_classes if isinstance(alpha, int | float) else tuple(alpha)
    if len(values) != n_classes:
        raise ConfigError(f"alpha has {len(values)} numbers; give one, or {n_classes}, per class.")
    return tuple(map(float, values))


def check_shapes(
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    *,
    least_classes: int = 1,
    label_map: bool = False,
) -> None:
    """Raises `GeometryError` or `ContentError` for tensors that no loss fits together.

    `label_map`: a target of the logits' own shape is wrong, too.
    """
    if not logits.is_floating_point():
        raise ContentError(f"Logits must be floating point, not {logits.dtype}.")
    if logits.ndim < 2 or logits.shape[1] < least_classes:
        seen = tuple(logits.shape)
        raise GeometryError(f"Logits of shape {seen} need [B, K, …] with K ≥ {least_classes}.")
    spatial = (logits.shape[0], *logits.shape[2:])
    if target.shape == spatial and target.shape != logits.shape:
        if target.is_floating_point() or target.is_complex():
            raise ContentError(f"A label map must hold integers, not {target.dtype}.")
    elif label_map or target.shape != logits.shape:
        raise GeometryError(
            f"A target of shape {tuple(target.shape)} does not fit logits {tuple(logits.shape)}. "
            f"Give labels {spatial} (0 background, k = class k)."
        )
    if valid is not None and valid.shape not in (logits.shape, spatial):
        raise GeometryError(
            f"A valid mask of shape {tuple(valid.shape)} fits neither {spatial} nor "
            f"{tuple(logits.shape)}."
        )


def check_labels(target: Tensor, valid: Tensor | None, highest: int) -> None:
    """Raises `ContentError` for valid labels outside 0..`highest`; looks on the CPU only."""
    if target.device.type != "cpu" or target.numel() == 0 or target.dtype == torch.bool:
        return
    if torch.compiler.is_compiling():  # a look at values would break the graph
        return
    lowest, largest = (value.item() for value in torch.aminmax(target))
    if not (lowest >= 0 and largest <= highest) and valid is not None:
        left_out = ~valid.bool()
        if left_out.ndim != target.ndim:
            left_out = left_out.all(1) if left_out.ndim > target.ndim else left_out.unsqueeze(1)
        lowest, largest = (v.item() for v in torch.aminmax(target.masked_fill(left_out, 0)))
    if not (lowest >= 0 and largest <= highest):
        raise ContentError(
            f"The target holds values from {lowest} to {largest}, but the classes of these logits "
            f"are 0 to {highest}. Leave other voxels out with `valid`."
        )
