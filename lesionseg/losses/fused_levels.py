"""Dice with focal loss of all supervised levels at once, where a GPU has kernels for it."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lesionseg.losses.compound import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
)
from lesionseg.losses.inputs import sigmoid_weights, softmax_weights
from lesionseg.losses.voxel_loss import LossTerms
from lesionseg.ops.kernels.on_gpu import gpu_kernels


def has_level_kernels(loss: nn.Module, device_type: str = "cuda") -> bool:
    """Whether this loss of all levels has kernels on such a device: Dice with focal or with
    cross-entropy, by Triton.
    """
    known = type(loss) in (DiceFocalLoss, DiceCrossEntropyLoss)
    return known and gpu_kernels("levels_triton", device_type) is not None


def fused_level_terms(
    loss: nn.Module,
    logits: Sequence[Float[Tensor, "b c *spatial"]],
    labels: Sequence[Shaped[Tensor, "b *any"]],
    valid: Sequence[Bool[Tensor, "b *spatial"]],
    level_weights: Sequence[float],
    normalisers: Float[Tensor, " levels"],
) -> LossTerms | None:
    """The terms of a loss, weighted and summed over the levels; None where it has no kernels.

    Those are for label maps in at most single precision. fp32, differentiable once.
    """
    label_maps = all(y.ndim == x.ndim - 1 for x, y in zip(logits, labels, strict=True))
    usable = all(x.numel() > 0 and x.dtype != torch.float64 for x in logits)
    if not (label_maps and usable and has_level_kernels(loss, logits[0].device.type)):
        return None
    kernels = gpu_kernels("levels_triton", logits[0].device.type)
    return level_terms(kernels, loss, logits, labels, valid, level_weights, normalisers)


def level_terms(
    kernels: Any | ModuleType,
    loss: Any,
    logits: Sequence[Tensor],
    labels: Sequence[Tensor],
    valid: Sequence[Tensor],
    level_weights: Sequence[float],
    normalisers: Tensor,
) -> LossTerms:
    """The same by the given kernels."""
    other: FocalLoss | CrossEntropyLoss = loss.other
    focal, name = (
        (other, "focal") if isinstance(other, FocalLoss) else (other.focal, "cross_entropy")
    )
    softmax, n = loss.activation == "softmax", logits[0].shape[1]
    settings = kernels.LevelLoss(
        softmax,
        (softmax_weights(focal.alpha, n),) if softmax else sigmoid_weights(focal.alpha, n),
        focal.gamma,
        focal.reduction,
        focal.weight,
        loss.dice_weight,
        loss.smooth,
        loss.per_tile,
        tuple(level_weights),
    )
    flat = [x.flatten(2) for x in logits]
    targets = ([y.flatten(1) for y in labels], [v.flatten(1) for v in valid])
    dice, of_focal = _LevelTerms.apply(settings, *targets, normalisers, *flat)  # type: ignore[no-untyped-call]
    return {"dice": dice, name: of_focal}


class _LevelTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: Any,
        labels: list[Tensor],
        valid: list[Tensor],
        normalisers: Tensor,
        *logits: Tensor,
    ) -> tuple[Tensor, Tensor]:
        terms, factors = settings.sums(logits, labels, valid, normalisers)
        ctx.settings, ctx.targets = settings, (labels, valid)
        ctx.save_for_backward(factors, *logits)
        dice, focal = terms.unbind()
        return dice, focal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        factors, *logits = ctx.saved_tensors
        gradients = ctx.settings.gradients(logits, *ctx.targets, factors, scales)
        return None, None, None, None, *gradients
