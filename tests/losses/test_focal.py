"""The focal loss against hand values, the closed form, other libraries and its own invariances."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lesionseg.losses import sigmoid_focal_loss, softmax_focal_loss

HALF_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def closed_form_sigmoid(
    x: np.ndarray, y: np.ndarray, alpha: float | None, gamma: float
) -> np.ndarray:
    """FL(p_t) = −α_t (1−p_t)^γ log p_t word for word, in double precision, for moderate logits."""
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    p_t = np.where(y, p, 1 - p)
    alpha_t = 1.0 if alpha is None else np.where(y, alpha, 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * np.log(p_t)


def closed_form_softmax(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, gamma: float
) -> np.ndarray:
    p = np.exp(x.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    p_t = np.take_along_axis(p, y[:, None], 1)[:, 0]
    return -weights[y] * (1 - p_t) ** gamma * np.log(p_t)


@pytest.mark.parametrize(
    ("logit", "lesion", "expected"),
    [
        # p = 1/2: a lesion 0.25 * 0.25 * log 2, background 0.75 * 0.25 * log 2
        (0.0, 1, 0.0433217),
        (0.0, 0, 0.1299651),
        # p = 0.9 (logit log 9): an easy lesion, then a false alarm
        (math.log(9), 1, 0.25 * 0.1**2 * 0.1053605),
        (math.log(9), 0, 0.75 * 0.9**2 * 2.3025851),
    ],
)
def test_hand_values(logit: float, lesion: int, expected: float) -> None:
    x, y = torch.tensor([[logit]]), torch.tensor([lesion])
    assert sigmoid_focal_loss(x, y, reduction="sum").item() == pytest.approx(expected, rel=1e-5)
    pair = torch.tensor([[0.0, logit]])
    assert softmax_focal_loss(pair, y, reduction="sum").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("alpha", "factor"), [(0.5, 0.5), (None, 1.0)])
@pytest.mark.parametrize("size", [5, 40])  # plain formula, then the fused one
def test_without_gamma_it_is_cross_entropy(alpha: float | None, factor: float, size: int) -> None:
    x = torch.randn(2, 1, size, size, size // 2, generator=torch.Generator().manual_seed(0))
    y = torch.rand(x.shape) < 0.3
    expected = factor * F.binary_cross_entropy_with_logits(x, y.float())
    loss = sigmoid_focal_loss(x, y, alpha=alpha, gamma=0, reduction="mean")
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_closed_form_in_double_precision(seed: int) -> None:
    """Random α, γ, shapes and numbers of classes, anchors included."""
    draw = np.random.default_rng(seed)
    n_classes, dims = int(draw.integers(1, 4)), int(draw.integers(0, 4))
    spatial = tuple(int(n) for n in draw.integers(1, 5, dims))
    gamma = float(draw.choice([0, 0.3, 1, 2, 3.7]))
    alpha = None if seed % 4 == 0 else float(draw.uniform(0, 1))
    x = draw.normal(0, 3, (3, n_classes, *spatial))
    labels = draw.integers(0, n_classes + 1, (3, *spatial))
    lesion = labels[:, None] == np.arange(1, n_classes + 1).reshape(-1, *[1] * dims)
    loss = sigmoid_focal_loss(
        torch.tensor(x), torch.tensor(labels), alpha=alpha, gamma=gamma, reduction="none"
    )
    assert loss.dtype == torch.float64
    expected = closed_form_sigmoid(x, lesion, alpha, gamma)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9)
    x = draw.normal(0, 3, (3, n_classes + 1, *spatial))
    weights = draw.uniform(0, 1, n_classes + 1)
    given: dict[str, Any] = {"alpha": weights.tolist(), "gamma": gamma, "reduction": "none"}
    loss = softmax_focal_loss(torch.tensor(x), torch.tensor(labels), **given)
    expected = closed_form_softmax(x, labels, weights, gamma)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.3])
def test_gradients_are_those_of_the_formula(gamma: float) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 0], [3, 0, 1, 1]])
    valid = torch.tensor([[True, True, False, True], [True] * 4])
    calls: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: sigmoid_focal_loss(x, labels, gamma=gamma, valid=valid),
        lambda x: softmax_focal_loss(x, labels.clamp_max(2), gamma=gamma, valid=valid),
    )
    for call in calls:
        assert torch.autograd.gradcheck(call, (x,))
        assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_agrees_with_monai(alpha: float | None, gamma: float) -> None:
    """MONAI's sigmoid without a background logit, and its softmax with one, mean over all."""
    from monai.losses import FocalLoss

    x, y = torch.randn(2, 3, 8, 7, 6), torch.randint(0, 4, (2, 8, 7, 6))
    one_hot = F.one_hot(y, 4).movedim(-1, 1)[:, 1:]
    theirs = FocalLoss(gamma=gamma, alpha=alpha)(x, one_hot)
    ours = sigmoid_focal_loss(x, y, gamma=gamma, alpha=alpha, reduction="mean")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    x = torch.randn(2, 4, 8, 7, 6)
    theirs = FocalLoss(gamma=gamma, alpha=alpha, to_onehot_y=True, use_softmax=True)(x, y[:, None])
    # theirs is a mean over the classes as well, of which all but the truth are 0
    ours = softmax_focal_loss(x, y, gamma=gamma, alpha=alpha, reduction="mean") / 4
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [4, 2**15])  # plain formula, then the fused one
def test_finite_for_enormous_logits(dtype: torch.dtype, gamma: float, size: int) -> None:
    x = torch.tensor([-1e4, 1e4]).repeat(size // 2).view(1, 1, size).to(dtype).requires_grad_()
    y = torch.tensor([0, 0, 1, 1]).repeat(size // 4).view(1, size)
    loss = sigmoid_focal_loss(x, y, gamma=gamma)
    loss.backward()
    assert loss.dtype == torch.float32
    # half of the lesions and as much background are wrong by the whole logit
    assert loss.item() == pytest.approx(0.5 * float(x.detach().max()), rel=1e-4)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.dtype == dtype
    pair = torch.cat([-x.detach(), x.detach()], 1).requires_grad_()
    loss = softmax_focal_loss(pair, y, gamma=gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert pair.grad is not None
    assert torch.isfinite(pair.grad).all()


def test_easy_voxels_keep_their_digits_in_single_precision() -> None:
    """p_t = 1 − 5e-5: 1 − p_t taken as a difference would be wrong in the fourth digit."""
    x, y = torch.full((1, 1, 3), -10.0, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.uint8)
    exact = closed_form_sigmoid(x.numpy(), y.numpy()[:, None] > 0, 0.25, 2.0).sum()
    loss = sigmoid_focal_loss(x.float(), y, reduction="sum")
    assert loss.item() == pytest.approx(exact, rel=1e-6)


def test_divides_by_the_lesion_voxels_or_by_the_normaliser() -> None:
    x, y = torch.randn(2, 2, 5, 5), torch.zeros(2, 5, 5, dtype=torch.int16)
    y[0, :2], y[1, 0, 0] = 1, 2  # 11 lesion voxels
    total = sigmoid_focal_loss(x, y, reduction="sum")
    torch.testing.assert_close(sigmoid_focal_loss(x, y), total / 11)
    for normaliser in (40.0, 40, torch.tensor(40), torch.tensor(40.0)):
        torch.testing.assert_close(sigmoid_focal_loss(x, y, normaliser=normaliser), total / 40)
    torch.testing.assert_close(sigmoid_focal_loss(x, y, reduction="mean"), total / 100)
    each = sigmoid_focal_loss(x, y, reduction="none")
    assert each.shape == x.shape
    torch.testing.assert_close(each.sum(), total)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "per_positive"])
def test_empty_input_gives_nothing(reduction: str) -> None:
    x = torch.zeros(0, 2, requires_grad=True)
    for function in (sigmoid_focal_loss, softmax_focal_loss):
        loss = function(x, torch.zeros(0, dtype=torch.int64), reduction=reduction)  # type: ignore[arg-type]
        loss.sum().backward()
        assert loss.sum() == 0
    x = torch.zeros(1, 2, 3)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    for function in (sigmoid_focal_loss, softmax_focal_loss):
        loss = function(x, nothing.long(), valid=nothing, reduction=reduction)  # type: ignore[arg-type]
        assert loss.sum() == 0


@pytest.mark.parametrize("size", [7, 25_000])  # plain formula, then the fused one
def test_what_is_not_valid_might_as_well_be_absent(size: int) -> None:
    """Even a NaN, or a label that is no class, in a voxel left out."""
    x, y = torch.randn(2, 1, size), torch.randint(0, 2, (2, size))
    valid = torch.rand(2, size) < 0.6
    kept_x, kept_y = x[:, 0][valid].view(1, 1, -1), y[valid].view(1, -1)
    x = x.masked_fill(~valid.unsqueeze(1), math.nan).requires_grad_()
    y = y.masked_fill(~valid, 77)
    for reduction in ("mean", "sum", "per_positive"):
        expected = sigmoid_focal_loss(kept_x, kept_y, reduction=reduction)
        for mask in (valid, valid.to(torch.uint8), valid.unsqueeze(1)):
            loss = sigmoid_focal_loss(x, y, valid=mask, reduction=reduction)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        loss = sigmoid_focal_loss(x, y, valid=y != 77, reduction=reduction)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, x)
    assert (gradient[~valid.unsqueeze(1)] == 0).all()
    assert torch.isfinite(gradient).all()


