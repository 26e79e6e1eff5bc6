"""Focal loss: formula, α, γ, reductions, gradient, range of settings, corrected scores.

It is that of Lin et al. 2017, arXiv 1708.02002, for voxels of any dimension and for anchors.

    FL(p_t) = −α_t · (1 − p_t)^γ · log p_t

α_t weights the class of the truth: α for lesion, 1 − α for background. γ = 0 and α = ½ is half of
the cross-entropy, γ = 0 without α is the cross-entropy.

Everything is computed from the *error logit* z of an element, defined by sigmoid(z) = 1 − p_t. For
a sigmoid logit x, z is −x for a lesion and +x for background. For a softmax, z is the logsumexp of
the other logits minus the true logit. Then −log p_t = softplus(z), and no probability has to be
subtracted from 1, which would lose digits:

    FL = α_t · sigmoid(z)^γ · softplus(z)
    dFL/dz = α_t · sigmoid(z)^γ · (γ · sigmoid(−z) · softplus(z) + sigmoid(z))
"""

import math
from collections.abc import Sequence
from numbers import Real
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
BLOCK = 1 << 18  # voxels whose intermediate results fit into the cache of a CPU
# torch neither compares nor reduces these types; the signed types can hold any label
_SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


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
    """Compute the focal loss of K independent lesion classes. Background has no logit.

    The loss is computed in fp32, or in fp64 for fp64 logits. Value and gradient are finite for
    logits up to 1e4 of any type. A reduced loss computed in fp32 has a first derivative only,
    unless torch.compile traces it. Until `backward` it stores 4 bytes per logit for the gradient.

    Args:
        logits: `[B, K, *spatial]`, or `[n, K]` for anchors.
        target: A label map without the class axis (0 background, k = class k, any integer dtype, or
            bool if K = 1), or 0/1 of the logits' shape and any dtype.
        alpha: Weight of lesions; 1 − α is the weight of background. One number, one per class, or
            None for no weights. Numbers may be scalars of NumPy or torch.
        gamma: Focusing exponent, 0 or more. A larger γ reduces the loss of well-classified
            elements more strongly.
        reduction: `none`; `sum`; `mean` over the valid logits; or `per_positive`, the sum divided
            by `normaliser`.
        valid: `[B, *spatial]` or of the logits' shape. False or 0 leaves an element out.
        normaliser: Divisor for `per_positive`, an error for other reductions. None uses the number
            of valid lesion elements, but at least 1.

    Returns:
        A scalar, 0 for empty input. With `none` a tensor of the logits' shape, 0 for elements that
        are left out.

    Raises:
        ConfigError: If a setting is outside its range.
        GeometryError: If the shapes do not fit together.
        ContentError: If a dtype is wrong, or a label is outside 0 to K. Labels are checked on the
            CPU only, because the check would have to wait for a GPU.

    >>> logits = torch.zeros(1, 1, 2)  # p = ½ everywhere
    >>> loss = sigmoid_focal_loss(logits, torch.tensor([[0, 1]]), reduction="none")
    >>> [round(value, 5) for value in loss.flatten().tolist()]  # 0.75·¼·log 2, 0.25·¼·log 2
    [0.12997, 0.04332]
    """
    check_settings(alpha, gamma, reduction, normaliser)
    gamma = float(gamma)
    target = to_signed(target)
    lesion = lesion_target(target, logits, valid)
    n_classes = logits.shape[1]
    keep = None if valid is None else valid.bool()
    if keep is not None and keep.shape != logits.shape:
        keep = keep.unsqueeze(1).expand_as(logits)
    # a target of the logits' shape contains 0 and 1
    _check_labels(target, keep, highest=n_classes if target.shape != logits.shape else 1)
    lesion_weights = _expand_alpha(alpha, n_classes)
    background_weights = lesion_weights if alpha is None else [1 - a for a in lesion_weights]
    loss: Tensor
    # `_sum_elements` is faster, but it has no losses of single elements and computes in fp32. While
    # torch.compile traces, plain operations are used, which the compiler can fuse.
    if reduction == "none" or logits.dtype == torch.float64 or torch.compiler.is_compiling():
        loss = _compute_elements(logits, lesion, keep, lesion_weights, background_weights, gamma)
    else:
        loss = _sum_elements(logits, lesion, keep, lesion_weights, background_weights, gamma)
    return reduce_losses(loss, lesion, keep, reduction, normaliser)


