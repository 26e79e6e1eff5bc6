"""The focal loss by two launches of `focal_kernels`; nothing makes the host wait for the device."""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from lesionseg.ops.kernels import on_gpu
from lesionseg.ops.kernels.focal_kernels import SIGMOID, SOFTMAX
from lesionseg.ops.kernels.focal_plain import FocalSums, Voxels

BLOCK = 2048  # voxels of one program: 16 for each of 128 threads, loads of 16 bytes

Weights = tuple[tuple[float, ...], ...]


def sigmoid_sums(
    logits: Float[Tensor, "b k s"],
    labels: Integer[Tensor, "b s"] | Bool[Tensor, "b s"],
    valid: Shaped[Tensor, "b s"] | None,
    weights: Weights,
    gamma: float,
) -> FocalSums:
    """Summed loss, lesion voxels and valid logits; `weights` of lesions and of background."""
    sums = _sums(SIGMOID.sums, Voxels(logits, labels, valid), weights, gamma)
    return sums._replace(n_valid=sums.n_valid * logits.shape[1])


def sigmoid_gradient(
    logits: Float[Tensor, "b k s"],
    labels: Integer[Tensor, "b s"] | Bool[Tensor, "b s"],
    valid: Shaped[Tensor, "b s"] | None,
    weights: Weights,
    gamma: float,
    scale: Float[Tensor, ""],
) -> Float[Tensor, "b k s"]:
    """Derivative of `scale` times the summed loss by the logits, in their dtype."""
    return gradient(SIGMOID.gradient, Voxels(logits, labels, valid), weights, gamma, scale)


def softmax_sums(
    logits: Float[Tensor, "b c s"],
    labels: Integer[Tensor, "b s"] | Bool[Tensor, "b s"],
    valid: Shaped[Tensor, "b s"] | None,
    weights: Weights,
    gamma: float,
) -> FocalSums:
    """Summed loss, lesion voxels and valid voxels; `weights` holds one tuple, one a class."""
    return _sums(SOFTMAX.sums, Voxels(logits, labels, valid), weights, gamma)


def softmax_gradient(
    logits: Float[Tensor, "b c s"],
    labels: Integer[Tensor, "b s"] | Bool[Tensor, "b s"],
    valid: Shaped[Tensor, "b s"] | None,
    weights: Weights,
    gamma: float,
    scale: Float[Tensor, ""],
) -> Float[Tensor, "b c s"]:
    """Derivative of `scale` times the summed loss by the logits, in their dtype."""
    return gradient(SOFTMAX.gradient, Voxels(logits, labels, valid), weights, gamma, scale)


def _sums(kernel: Any, of: Voxels, weights: Weights, gamma: float) -> FocalSums:
    n_programs = len(of.logits) * n_blocks(of.logits)
    sums = torch.zeros(max(n_programs, 1), 3, device=of.logits.device)
    write_sums(kernel, sums, of, weights, gamma)
    # fp64, because a count of 2^24 voxels and more has no room in fp32
    return FocalSums(*sums.sum(0, dtype=torch.float64).float().unbind())


def write_sums(
    kernel: Any,
    sums: Float[Tensor, "programs n"],
    of: Voxels,
    weights: Weights,
    gamma: float,
    *,
    dice: bool = False,
) -> None:
    """Fill in the sums of each program, `n_blocks` a sample: loss, lesion and valid voxels.

    With `dice` Σ p·y, Σ p and Σ y of each lesion class too.
    """
    arguments, options = _arguments(of, weights, gamma, dice)
    if of.logits.numel():
        on_gpu.launch(kernel, len(of.logits) * n_blocks(of.logits), [*arguments, sums], options)


def gradient(
    kernel: Any,
    of: Voxels,
    weights: Weights,
    gamma: float,
    scale: Float[Tensor, ""],
    dice: tuple[Tensor, Tensor, int] | None = None,
) -> Float[Tensor, "b c s"]:
    """Derivative of `scale` times the summed loss by the logits, in their dtype.

    `dice`: the scale of Dice, the factors of both losses, and how many of these a sample has.
    """
    slopes = torch.empty_like(of.logits)
    arguments, options = _arguments(of, weights, gamma, dice is not None)
    arguments += [scale.contiguous(), *(dice or (scale, scale, 0)), slopes, *slopes.stride()]
    if of.logits.numel():
        on_gpu.launch(kernel, len(of.logits) * n_blocks(of.logits), arguments, options)
    return slopes


def n_blocks(logits: Float[Tensor, "b c s"]) -> int:
    """Programs a sample."""
    return -(-logits.shape[2] // BLOCK) if logits.numel() else 0


def _arguments(
    of: Voxels, weights: Weights, gamma: float, dice: bool
) -> tuple[list[Any], dict[str, Any]]:
    """What all four kernels take, in order and by name."""
    logits, labels, valid = of.logits, of.labels.contiguous(), of.valid
    mask = labels if valid is None else valid.contiguous()
    table = on_device(weights, logits.device)
    values = [logits.detach(), *logits.stride(), labels, mask, table, gamma, logits.shape[2]]
    options = {
        "C": logits.shape[1],
        "POWER": int(gamma) if gamma in (0, 2) else -1,
        "VALID": valid is not None,
        "DICE": dice,
        "BLOCK": BLOCK,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    return values, options


@lru_cache(maxsize=64)
def on_device(numbers: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers on the device, fp32 or int32, sent there once."""
    table = torch.tensor(numbers)
    table = table if table.is_floating_point() else table.int()
    return table.to(device, non_blocking=True)
