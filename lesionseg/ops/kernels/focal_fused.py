"""The fused focal loss as one differentiable operation, on whatever device can do it.

CUDA with Triton: `focal_triton`. CPU: `focal_numba` (sigmoid, and the softmax of two classes). For
double precision, small inputs on the CPU, compilation by torch and whatever a kernel does not know,
the answer here is None. They take the plain formula, which also differentiates twice.
"""

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lesionseg.ops.kernels.focal_plain import (
    FocalSums,
    lesion_of_class,
    sigmoid_focal_plain,
    softmax_focal_plain,
)
from lesionseg.ops.kernels.on_gpu import gpu_kernels

SMALL = 2**14  # logits; on a CPU the plain formula takes less time than starting threads
Weights = tuple[tuple[float, ...], ...]


class FocalKernels(NamedTuple):
    """One focal loss: `sums` of it, `gradient` of the sum, and the `plain` sum for second order."""

    sums: Callable[..., FocalSums]
    gradient: Callable[..., Tensor]
    plain: Callable[..., Tensor]


def fused_sigmoid_sums(
    logits: Float[Tensor, "b k *spatial"],
    target: Shaped[Tensor, "..."],
    valid: Shaped[Tensor, "..."] | None,
    positive: tuple[float, ...],
    negative: tuple[float, ...],
    gamma: float,
) -> FocalSums | None:
    """Sums of the sigmoid focal loss; None where the plain formula has to do it.

    Target and valid mask as `losses.sigmoid_focal_loss` takes them, already checked.
    """
    kernels = _sigmoid_kernels(logits)
    if kernels is None or target.is_floating_point():
        return None
    per_logit = target.shape == logits.shape
    if per_logit and len(set(positive)) == len(set(negative)) == 1:
        positive, negative = positive[:1], negative[:1]
        if valid is not None and valid.shape != logits.shape:
            valid = valid.unsqueeze(1).expand_as(logits)
        logits, target, valid = _as_one_class(logits, target, valid)
    elif per_logit:
        return None
    elif logits.shape[1] == 1:
        logits, target, valid = _as_one_class(logits, target, valid)
    elif valid is not None and valid.shape == logits.shape:
        return None
    else:
        logits, target, valid = _as_samples(logits, target, valid)
    return run(kernels, logits, target, valid, (positive, negative), gamma)


def fused_softmax_sums(
    logits: Float[Tensor, "b c *spatial"],
    target: Shaped[Tensor, "b *spatial"],
    valid: Shaped[Tensor, "b *spatial"] | None,
    weights: tuple[float, ...],
    gamma: float,
) -> FocalSums | None:
    """Sums of the softmax focal loss; None where the plain formula has to do it."""
    kernels = _softmax_kernels(logits)
    if kernels is not None:
        logits, target, valid = _as_samples(logits, target, valid)
        return run(kernels, logits, target, valid, (weights,), gamma)
    if logits.device.type == "cpu" and logits.shape[1] == 2 and _sigmoid_kernels(logits):
        # the softmax of two classes is the sigmoid of their difference
        difference = logits[:, 1:].float() - logits[:, :1].float()
        return fused_sigmoid_sums(difference, target, valid, weights[1:], weights[:1], gamma)
    return None


def run(
    kernels: FocalKernels,
    logits: Float[Tensor, "b c s"],
    labels: Shaped[Tensor, "b s"],
    valid: Shaped[Tensor, "b s"] | None,
    weights: Weights,
    gamma: float,
) -> FocalSums:
    """Sums by the given kernels; the total can be differentiated any number of times."""
    apply: Callable[..., tuple[Tensor, ...]] = _FusedSums.apply
    return FocalSums(*apply(logits, labels, valid, kernels, weights, gamma))