def _compute_elements(
    logits: Tensor,
    lesion: Tensor,
    keep: Tensor | None,
    lesion_weights: list[float],
    background_weights: list[float],
    gamma: float,
) -> Tensor:
    """Return the loss of each element by differentiable operations of torch.

    The function is used if losses of single elements or fp64 are asked for, or torch.compile
    traces; otherwise `_sum_elements` is faster. An element that is left out counts as a logit of 0.

    Args:
        logits: `[B, K, *spatial]`.
        lesion: True for lesion elements, of the logits' shape.
        keep: False for elements that are left out, of the logits' shape. None uses all elements.
        lesion_weights: Weight of lesion elements, one per class.
        background_weights: Weight of background elements, one per class.
        gamma: Focusing exponent.
    """
    # 0 for elements that are left out: a NaN there must reach neither value nor gradient
    x = logits if keep is None else logits.masked_fill(~keep, 0)
    x = x if x.dtype == torch.float64 else x.float()
    n_spatial = x.ndim - 2
    lesion_weight = constant(lesion_weights, x, n_after=n_spatial)
    background_weight = constant(background_weights, x, n_after=n_spatial)
    weight = torch.where(lesion, lesion_weight, background_weight)
    # the error logit is positive if the network is wrong, so it is −x for a lesion
    return weight * _apply_formula(torch.where(lesion, -x, x), gamma)


def _sum_elements(
    logits: Tensor,
    lesion: Tensor,
    keep: Tensor | None,
    lesion_weights: list[float],
    background_weights: list[float],
    gamma: float,
) -> Tensor:
    """Return the summed loss of all elements, in less time and memory than `_compute_elements`.

    Elements that are left out add nothing. If all classes have the same α, they are summed in one
    call, otherwise class by class. The arguments are those of `_compute_elements`.
    """
    if len(set(lesion_weights)) == 1:
        class_groups = [slice(None)]
    else:
        class_groups = [slice(k, k + 1) for k in range(len(lesion_weights))]
    sums: list[Tensor] = []
    for classes in class_groups:
        total = _SummedFocal.apply(  # type: ignore[no-untyped-call]
            logits[:, classes],
            lesion[:, classes],
            None if keep is None else keep[:, classes],
            lesion_weights[classes][0],  # equal for all classes of the group
            background_weights[classes][0],
            gamma,
        )
        sums.append(total)
    return torch.stack(sums).sum()


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
    """Compute the focal loss of 1 + K mutually exclusive classes. Class 0 is background.

    Args:
        logits: `[B, 1+K, *spatial]`, or `[n, 1+K]` for anchors.
        target: A label map without the class axis, of any integer dtype.
        alpha: A number α weights lesions by α and background by 1 − α. A sequence has 1 + K
            weights. None for no weights.
        gamma: As in `sigmoid_focal_loss`.
        reduction: As in `sigmoid_focal_loss`. `mean` is over the valid voxels.
        valid: `[B, *spatial]` or of the logits' shape. A voxel counts if all its classes are valid.
        normaliser: As in `sigmoid_focal_loss`. None uses the number of valid voxels with a label
            above 0, at least 1.

    Returns:
        A scalar, 0 for empty input. With `none` a tensor `[B, *spatial]`, 0 for voxels that are
        left out.

    Raises:
        ConfigError: If a setting is outside its range.
        GeometryError: If the shapes do not fit together.
        ContentError: If a dtype is wrong, or a label is outside 0 to K (checked on the CPU only).
    """
    check_settings(alpha, gamma, reduction, normaliser)
    gamma = float(gamma)
    target = to_signed(target)
    check_shapes(logits, target, valid, exclusive=True)
    n_classes = logits.shape[1]
    alpha = _to_floats(alpha)
    # weights of the 1 + K classes, background first
    if isinstance(alpha, float):
        weights = [1 - alpha, *_expand_alpha(alpha, n_classes - 1)]
    else:
        weights = _expand_alpha(alpha, n_classes)
    keep = None if valid is None else valid.bool()
    if keep is not None and keep.shape == logits.shape:
        keep = keep.all(dim=1)
    x = logits if logits.dtype == torch.float64 else logits.float()
    if len(weights) == 2:
        # The softmax of two classes is the sigmoid of their difference, which is computed faster.
        # The sigmoid loss weights by α and 1 − α, so the weights are divided by their sum, and the
        # loss is multiplied by it.
        weight_sum = sum(weights)
        loss = sigmoid_focal_loss(
            x[:, 1:] - x[:, :1],
            target,
            alpha=weights[1] / weight_sum if weight_sum else 0,
            gamma=gamma,
            reduction=reduction,
            valid=keep,
            normaliser=normaliser,
        )
        if reduction == "none":
            loss = loss[:, 0]  # remove the class axis
        return weight_sum * loss
    _check_labels(target, keep, highest=len(weights) - 1)
    # 0 for voxels that are left out: a NaN there must reach neither value nor gradient
    if keep is not None:
        x = x.masked_fill(~keep.unsqueeze(1), 0)
        target = target.masked_fill(~keep, 0)
    # the error logit of the module's docstring: logsumexp of the other logits minus the true logit
    index = target.long().unsqueeze(1)  # the true class, as an index on axis 1
    true_logit = x.gather(1, index)[:, 0]
    others = torch.logsumexp(x.scatter(1, index, -torch.inf), dim=1)
    loss = _apply_formula(others - true_logit, gamma) * constant(weights, x)[index[:, 0]]
    return reduce_losses(loss, target > 0, keep, reduction, normaliser)