def test_softmax_leaves_out_what_is_not_valid() -> None:
    x, y = torch.randn(2, 3, 6), torch.randint(0, 3, (2, 6))
    valid = torch.rand(2, 6) < 0.6
    each = softmax_focal_loss(x, y, reduction="none")
    expected = each[valid].sum()
    x = x.masked_fill(~valid.unsqueeze(1), math.nan)
    y = y.masked_fill(~valid, 255)
    for mask in (valid, valid.unsqueeze(1).expand_as(x)):
        torch.testing.assert_close(softmax_focal_loss(x, y, valid=mask, reduction="sum"), expected)
    loss = softmax_focal_loss(x, y, valid=y != 255, reduction="none")
    torch.testing.assert_close(loss, each.masked_fill(~valid, 0))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
@pytest.mark.parametrize("size", [6, 30])  # plain formula, then the fused one
def test_every_label_type_gives_the_same(dtype: torch.dtype, size: int) -> None:
    x, y = torch.randn(1, 1, size, size, size), torch.rand(1, size, size, size) < 0.1
    expected = sigmoid_focal_loss(x.double(), y)
    torch.testing.assert_close(
        sigmoid_focal_loss(x, y.to(dtype)), expected.float(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("size", [5, 40_000])  # plain formula, then the fused one
def test_label_map_and_target_per_logit_mean_the_same(size: int) -> None:
    x, labels = torch.randn(2, 3, size), torch.randint(0, 4, (2, size))
    per_logit = labels.unsqueeze(1) == torch.arange(1, 4).view(1, 3, 1)
    for alpha in (0.25, [0.1, 0.2, 0.3]):
        by_label = sigmoid_focal_loss(x, labels, alpha=alpha)
        by_logit = sigmoid_focal_loss(x, per_logit, alpha=alpha)
        as_numbers = sigmoid_focal_loss(x, per_logit.float(), alpha=alpha)
        torch.testing.assert_close(by_logit, by_label, rtol=1e-5, atol=0)
        torch.testing.assert_close(as_numbers, by_label, rtol=1e-5, atol=0)
    anchors = sigmoid_focal_loss(x[0].t(), labels[0], alpha=alpha)
    torch.testing.assert_close(
        anchors, sigmoid_focal_loss(x[:1], labels[:1], alpha=alpha), rtol=1e-5, atol=0
    )
