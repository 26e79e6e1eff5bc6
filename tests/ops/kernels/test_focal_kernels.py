"""Numba's and Triton's focal loss against the plain formula in double precision."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lesionseg.ops.kernels.focal_fused import FocalKernels, run, sigmoid_kernels, softmax_kernels

LABEL_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def kernels_of(backend: Any, kind: str) -> FocalKernels:
    return (sigmoid_kernels if kind == "sigmoid" else softmax_kernels)(backend.module)


def weights_of(kind: str, n_channels: int) -> tuple[tuple[float, ...], ...]:
    """Different for each class, so that a mix-up shows."""
    if kind == "softmax":
        return (tuple(0.2 + 0.1 * c for c in range(n_channels)),)
    positive = tuple(0.25 + 0.1 * k for k in range(n_channels))
    return positive, tuple(1 - p for p in positive)


def sums_and_gradient(
    kernels: FocalKernels, x: Tensor, labels: Tensor, valid: Tensor | None, *settings: Any
) -> tuple[list[float], Tensor]:
    x = x.detach().requires_grad_()
    sums = run(kernels, x, labels, valid, *settings)
    (3 * sums.total).backward()
    assert x.grad is not None
    return [float(s.detach()) for s in sums], x.grad


def compare(
    kernels: FocalKernels, x: Tensor, labels: Tensor, valid: Tensor | None, *settings: Any
) -> list[float]:
    """Sum to 1e-5 of itself, each derivative to 1e-5 of itself or of the largest; the sums."""
    sums, gradient = sums_and_gradient(kernels, x, labels, valid, *settings)
    exact = x.detach().double().requires_grad_()
    total = kernels.plain(exact, labels, valid, *settings)
    (expected,) = torch.autograd.grad(3 * total, exact)
    assert sums[0] == pytest.approx(total.item(), rel=1e-5)
    assert gradient.dtype == x.dtype
    assert gradient.shape == x.shape
    # a whole unit in half precision: Triton's interpreter cuts bf16 off instead of rounding it
    unit = {torch.float32: 0, torch.float16: 2**-10, torch.bfloat16: 2**-7}[x.dtype]
    least = 1e-6 if x.dtype == torch.float32 else 1e-4
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5 + unit, atol=least)
    return sums


def random_input(kind: str, n_classes: int, n: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(n_classes)
    n_channels = n_classes + (kind == "softmax")
    x = 4 * torch.randn(2, n_channels, n, generator=draw) - 2
    labels = torch.randint(0, n_classes + 1, (2, n), generator=draw)
    valid = torch.rand(2, n, generator=draw) < 0.7
    return x.to(device), labels.to(device), valid.to(device)


def cases(backend: Any) -> list[str]:
    return ["sigmoid", "softmax"] if hasattr(backend.module, "softmax_sums") else ["sigmoid"]


@pytest.mark.parametrize("gamma", [0.0, 2.0, 0.7])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_agree_with_the_plain_formula(backend: Any, n_classes: int, gamma: float) -> None:
    for kind in cases(backend):
        kernels = kernels_of(backend, kind)
        x, labels, valid = random_input(kind, n_classes, 300, backend.device)
        for mask in (None, valid):
            settings = weights_of(kind, x.shape[1]), gamma
            _, n_positive, n_valid = compare(kernels, x, labels, mask, *settings)
            kept = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
            assert n_positive == ((labels > 0) & kept).sum()
            assert n_valid == kept.sum() * (x.shape[1] if kind == "sigmoid" else 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_agree_in_half_precision(backend: Any, dtype: torch.dtype) -> None:
    for kind in cases(backend):
        x, labels, valid = random_input(kind, 2, 300, backend.device)
        settings = weights_of(kind, x.shape[1]), 2.0
        compare(kernels_of(backend, kind), x.to(dtype), labels, valid, *settings)


@pytest.mark.parametrize("dtype", LABEL_TYPES)
def test_every_label_type_gives_the_same(backend: Any, dtype: torch.dtype) -> None:
    for kind in cases(backend):
        x, labels, _ = random_input(kind, 1, 60, backend.device)
        settings = weights_of(kind, x.shape[1]), 2.0
        expected = sums_and_gradient(kernels_of(backend, kind), x, labels, None, *settings)
        for mask in (None, torch.ones_like(labels), torch.ones_like(labels).float()):
            sums = sums_and_gradient(
                kernels_of(backend, kind), x, labels.to(dtype), mask, *settings
            )
            assert sums[0] == expected[0]
            assert torch.equal(sums[1], expected[1])


def test_any_layout_in_memory(backend: Any) -> None:
    """Channels last, anchors `[n, K]` seen as `[1, K, n]`, and every second voxel."""
    for kind in cases(backend):
        kernels = kernels_of(backend, kind)
        x, labels, valid = random_input(kind, 3, 60, backend.device)
        settings = weights_of(kind, x.shape[1]), 2.0
        compare(kernels, x.transpose(1, 2).contiguous().transpose(1, 2), labels, valid, *settings)
        compare(kernels, x[0].t().contiguous().t().unsqueeze(0), labels[:1], None, *settings)
        compare(kernels, x[:, :, ::2], labels[:, ::2], valid[:, ::2], *settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_for_enormous_logits(backend: Any, dtype: torch.dtype) -> None:
    for kind in cases(backend):
        for gamma in (0.0, 0.5, 2.0):
            x = torch.tensor([[[-1e4, 1e4] * 4]], device=backend.device).to(dtype)
            x = x if kind == "sigmoid" else torch.cat([-x, x], 1)
            labels = torch.tensor([[0, 0, 1, 1] * 2], device=backend.device)
            ones = ((1.0,), (1.0,)) if kind == "sigmoid" else ((1.0, 1.0),)
            sums, gradient = sums_and_gradient(
                kernels_of(backend, kind), x, labels, None, ones, gamma
            )
            top = float(x.max())
            assert sums[0] == pytest.approx(4 * top * (1 if kind == "sigmoid" else 2), rel=1e-6)
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() <= 3


def test_nan_counts_unless_it_is_left_out(backend: Any) -> None:
    for kind in cases(backend):
        x, labels, valid = random_input(kind, 2, 100, backend.device)
        settings = weights_of(kind, x.shape[1]), 2.0
        kernels = kernels_of(backend, kind)
        expected = sums_and_gradient(kernels, x, labels, valid, *settings)
        broken = x.masked_fill(~valid.unsqueeze(1), math.nan)
        sums, gradient = sums_and_gradient(kernels, broken, labels, valid, *settings)
        assert sums == expected[0]
        assert torch.equal(gradient, expected[1])
        assert math.isnan(sums_and_gradient(kernels, broken, labels, None, *settings)[0][0])


def test_differentiate_twice(backend: Any) -> None:
    for kind in cases(backend):
        kernels = kernels_of(backend, kind)
        x, labels, valid = random_input(kind, 2, 40, backend.device)
        settings = weights_of(kind, x.shape[1]), 2.0
        seconds = []
        for exact in (False, True):
            x = (x.double() if exact else x).detach().requires_grad_()
            total = (
                kernels.plain(x, labels, valid, *settings)
                if exact
                else run(kernels, x, labels, valid, *settings).total
            )
            (first,) = torch.autograd.grad(total, x, create_graph=True)
            seconds.append(torch.autograd.grad(first.square().sum(), x)[0].double())
        torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-5)


def test_two_runs_give_the_same_bits(backend: Any) -> None:
    x, labels, valid = random_input("sigmoid", 2, 900, backend.device)
    settings = weights_of("sigmoid", 2), 2.0
    kernels = kernels_of(backend, "sigmoid")
    first, second = (sums_and_gradient(kernels, x, labels, valid, *settings) for _ in range(2))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