class _SummedFocal(torch.autograd.Function):
    """The sum of the focal losses, whose gradient is computed in the same pass over the elements.

    torch would compute the gradient in a second pass. A CPU processes the elements in blocks that
    fit into its cache, a GPU all at once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        lesion: Tensor,
        keep: Tensor | None,
        lesion_weight: float,
        background_weight: float,
        gamma: float,
    ) -> Tensor:
        """Return the summed loss of all elements, and save its gradient for `backward`.

        Args:
            ctx: torch's object that stores tensors for `backward`.
            logits: Of any shape and dtype. The sum and its gradient are float32.
            lesion: True for lesion elements, of the logits' shape.
            keep: False for elements that are left out, of the logits' shape. None uses all
                elements.
            lesion_weight: Weight of lesion elements.
            background_weight: Weight of background elements.
            gamma: Focusing exponent.
        """
        gradient = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        total = gradient.new_zeros(())
        on_cpu = logits.device.type == "cpu"
        # on a CPU in blocks, otherwise all elements at once; `split` needs at least 1
        block_size = BLOCK if on_cpu else max(logits.numel(), 1)
        compute_block = _compute_on_cpu if on_cpu else _compute_on_gpu
        logit_blocks = torch.split(logits.reshape(-1), block_size)
        lesion_blocks = torch.split(lesion.reshape(-1), block_size)
        gradient_blocks = torch.split(gradient.reshape(-1), block_size)
        keep_blocks: Sequence[Tensor | None] = [None] * len(gradient_blocks)
        if keep is not None:
            keep_blocks = torch.split(keep.reshape(-1), block_size)
        for x, is_lesion, gradient_block, keep_block in zip(
            logit_blocks, lesion_blocks, gradient_blocks, keep_blocks, strict=True
        ):
            x = x.float()
            # a NaN that is left out must reach neither value nor gradient
            if keep_block is not None:
                x = x.masked_fill(~keep_block, 0)
                is_lesion = is_lesion & keep_block
            total += compute_block(
                x, is_lesion, keep_block, lesion_weight, background_weight, gamma, gradient_block
            )
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Return the saved gradient, multiplied by the gradient of the sum.

        torch expects one gradient for each argument of `forward`. Only the logits have one.
        """
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype), None, None, None, None, None


