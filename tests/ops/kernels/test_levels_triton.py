"""All levels' targets and loss by Triton's kernels, against the formulas level by level."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lesionseg.losses import DiceCrossEntropyLoss, DiceFocalLoss
from lesionseg.losses.fused_levels import fused_level_terms, level_terms
from lesionseg.training.step.supervision import targets_of_levels

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
WEIGHTS = (0.6, 0.3, 0.1)


def batch_of(shape: tuple[int, ...], device: str, n_classes: int = 2) -> dict[str, Tensor]:
    """Sparse lesions, and some voxels that teach nothing."""
    draw = torch.Generator().manual_seed(1)
    lesion = torch.rand(shape, generator=draw) < 0.1
    labels = torch.randint(1, n_classes + 1, shape, generator=draw) * lesion
    valid = torch.rand(shape, generator=draw) < 0.9
    batch = {"labels": labels.to(torch.uint8), "instances": labels.int(), "valid": valid}
    return {name: tensor.to(device) for name, tensor in batch.items()}


@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 4, 8, 12), STRIDES), ((3, 8, 16), ((1, 1), (2, 2), (4, 8))), ((1, 4, 4, 4), STRIDES)],
)
def test_targets_are_those_made_level_by_level(
    levels_triton: Any, shape: Any, strides: Any, *, middle: bool
) -> None:
    batch = batch_of(shape, levels_triton.device)
    expected, _ = targets_of_levels(batch, strides, middle=middle)
    made = levels_triton.module.level_targets(
        batch["labels"], batch["valid"], strides, middle=middle
    )
    for labels, valid, level in zip(*made[:2], expected, strict=True):
        assert torch.equal(labels, level.labels)
        assert torch.equal(valid, level.valid)
        assert labels.data_ptr() % 16 == 0  # as loads of 16 bytes ask for
    assert made[2].tolist() == [int((level.labels > 0).sum()) for level in expected]


def levels_of(loss: Any, device: str, n_classes: int) -> tuple[list[Tensor], list[Any], Tensor]:
    """Logits, targets and normalisers of three levels."""
    draw = torch.Generator().manual_seed(2)
    targets, _ = targets_of_levels(batch_of((2, 2, 8, 8), device, n_classes), STRIDES)
    n = n_classes + (loss.activation == "softmax")
    logits = [3 * torch.randn(2, n, *t.valid.shape[1:], generator=draw) - 1 for t in targets]
    return [x.to(device) for x in logits], targets, torch.tensor([31.5, 14.0, 3.5], device=device)


def one_by_one(loss: Any, logits: Any, targets: Any, normalisers: Any) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    for weight, x, t, n in zip(WEIGHTS, logits, targets, normalisers, strict=True):
        for name, term in loss(x, t.labels, valid=t.valid, normaliser=n).items():
            terms[name] = terms.get(name, 0) + weight * term
    return terms


def at_once(module: Any, loss: Any, logits: Any, targets: Any, normalisers: Any) -> Any:
    taught = [(t.labels, t.valid) for t in targets]
    return level_terms(module, loss, logits, taught, WEIGHTS, normalisers)


def with_gradients(terms: dict[str, Tensor], logits: list[Tensor]) -> tuple[Any, Any]:
    """The terms, and the gradient where they count differently."""
    total = sum(scale * term for scale, term in zip((2.0, 3.0), terms.values(), strict=True))
    return {name: t.detach() for name, t in terms.items()}, torch.autograd.grad(total, logits)


def compare(module: Any, loss: Any, logits: Any, targets: Any, normalisers: Any) -> Any:
    """To 1e-5, the formula in double precision; the terms."""
    exact = [x.double().requires_grad_() for x in logits]
    expected = with_gradients(one_by_one(loss, exact, targets, normalisers), exact)
    logits = [x.clone().requires_grad_() for x in logits]
    terms, gradients = with_gradients(at_once(module, loss, logits, targets, normalisers), logits)
    unit = 0 if logits[0].dtype == torch.float32 else 2**-7
    for name, term in expected[0].items():
        torch.testing.assert_close(terms[name].double(), term.double(), rtol=1e-5, atol=1e-7)
    for found, sought in zip(gradients, expected[1], strict=True):
        assert found.dtype == logits[0].dtype
        torch.testing.assert_close(found.double(), sought, rtol=2e-5 + unit, atol=1e-6)
    return terms


@pytest.mark.parametrize(
    ("loss", "n_classes"),
    [
        (DiceFocalLoss(0.5, 0.0, focal_weight=0.06), 1),  # the default of a training
        (DiceFocalLoss([0.2, 0.5, 0.9], 0.7, dice_weight=0.3, per_tile=True), 3),
        (DiceFocalLoss(None, 2.0, "mean"), 2),
        (DiceFocalLoss(0.5, 0.0, "mean", "softmax", 2.0, smooth=1e-5), 1),  # nnU-Net's
        (DiceFocalLoss(0.25, 2.0, "sum", "softmax", per_tile=True), 3),
        (DiceCrossEntropyLoss(5.0), 2),
    ],
)
def test_agree_with_the_formula(levels_triton: Any, loss: Any, n_classes: int) -> None:
    levels = levels_of(loss, levels_triton.device, n_classes)
    terms = compare(levels_triton.module, loss, *levels)
    assert list(terms) == list(one_by_one(loss, *levels))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_agree_in_bf16_channels_last_and_without_lesions(
    levels_triton: Any, activation: str
) -> None:
    loss = DiceFocalLoss(activation=activation)
    logits, targets, normalisers = levels_of(loss, levels_triton.device, 2)
    last = [x.to(memory_format=torch.channels_last_3d) for x in logits]
    compare(levels_triton.module, loss, last, targets, normalisers)
    compare(levels_triton.module, loss, [x.bfloat16() for x in logits], targets, normalisers)
    for target in targets:
        target.labels.zero_()
    terms = compare(levels_triton.module, loss, logits, targets, torch.ones_like(normalisers))
    assert 0 < terms["dice"] < 1


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_what_is_left_out_may_be_nan_and_logits_enormous(
    levels_triton: Any, activation: str
) -> None:
    loss = DiceFocalLoss(activation=activation)
    logits, targets, normalisers = levels_of(loss, levels_triton.device, 1)
    clean = with_gradients_of(levels_triton.module, loss, logits, targets, normalisers)
    left_out = [~t.valid.unsqueeze(1) for t in targets]
    broken = [x.masked_fill(m, math.nan) for x, m in zip(logits, left_out, strict=True)]
    found = with_gradients_of(levels_triton.module, loss, broken, targets, normalisers)
    torch.testing.assert_close(found, clean, rtol=0, atol=0)  # also: two runs, the same bits
    terms, gradients = with_gradients_of(
        levels_triton.module, loss, [1e4 * x for x in logits], targets, normalisers
    )
    assert all(torch.isfinite(t).all() for t in (*terms.values(), *gradients))


def with_gradients_of(module: Any, loss: Any, logits: Any, *of: Any) -> tuple[Any, Any]:
    logits = [x.clone().requires_grad_() for x in logits]
    return with_gradients(at_once(module, loss, logits, *of), logits)


def test_a_cpu_regions_and_other_losses_keep_the_formula() -> None:
    loss = DiceFocalLoss()
    logits, targets, normalisers = levels_of(loss, "cpu", 1)
    taught = [(t.labels, t.valid) for t in targets]
    assert fused_level_terms(loss, logits, taught, WEIGHTS, normalisers) is None


def test_samples_of_more_than_32_bits_are_reached(levels_triton: Any) -> None:
    """Two tiles 2^31 elements apart; the memory between is never touched."""
    loss = DiceFocalLoss()
    logits, targets, normalisers = levels_of(loss, levels_triton.device, 1)
    try:
        storage = torch.empty(2**31 + 600, dtype=torch.float16, device=levels_triton.device)
    except RuntimeError:
        pytest.skip("no 4 GiB of address space")
    near = [x.half() for x in logits]
    far = [storage.as_strided(x.shape, (2**31, *x.stride()[1:])) for x in near[:1]]
    far[0].copy_(near[0])
    of = (targets, normalisers)
    found = at_once(levels_triton.module, loss, [*far, *near[1:]], *of)
    torch.testing.assert_close(
        found, at_once(levels_triton.module, loss, near, *of), rtol=0, atol=0
    )
