"""Dice with focal loss of all supervised levels at once, where a GPU has kernels for it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
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
from lesionseg.ops.kernels.focal_plain import Voxels
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
    targets: Sequence[tuple[Tensor, Tensor]],
    level_weights: Sequence[float],
    normalisers: Float[Tensor, " levels"],
) -> LossTerms | None:
    """The terms of a loss, weighted and summed over the levels; None where it has no kernels.

    `targets`: labels and valid mask of each level. The kernels are for label maps and at most
    single precision. fp32, differentiable once.
    """
    label_maps = all(y.ndim == x.ndim - 1 for x, (y, _) in zip(logits, targets, strict=True))
    usable = all(x.numel() > 0 and x.dtype != torch.float64 for x in logits)
    device = logits[0].device.type
    if not (label_maps and usable and has_level_kernels(loss, device)):
        return None
    kernels = gpu_kernels("levels_triton", device)
    return level_terms(kernels, loss, logits, targets, level_weights, normalisers)


def level_terms(
    kernels: Any,
    loss: Any,
    logits: Sequence[Tensor],
    targets: Sequence[tuple[Tensor, Tensor]],
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
    flat = [(labels.flatten(1), valid.flatten(1)) for labels, valid in targets]
    apply: Callable[..., tuple[Tensor, Tensor]] = _LevelTerms.apply
    dice, weighted = apply(settings, flat, normalisers, *(x.flatten(2) for x in logits))
    return {"dice": dice, name: weighted}


class _LevelTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: Any,
        targets: list[tuple[Tensor, Tensor]],
        normalisers: Tensor,
        *logits: Tensor,
    ) -> tuple[Tensor, Tensor]:
        levels = [Voxels(x, *target) for x, target in zip(logits, targets, strict=True)]
        terms, factors = settings.sums(levels, normalisers)
        ctx.settings, ctx.targets = settings, targets
        ctx.save_for_backward(factors, *logits)
        return terms[0], terms[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        factors, *logits = ctx.saved_tensors
        levels = [Voxels(x, *target) for x, target in zip(logits, ctx.targets, strict=True)]
        return None, None, None, *ctx.settings.gradients(levels, factors, scales)