def _compute_on_cpu(
    x: Tensor,
    is_lesion: Tensor,
    mask: Tensor | None,
    lesion_weight: float,
    background_weight: float,
    gamma: float,
    out: Tensor,
) -> Tensor:
    """Return the summed loss of a block of elements on a CPU, and write its gradient to `out`.

    All elements are first computed as background. Then the few lesion elements are computed again.

    Args:
        x: Logits in fp32, 0 for elements that are left out.
        is_lesion: True for lesion elements, False for elements that are left out.
        mask: False for elements that are left out. None uses all elements.
        lesion_weight: Weight of lesion elements.
        background_weight: Weight of background elements.
        gamma: Focusing exponent.
        out: Receives the gradient with respect to the logits.
    """
    # NumPy because torch.nonzero takes as long as two sigmoids
    lesion_indices = torch.from_numpy(np.flatnonzero(is_lesion))
    error = torch.sigmoid(x)
    loss = F.softplus(x)
    weight = (error**gamma).mul_(background_weight)
    weight = weight if mask is None else weight.mul_(mask)
    weight.index_fill_(0, lesion_indices, 0)  # lesion elements follow below
    # dFL/dz of the module's docstring; `weight` is α_t · sigmoid(z)^γ. For background, z is x and
    # `error` is the probability of a lesion. `addcmul` computes error + γ · loss · (1 − error).
    torch.addcmul(error, loss, 1 - error, value=gamma, out=out).mul_(weight)
    total = torch.dot(weight, loss)
    # the lesion elements, for which z is −x; the gradient with respect to x changes its sign
    error = torch.sigmoid(-x[lesion_indices])
    loss = F.softplus(-x[lesion_indices])
    weight = lesion_weight * error**gamma
    out[lesion_indices] = -weight * (gamma * (1 - error) * loss + error)
    return total + torch.dot(weight, loss)


def _compute_on_gpu(
    x: Tensor,
    is_lesion: Tensor,
    mask: Tensor | None,
    lesion_weight: float,
    background_weight: float,
    gamma: float,
    out: Tensor,
) -> Tensor:
    """Return the summed loss of a block of elements on a GPU, and write its gradient to `out`.

    All elements are computed in the same way, because a list of the lesion elements would make the
    host wait for the GPU. The arguments are those of `_compute_on_cpu`.
    """
    z = torch.where(is_lesion, -x, x)  # the error logit
    error = torch.sigmoid(z)
    loss = F.softplus(z)
    weight = (error**gamma).mul_(torch.where(is_lesion, lesion_weight, background_weight))
    weight = weight if mask is None else weight.mul_(mask)
    # dFL/dz, see `_compute_on_cpu`
    torch.addcmul(error, loss, 1 - error, value=gamma, out=out).mul_(weight)
    torch.where(is_lesion, -out, out, out=out)  # the gradient with respect to x
    return torch.dot(weight, loss)


def _apply_formula(error_logit: Tensor, gamma: float) -> Tensor:
    """Compute the focal loss without α, (1 − p_t)^γ · (−log p_t), from the error logit.

    The result is differentiable any number of times.
    """
    # softplus(z) is −log p_t, and softplus(−z) is −log(1 − p_t), without loss of digits
    return torch.exp(-gamma * F.softplus(-error_logit)) * F.softplus(error_logit)


