"""The sigmoid focal loss on the CPU: one pass over logits and labels forward, one backward.

5 bytes a voxel are read each way and nothing but the gradient is written. exp and log1p are
polynomials, because LLVM makes vector instructions of these and not of calls into the C library.
numba compiles at first use (about a second, kept on disk). Speed: benchmarks/bench_focal.py.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.ops.kernels.compiled_code import Function, compiler
from lesionseg.ops.kernels.focal_plain import FocalSums

LEFT_OUT = 255  # the label of voxels that neither teach nor count
_Array = NDArray[np.float32]

_F = np.float32
_BLOCK = 4096  # voxels summed in fp32 before fp64 takes over; their 20 kB stay in the L1 cache
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)
_LOWEST = _F(-87)  # exp of anything lower is no normal fp32 number
_LOG2_E, _LOG_2 = _F(1.4426950408889634), _F(0.6931471805599453)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)  # of an fp32 number's exponent
# exp(r) for |r| ≤ ½·log 2 and log1p(e)/e for e in [0, 1], interpolated at Chebyshev nodes:
# relative errors 2e-8 and 3e-8, half of what rounding to fp32 costs
_E2, _E3, _E4, _E5, _E6 = map(_F, (0.5, 0.16666415, 0.041666217, 0.008375135, 0.001394859))
_L1, _L2, _L3 = map(_F, (-0.49999905, 0.33330005, -0.24954559))
_L4, _L5, _L6 = map(_F, (0.19678117, -0.15311863, 0.10614265))
_L7, _L8, _L9 = map(_F, (-0.0570642, 0.019907162, -0.0032563785))


def _inlined(function: Function) -> Function:
    """Part of the loop that calls it: LLVM makes no vector instructions of a call."""
    return cast(Function, numba.njit(inline="always", error_model="numpy")(function))


# sums may be reordered and products fused; NaN and infinity keep their meaning
_compiled = compiler("contract", "reassoc", "nsz", "arcp")


@_inlined
def _exp(t: Any) -> Any:
    """exp(t) for t ≤ 0: 2^n · exp(r) with r = t − n·log 2, 2^n written into the exponent bits."""
    t = max(t, _LOWEST)
    n = np.floor(t * _LOG2_E + _HALF)
    r = t - n * _LOG_2
    power = np.int32((np.int32(n) + _BIAS) << _MANTISSA_BITS).view(np.float32)
    return power * ((((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + _ONE) * r + _ONE)


@_inlined
def _log1p(e: Any) -> Any:
    """log(1 + e) for e in [0, 1]."""
    p = (((_L9 * e + _L8) * e + _L7) * e + _L6) * e + _L5
    return e * (((((p * e + _L4) * e + _L3) * e + _L2) * e + _L1) * e + _ONE)


@_inlined
def _parts(z: Any, gamma: Any) -> Any:
    """sigmoid(z)^γ, sigmoid(z), sigmoid(−z) and softplus(z) of an error logit z."""
    e = _exp(-abs(z))
    large = _ONE / (_ONE + e)
    small = e * large
    log1p = _log1p(e)
    error = large if z > _ZERO else small
    truth = small if z > _ZERO else large
    if gamma == 2:
        focus = error * error
    elif gamma == 0:
        focus = _ONE
    else:
        focus = _exp(gamma * (min(z, _ZERO) - log1p))
    return focus, error, truth, max(z, _ZERO) + log1p


@_compiled
def _block_sum(x: Any, label: Any, k: Any, positive: Any, negative: Any, gamma: Any) -> Any:
    """Summed loss of one class in one block."""
    total = _ZERO
    for i in range(x.size):
        lesion = label[i] == k
        kept = label[i] != LEFT_OUT
        z = x[i] if kept else _ZERO
        focus, _, _, cross_entropy = _parts(-z if lesion else z, gamma)
        weight = positive if lesion else negative
        total += (weight if kept else _ZERO) * focus * cross_entropy
    return total


@_compiled
def _block_gradient(
    x: Any, label: Any, k: Any, positive: Any, negative: Any, gamma: Any, out: Any
) -> None:
    """Derivative of the loss of one class in one block by each logit, written to `out`.

    d/dz sigmoid(z)^γ · softplus(z) = sigmoid(z)^γ · (γ · sigmoid(−z) · softplus(z) + sigmoid(z)).
    """
    for i in range(x.size):
        lesion = label[i] == k
        kept = label[i] != LEFT_OUT
        z = x[i] if kept else _ZERO
        focus, error, truth, cross_entropy = _parts(-z if lesion else z, gamma)
        weight = -positive if lesion else negative
        slope = focus * (gamma * truth * cross_entropy + error)
        out[i] = (weight if kept else _ZERO) * slope


@_compiled
def _count(label: Any) -> Any:
    """Numbers of lesion voxels and of voxels left out in one block."""
    n_positive, n_left_out = 0, 0
    for i in range(label.size):
        n_positive += (label[i] != 0) & (label[i] != LEFT_OUT)
        n_left_out += label[i] == LEFT_OUT
    return n_positive, n_left_out


@_compiled
def _sums(x: Any, label: Any, positive: Any, negative: Any, gamma: Any, span: Any) -> Any:
    """Summed loss, lesion and left-out voxels of the blocks `span[0]` to `span[1]`."""
    n_blocks = -(-x.shape[2] // _BLOCK)
    total, n_positive, n_left_out = 0.0, 0, 0
    for block in range(span[0], span[1]):
        b, start = block // n_blocks, block % n_blocks * _BLOCK
        labels = label[b][start : start + _BLOCK]
        counted = _count(labels)
        n_positive += counted[0]
        n_left_out += counted[1]
        for k in range(x.shape[1]):
            logits = x[b, k][start : start + _BLOCK]
            total += _block_sum(logits, labels, k + 1, positive[k], negative[k], gamma)
    return total, n_positive, n_left_out


@_compiled
def _gradient(
    x: Any, label: Any, positive: Any, negative: Any, gamma: Any, span: Any, out: Any
) -> None:
    """Derivatives in the blocks `span[0]` to `span[1]`, written to `out`."""
    n_blocks = -(-x.shape[2] // _BLOCK)
    for block in range(span[0], span[1]):
        b, start = block // n_blocks, block % n_blocks * _BLOCK
        labels = label[b][start : start + _BLOCK]
        for k in range(x.shape[1]):
            logits, slot = x[b, k][start : start + _BLOCK], out[b, k][start : start + _BLOCK]
            _block_gradient(logits, labels, k + 1, positive[k], negative[k], gamma, slot)


Weights = tuple[tuple[float, ...], ...]


def sigmoid_sums(
    logits: Float[Tensor, "b k s"],
    labels: Integer[Tensor, "b s"] | Bool[Tensor, "b s"],
    valid: Shaped[Tensor, "b s"] | None,
    weights: Weights,
    gamma: float,
) -> FocalSums:
    """Summed loss, lesion voxels and valid logits; `weights` of lesions and of background.

    Classes are numbered up to 254.
    """
    x, label = _arrays(logits, labels, valid)
    positive, negative = (np.array(w, _F) for w in weights)
    parts = _on_threads(lambda span: _sums(x, label, positive, negative, _F(gamma), span), x)
    total, n_positive, n_left_out = (sum(column) for column in zip(*parts, strict=True))
    n_valid = (label.size - n_left_out) * x.shape[1]
    return FocalSums(*(torch.tensor(float(n)) for n in (total, n_positive, n_valid)))


def sigmoid_gradient(
    logits: Float[Tensor, "b k s"],
    labels: Integer[Tensor, "b s"] | Bool[Tensor, "b s"],
    valid: Shaped[Tensor, "b s"] | None,
    weights: Weights,
    gamma: float,
    scale: Float[Tensor, ""],
) -> Float[Tensor, "b k s"]:
    """Derivative of `scale` times the summed loss by the logits, in their dtype."""
    x, label = _arrays(logits, labels, valid)
    positive, negative = (np.array(w, _F) * _F(scale.item()) for w in weights)
    gradient = torch.empty(x.shape)
    out = gradient.numpy()
    _on_threads(lambda span: _gradient(x, label, positive, negative, _F(gamma), span, out), x)
    return gradient.to(logits.dtype)


def _arrays(
    logits: Tensor, labels: Tensor, valid: Tensor | None
) -> tuple[_Array, NDArray[np.uint8]]:
    """Logits as contiguous fp32, labels as uint8 with `LEFT_OUT`; no copy where they are so."""
    labels = labels.to(torch.uint8)
    if valid is not None:
        labels = labels.masked_fill(~valid.bool(), LEFT_OUT)
    return logits.detach().float().contiguous().numpy(), labels.contiguous().numpy()


def _on_threads(work: Callable[[tuple[int, int]], Any], x: _Array) -> list[Any]:
    """`work` over all blocks of `x`, cut into one span for each of torch's threads."""
    n_blocks = x.shape[0] * -(-x.shape[2] // _BLOCK)
    n_threads = max(1, min(torch.get_num_threads(), n_blocks))
    edges = [n_blocks * i // n_threads for i in range(n_threads + 1)]
    spans = list(pairwise(edges))
    if n_threads == 1:
        return [work(spans[0])]
    return list(_pool(os.getpid(), n_threads).map(work, spans))


@lru_cache(maxsize=1)
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    """The threads of this process: a forked one has none of its parent's and gets its own."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix=f"focal-{process}")