class _FusedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        logits: Tensor,
        labels: Tensor,
        valid: Tensor | None,
        kernels: FocalKernels,
        weights: Weights,
        gamma: float,
    ) -> tuple[Tensor, ...]:
        return tuple(kernels.sums(logits, labels, valid, weights, gamma))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, labels, valid, *ctx.settings = inputs
        ctx.save_for_backward(logits, labels, valid)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, valid = ctx.saved_tensors
        kernels, weights, gamma = ctx.settings
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            total = kernels.plain(logits, labels, valid, weights, gamma)
            (gradient,) = torch.autograd.grad(total, logits, scale, create_graph=True)
        else:
            gradient = kernels.gradient(logits, labels, valid, weights, gamma, scale)
        return gradient, None, None, None, None, None


def sigmoid_kernels(module: ModuleType) -> FocalKernels:
    """The sigmoid focal loss of `focal_numba` or `focal_triton`."""
    return FocalKernels(module.sigmoid_sums, module.sigmoid_gradient, _plain_sigmoid_sum)


def softmax_kernels(module: ModuleType) -> FocalKernels:
    """The softmax focal loss of `focal_triton`."""
    return FocalKernels(module.softmax_sums, module.softmax_gradient, _plain_softmax_sum)


def _sigmoid_kernels(logits: Tensor) -> FocalKernels | None:
    if not _has_kernels(logits):
        return None
    if logits.device.type != "cpu":
        module = gpu_kernels("focal_triton", logits.device.type)
        return None if module is None else sigmoid_kernels(module)
    fits = logits.numel() >= SMALL and logits.shape[1] < 255  # classes are bytes there
    return sigmoid_kernels(_numba()) if fits else None


def _softmax_kernels(logits: Tensor) -> FocalKernels | None:
    module = gpu_kernels("focal_triton", logits.device.type) if _has_kernels(logits) else None
    return None if module is None else softmax_kernels(module)


def _has_kernels(logits: Tensor) -> bool:
    """Whether there are kernels for this device and precision, and a use for them."""
    return (
        logits.dtype != torch.float64
        and logits.numel() > 0
        and not torch.compiler.is_compiling()  # a compiler fuses the plain formula by itself
    )


@lru_cache(maxsize=1)
def _numba() -> ModuleType:
    """The numba kernels, compiled at first use."""
    from lesionseg.ops.kernels import focal_numba

    return focal_numba


def _as_one_class(
    logits: Tensor, target: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All logits in one row of one class `[1, 1, n]`, targets and mask `[1, n]`."""
    valid = None if valid is None else valid.reshape(1, -1)
    return logits.reshape(1, 1, -1), target.reshape(1, -1), valid


def _as_samples(
    logits: Tensor, target: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`[B, C, n]`, targets and mask `[B, n]`; anchors `[n, C]` are one sample."""
    if logits.ndim == 2:
        valid = None if valid is None else valid.unsqueeze(0)
        return logits.t().unsqueeze(0), target.unsqueeze(0), valid
    valid = None if valid is None else valid.flatten(1)
    return logits.flatten(2), target.flatten(1), valid


def _plain_sigmoid_sum(
    logits: Tensor, labels: Tensor, valid: Tensor | None, weights: Weights, gamma: float
) -> Tensor:
    left_out = _left_out(labels, valid)
    logits = _single(logits).masked_fill(left_out.unsqueeze(1), 0)
    lesion = lesion_of_class(labels, logits.shape[1])
    loss = sigmoid_focal_plain(logits, lesion, weights[0], weights[1], gamma)
    return loss.masked_fill(left_out.unsqueeze(1), 0).sum()


def _plain_softmax_sum(
    logits: Tensor, labels: Tensor, valid: Tensor | None, weights: Weights, gamma: float
) -> Tensor:
    left_out = _left_out(labels, valid)
    logits = _single(logits).masked_fill(left_out.unsqueeze(1), 0)
    loss = softmax_focal_plain(logits, labels.masked_fill(left_out, 0), weights[0], gamma)
    return loss.masked_fill(left_out, 0).sum()


def _single(logits: Tensor) -> Tensor:
    """At least single precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _left_out(labels: Tensor, valid: Tensor | None) -> Tensor:
    return torch.zeros_like(labels, dtype=torch.bool) if valid is None else ~valid.bool()