def reduce_losses(
    loss: Tensor, lesion: Tensor, keep: Tensor | None, reduction: str, normaliser: Normaliser
) -> Tensor:
    """Reduce the losses of all elements, or their sum, by `reduction`.

    Args:
        loss: The losses of the elements, or a scalar that is their sum already.
        lesion: True for lesion elements. They are counted if `per_positive` has no `normaliser`.
        keep: False for elements that are left out. None uses all elements.
        reduction: `none` returns `loss`, with 0 for elements that are left out. `sum` returns the
            sum. `mean` divides the sum by the number of elements that are not left out.
            `per_positive` divides the sum by `normaliser`.
        normaliser: The divisor for `per_positive`. None uses the number of lesion elements that are
            not left out. A divisor that is counted is at least 1.
    """
    if keep is not None and loss.ndim:  # a sum is complete already
        loss = loss.masked_fill(~keep, 0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean" and keep is None:
        normaliser = max(lesion.numel(), 1)  # `loss` may be a sum, so it does not tell the number
    elif reduction == "mean" and keep is not None:
        normaliser = keep.sum().clamp_min(1)
    elif normaliser is None:
        normaliser = (lesion if keep is None else lesion & keep).count_nonzero().clamp_min(1)
    elif isinstance(normaliser, Tensor):
        normaliser = normaliser.to(loss, non_blocking=True)
    return loss.sum() / normaliser


def _expand_alpha(alpha: Alpha, n_classes: int) -> list[float]:
    """Return one weight per class from the setting `alpha`.

    None gives the weight 1 to all classes. A single number applies to all classes.

    Raises:
        ConfigError: If `alpha` has another number of weights than there are classes.
    """
    weights = _to_floats(alpha)
    if weights is None:
        return [1.0] * n_classes
    if isinstance(weights, float):
        return [weights] * n_classes
    if len(weights) != n_classes:
        raise ConfigError(
            f"alpha has {len(weights)} numbers for {n_classes} classes. "
            f"Give one number for all classes, or {n_classes} numbers."
        )
    return weights


def _to_floats(alpha: Alpha) -> float | list[float] | None:
    """Convert α to a float or a list of floats, also from scalars and arrays of NumPy or torch.

    None stays None.

    Raises:
        ConfigError: If a weight is not a number.
    """
    if alpha is None or isinstance(alpha, float):
        return alpha
    if isinstance(alpha, Sequence) or np.ndim(alpha) > 0:
        return [as_number("alpha", weight) for weight in alpha]
    return as_number("alpha", alpha)


def as_number(name: str, value: Any) -> float:
    """Convert a setting to a float, also if it is a scalar of NumPy or torch.

    Args:
        name: The name of the setting, for the message.
        value: The setting.

    Raises:
        ConfigError: If the setting is not a number. A text such as "0.5" is not a number.
    """
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # a RuntimeError of a tensor with several values
        pass
    raise ConfigError(f"{name}={value!r} is not a number. Give a number.")


def posterior_logits(
    logits: Float[Tensor, "b k *spatial"], *, alpha: Alpha = 0.25, gamma: float = 2.0
) -> Float[Tensor, "b k *spatial"]:
    """Correct the scores of a network that was trained with focal loss: return logits of P(lesion).

    Focal loss distorts the scores p, so that they are no probabilities. With η = P(lesion), the
    derivatives of η·α·FL₁(p) + (1−η)·(1−α)·FL₀(p) balance at its minimum. This gives η : 1−η =
    h(p)/α : h(1−p)/(1−α) with h(v) = v / ((1−v)^γ − γ(1−v)^(γ−1)·v·log v) (Charoenphakdee et al.,
    CVPR 2021, theorem 11, with α added). The correction is strictly increasing and therefore
    changes no ranking.

    Args:
        logits: Logits of K independent classes, trained by `sigmoid_focal_loss` with α and γ.
        alpha: One number or one per class. None counts as ½. So do 0 and 1, which cannot be undone.
        gamma: The γ of the training. γ = 0 and α = ½ change nothing.

    Returns:
        fp32 logits of the same shape, finite for finite logits.

    Raises:
        ConfigError: If the number of `alpha` values is not K.

    >>> half = torch.zeros(1, 1, 1)
    >>> round(float(posterior_logits(half, alpha=0.25, gamma=2.0).sigmoid()), 6)
    0.75
    """
    logits = logits.float()
    # log p and log(1 − p) by softplus, because ONNX exports logsigmoid as log(sigmoid), which is
    # infinite below -18
    log_p = -F.softplus(-logits)
    log_not_p = -F.softplus(logits)
    weights = _expand_alpha(0.5 if alpha is None else alpha, logits.shape[1])
    # log(α / (1 − α)); it is infinite for α = 0 and α = 1, which count as ½
    log_odds = [math.log(a) - math.log1p(-a) if 0 < a < 1 else 0.0 for a in weights]
    log_odds_of_alpha = constant(log_odds, logits, n_after=logits.ndim - 2)
    return _log_h(log_p, log_not_p, gamma) - _log_h(log_not_p, log_p, gamma) - log_odds_of_alpha


def _log_h(log_v: Tensor, log_rest: Tensor, gamma: float) -> Tensor:
    """Compute the logarithm of the function h of `posterior_logits` without loss of digits.

    log h(v) = log v − (γ−1)·log(1−v) − log((1−v) − γ·v·log v).

    Args:
        log_v: The logarithm of v.
        log_rest: The logarithm of 1−v.
        gamma: The γ of the training.
    """
    # (1−v) − γ·v·log v = (1−v)·(1 + γ·quotient) with quotient = v·(−log v)/(1−v), which tends to 1
    # as v tends to 1. The limit is used below 1−v = e⁻¹⁵, from which on the difference is
    # about the precision of fp32. There the clamp keeps the unused quotient finite.
    v = log_v.exp()
    one_minus_v = log_rest.exp().clamp_min(1e-30)
    quotient = torch.where(log_rest > -15, v * -log_v / one_minus_v, 1.0)
    return log_v - gamma * log_rest - torch.log1p(gamma * quotient)


def lesion_target(
    labels: Shaped[Tensor, "b *any"], like: Float[Tensor, "b k *spatial"], valid: Any = None
) -> Bool[Tensor, "b k *spatial"]:
    """Return the mask of each lesion class, the target of a loss with one channel per class.

    A single class consists of all labels other than 0.

    Args:
        labels: A label map, or 0/1 of the shape of `like`.
        like: Logits or probabilities with one channel per lesion class. Only shape and dtype
            matter.
        valid: Mask of the valid voxels or None. Only its shape is checked.

    Raises:
        GeometryError: If the shapes do not fit together.
        ContentError: If `like` is not floating point, or a label map is.
    """
    labels = to_signed(labels)
    check_shapes(like, labels, valid)
    if labels.shape == like.shape:
        return labels.bool()
    if like.shape[1] == 1:  # faster than the comparison below, which takes as long as a sigmoid
        return labels.bool().unsqueeze(1)
    classes = torch.arange(1, like.shape[1] + 1, device=labels.device)  # 0 is background
    # the classes on axis 1, for all elements
    return labels.unsqueeze(1) == classes.reshape((-1,) + (1,) * (labels.ndim - 1))


def to_signed(labels: Tensor) -> Tensor:
    """Convert uint16, uint32 and uint64 labels to a signed type, and return other labels unchanged.

    torch can neither compare nor reduce the unsigned types.
    """
    signed_type = _SIGNED.get(labels.dtype)
    return labels if signed_type is None else labels.to(signed_type)


def check_settings(
    alpha: Alpha, gamma: float, reduction: str = "sum", normaliser: Normaliser = None
) -> None:
    """Raise `ConfigError` if a setting of a focal loss is outside its range.

    - α is None, or one or several numbers from 0 to 1.
    - γ is a finite number of at least 0.
    - The reduction is `none`, `mean`, `sum` or `per_positive`.
    - The normaliser is None or above 0. Only `per_positive` uses one; a tensor is not checked.
    """
    weights = _to_floats(alpha)
    if isinstance(weights, float):
        weights = [weights]
    if weights is not None and not all(0 <= weight <= 1 for weight in weights):
        raise ConfigError(f"alpha={alpha} is outside [0, 1].")
    if not 0 <= as_number("gamma", gamma) < math.inf:
        raise ConfigError(f"gamma={gamma} must be a finite number of at least 0.")
    if reduction not in ("none", "mean", "sum", "per_positive"):
        raise ConfigError(f"reduction={reduction!r} must be none, mean, sum or per_positive.")
    if normaliser is not None and reduction != "per_positive":
        raise ConfigError(
            f"reduction={reduction!r} does not use a normaliser. "
            "Leave it out, or set reduction='per_positive'."
        )
    if isinstance(normaliser, Real) and normaliser <= 0:
        raise ConfigError(f"normaliser={normaliser} must be above 0.")


def check_shapes(
    logits: Tensor, target: Tensor, valid: Tensor | None, *, exclusive: bool = False
) -> None:
    """Raise an error if logits, target and mask do not fit together.

    Args:
        logits: The logits `[B, C, *spatial]`, or `[n, C]` for anchors.
        target: The labels: a label map without the class axis or, unless `exclusive`, 0/1 of the
            logits' shape.
        valid: The mask of valid elements, with or without the class axis, or None.
        exclusive: True if channel 0 is background and the labels have to be a label map.

    Raises:
        GeometryError: If the shapes do not fit together.
        ContentError: If the logits are not floating point, or a label map is floating point.
    """
    if not logits.is_floating_point():
        raise ContentError(f"Logits must be floating point, not {logits.dtype}.")
    shape = tuple(logits.shape)
    min_channels = 2 if exclusive else 1
    if len(shape) < 2 or shape[1] < min_channels:
        raise GeometryError(
            f"Logits have the shape {shape}. Give [B, C, …] with at least {min_channels} channels."
        )
    spatial = (shape[0], *shape[2:])
    is_label_map = target.shape == spatial
    is_mask_of_classes = target.shape == shape and not exclusive  # 0 or 1 for each logit
    if is_label_map and target.is_floating_point():
        raise ContentError(f"A label map must contain integers, not {target.dtype}.")
    if not is_label_map and not is_mask_of_classes:
        raise GeometryError(
            f"A target of shape {tuple(target.shape)} does not fit logits {shape}. "
            f"Give labels {spatial} (0 background, k = class k)."
        )
    if valid is not None and valid.shape not in (shape, spatial):
        raise GeometryError(
            f"valid has the shape {tuple(valid.shape)}, but must have {spatial} or {shape}."
        )


def _check_labels(target: Tensor, keep: Tensor | None, highest: int) -> None:
    """Raise `ContentError` if a label of a valid element is not an integer from 0 to `highest`.

    Nothing is checked on a GPU, for booleans, and while torch.compile traces.

    Args:
        target: The labels: a label map, or 0 and 1 of the logits' shape.
        keep: False for elements that are left out, which may have any label. None checks all
            elements.
        highest: The highest label.
    """
    if target.device.type != "cpu" or target.dtype == torch.bool or torch.compiler.is_compiling():
        return  # reading values would wait for a GPU, or break the compiled graph
    low, high = torch.aminmax(target) if target.numel() else (0, 0)  # empty: nothing is wrong
    are_integers = not target.is_floating_point() or not target.frac().any()
    if low >= 0 and high <= highest and are_integers:
        return
    if keep is None and not are_integers:
        raise ContentError("The target contains fractions. Give 0 or 1 for each voxel and class.")
    if keep is None:
        raise ContentError(
            f"The target contains values from {low} to {high}, but the classes of these logits are "
            f"0 to {highest}. Exclude other voxels with `valid`."
        )
    # labels of voxels that are left out may have any value: check again with 0 in their place
    is_used = keep.any(1) if keep.ndim > target.ndim else keep
    _check_labels(target.masked_fill(~is_used, 0), keep=None, highest=highest)
