"""The focal loss: values by hand, the closed form, and invariances."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax

from lesionseg.errors import ConfigError, ContentError, GeometryError
from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    LesionBalancedLoss,
    posterior_logits,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from tests.noise import noise

LABEL_TYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
REDUCTIONS = ("none", "mean", "sum", "per_positive")
BOTH = pytest.mark.parametrize("function", [sigmoid_focal_loss, softmax_focal_loss])


def compute_closed_form(p_t, alpha_t, gamma):
    """Compute −α_t (1−p_t)^γ log p_t in double precision, for moderate logits."""
    return -alpha_t * (1 - p_t) ** gamma * np.log(p_t)


@pytest.mark.parametrize(
    ("logit", "lesion", "expected"),
    [
        (0.0, 1, 0.0433217),  # p = 1/2: 0.25 * 0.25 * log 2
        (math.log(9), 0, 0.75 * 0.9**2 * 2.3025851),  # p = 0.9: a false positive
    ],
)
def test_loss_has_the_values_computed_by_hand(logit, lesion, expected):
    x = torch.tensor([[logit]])
    y = torch.tensor([lesion])
    assert sigmoid_focal_loss(x, y, reduction="sum").item() == pytest.approx(expected, rel=1e-5)
    pair = torch.tensor([[0.0, logit]])
    assert softmax_focal_loss(pair, y, reduction="sum").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_loss_equals_the_closed_form(seed):
    """Try random α, γ, shapes, classes and anchors, in three precisions."""
    draw = np.random.default_rng(seed)
    n_classes = int(draw.integers(1, 4))
    spatial = tuple(draw.integers(1, 5, draw.integers(0, 4)).tolist())
    gamma = float(draw.choice([0, 0.3, 1, 2, 3.7]))
    x = draw.normal(0, 3, (3, 1 + n_classes, *spatial))
    labels = draw.integers(0, n_classes + 1, (3, *spatial))
    lesion = np.stack([labels == k for k in range(1, n_classes + 1)], axis=1)
    weights = draw.uniform(0, 1, n_classes + 1)
    alpha = [None, float(weights[0]), weights[1:].tolist()][seed % 3]
    p = expit(x[:, 1:])
    of_class = weights[1:] if seed % 3 == 2 else weights[:1]
    of_class = of_class.reshape(-1, *(1 for _ in spatial))
    alpha_t = 1.0 if alpha is None else np.where(lesion, of_class, 1 - of_class)
    by_sigmoid = compute_closed_form(np.where(lesion, p, 1 - p), alpha_t, gamma)
    p_t = np.take_along_axis(softmax(x, axis=1), labels[:, None], 1)[:, 0]
    by_softmax = compute_closed_form(p_t, weights[labels], gamma)
    logits = torch.tensor(x)
    target = torch.tensor(labels)
    for function, given, a, expected in (
        (sigmoid_focal_loss, logits[:, 1:], alpha, by_sigmoid),
        (softmax_focal_loss, logits, weights.tolist(), by_softmax),
    ):
        loss = function(given, target, alpha=a, gamma=gamma, reduction="none")
        assert loss.dtype == torch.float64
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9)
        total = partial(function, target=target, alpha=a, gamma=gamma, reduction="sum")
        found = []
        for dtype in (torch.float32, torch.float64):
            found.append(torch.autograd.functional.vjp(total, given.to(dtype)))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6, check_dtype=False)
        half = given.bfloat16()
        assert total(half) == total(half.float())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.3])
@BOTH
def test_gradients_pass_a_numerical_check(function, gamma):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 0], [2, 0, 1, 1]])
    valid = torch.tensor([[True, True, False, True], [True] * 4])
    call = partial(function, target=labels, gamma=gamma, valid=valid)
    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("dtype", LABEL_TYPES)
def test_value_and_gradient_over_several_blocks_equal_those_in_double(dtype):
    """Compare a million voxels in single and double precision, with labels of every dtype."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 10**6, generator=draw)
    y = torch.rand(1, 10**6, generator=draw) < 0.1
    valid = torch.rand(1, 10**6, generator=draw) < 0.9
    found = []
    for kind, labels in ((torch.float64, y), (torch.float32, y.to(dtype))):
        logits = x.to(kind).requires_grad_()
        loss = sigmoid_focal_loss(logits, labels, valid=valid)
        found.append((loss.float(), torch.autograd.grad(loss, logits)[0].float()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_value_and_gradient_are_finite_for_extreme_logits(dtype, gamma):
    x = torch.tensor([[[-1e4, 1e4, -1e4, 1e4]]]).to(dtype).requires_grad_()
    y = torch.tensor([[0, 0, 1, 1]])
    loss = sigmoid_focal_loss(x, y, gamma=gamma)
    loss.backward()
    assert loss.dtype == torch.float32
    # half of the lesions and half of the background are wrong by the whole logit
    assert loss.item() == pytest.approx(0.5 * float(x.detach().max()), rel=1e-4)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.dtype == dtype
    pair = torch.cat([-x.detach(), x.detach()], 1).requires_grad_()
    loss = softmax_focal_loss(pair, y, gamma=gamma)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, pair)[0]).all()


def test_easy_voxels_keep_their_digits_in_single_precision():
    """Use p_t = 1 − 5e-5, for which the difference 1 − p_t is wrong in the fourth digit."""
    x = torch.full((1, 1, 3), -10.0)
    y = torch.zeros(1, 3, dtype=torch.uint8)
    exact = 3 * compute_closed_form(1 / (1 + np.exp(-10.0)), 0.75, 2.0)
    assert sigmoid_focal_loss(x, y, reduction="sum").item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("function", "n_channels", "n_losses"),
    [(sigmoid_focal_loss, 2, 100), (softmax_focal_loss, 3, 50)],
)
def test_sum_is_divided_by_lesion_voxels_or_by_the_normaliser(function, n_channels, n_losses):
    x = torch.randn(2, n_channels, 5, 5)
    y = torch.zeros(2, 5, 5, dtype=torch.int16)
    y[0, :2] = 1
    y[1, 0, 0] = 2  # 11 lesion voxels in total
    total = function(x, y, reduction="sum")
    torch.testing.assert_close(function(x, y), total / 11)
    for normaliser in (0.25, torch.tensor(40)):
        found = function(x, y, normaliser=normaliser)
        torch.testing.assert_close(found, total / normaliser)
    torch.testing.assert_close(function(x, y, reduction="mean"), total / n_losses)


@BOTH
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_input_gives_zero(function, reduction):
    x = torch.zeros(0, 2, requires_grad=True)
    loss = function(x, torch.zeros(0, dtype=torch.int64), reduction=reduction)
    loss.sum().backward()
    assert loss.sum() == 0
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    loss = function(torch.zeros(1, 2, 3), nothing.long(), valid=nothing, reduction=reduction)
    assert loss.sum() == 0


@BOTH
@pytest.mark.parametrize("reduction", REDUCTIONS[1:])
def test_invalid_voxels_give_the_loss_of_the_remaining_voxels(function, reduction):
    """Set invalid voxels to NaN and an unknown label."""
    channels = 1 if function is sigmoid_focal_loss else 3
    x = torch.randn(2, channels, 7)
    y = torch.randint(0, max(channels, 2), (2, 7))
    valid = torch.rand(2, 7) < 0.6
    valid[:, :2] = torch.tensor([True, False])
    valid_x = x.movedim(1, -1)[valid]
    valid_y = y[valid]
    x = x.masked_fill(~valid.unsqueeze(1), math.nan).requires_grad_()
    y = y.masked_fill(~valid, 77)
    for mask in (valid, valid.to(torch.uint8), valid.unsqueeze(1).expand_as(x)):
        loss = function(x, y, valid=mask, reduction=reduction)
        expected = function(valid_x, valid_y, reduction=reduction)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        (gradient,) = torch.autograd.grad(loss, x)
        assert (gradient.movedim(1, -1)[~valid] == 0).all()
        assert torch.isfinite(gradient).all()
    each = function(x, y, valid=valid, reduction="none")
    total = function(valid_x, valid_y, reduction="sum")
    assert each.sum().item() == pytest.approx(total.item(), rel=1e-5)


# --- invalid arguments ---

LOGITS = torch.zeros(2, 3, 4)
LABELS = torch.zeros(2, 4, dtype=torch.int64)
SETTINGS = (
    {"reduction": "average"},
    {"gamma": -1.0},
    {"gamma": math.nan},
    {"alpha": np.float32(1.5)},
    {"alpha": torch.tensor(-0.1)},
    {"alpha": "0.5"},
    {"alpha": [0.1, 0.2, 0.3, 0.4, 0.5]},
    {"normaliser": 0.0},
    {"normaliser": 5.0, "reduction": "mean"},
)


@BOTH
@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (ContentError, {"target": LABELS - 1}),
        (ContentError, {"target": LABELS + 4}),
        (ContentError, {"target": LABELS + 255}),
        (ContentError, {"target": LABELS.float()}),
        (ContentError, {"logits": LOGITS.long()}),
        (GeometryError, {"logits": torch.zeros(4), "target": torch.zeros(4)}),
    ],
)
def test_invalid_logits_or_targets_are_an_error_in_both_losses(function, error, wrong):
    with pytest.raises(error):
        function(**{"logits": LOGITS, "target": LABELS, **wrong})


@BOTH
@pytest.mark.parametrize("settings", SETTINGS)
def test_invalid_settings_are_an_error_in_both_losses(function, settings):
    with pytest.raises(ConfigError):
        function(LOGITS, LABELS, **settings)


@BOTH
@pytest.mark.parametrize("name", ["target", "valid"])
@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (2, 4, 1), (2, 2, 4), ()])
def test_target_or_valid_of_another_shape_is_an_error_in_both_losses(function, shape, name):
    arguments = {"target": LABELS, name: torch.zeros(shape, dtype=torch.int64)}
    with pytest.raises(GeometryError):
        function(LOGITS, **arguments)


@BOTH
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_labels_give_the_loss_of_signed_ones(function, dtype):
    logits = noise(2, 3, 4)
    labels = torch.tensor([[0, 1, 2, 0], [2, 0, 0, 1]])
    valid = torch.tensor([[True, True, False, True], [True, False, True, True]])
    expected = function(logits, labels, valid=valid)
    assert torch.equal(function(logits, labels.to(dtype), valid=valid), expected)
    with pytest.raises(ContentError, match="from 0 to 4"):
        function(logits, (2 * labels).to(dtype))


@BOTH
@pytest.mark.parametrize("make", [np.float32, np.float64, torch.tensor])
def test_alpha_and_gamma_may_be_scalars_of_numpy_or_torch(function, make):
    logits = torch.linspace(-3, 3, 24).reshape(2, 3, 4)
    labels = torch.arange(8).reshape(2, 4) % 3
    expected = function(logits, labels, alpha=0.75, gamma=1.5)
    assert torch.equal(function(logits, labels, alpha=make(0.75), gamma=make(1.5)), expected)


@pytest.mark.parametrize("value", [-0.1, 0.5, 1.1, math.nan, 2])
def test_target_of_the_sigmoid_loss_other_than_0_or_1_is_an_error(value):
    with pytest.raises(ContentError):
        sigmoid_focal_loss(LOGITS, torch.full((2, 3, 4), value))


def test_softmax_loss_of_one_channel_or_of_a_target_with_channels_is_an_error():
    for logits, target in ((LOGITS[:, :1], LABELS), (LOGITS, LOGITS)):
        with pytest.raises(GeometryError):
            softmax_focal_loss(logits, target)


# --- from scores to probabilities ---


def find_minimiser(eta, alpha, gamma):
    """Find the logit of least expected loss for a voxel that is lesion with probability η."""
    shares = torch.tensor([1 - eta, eta], dtype=torch.float64)

    def compute_expected_loss(logit):
        x = torch.full((2, 1), logit, dtype=torch.float64)
        y = torch.tensor([0, 1])
        each = sigmoid_focal_loss(x, y, alpha=alpha, gamma=gamma, reduction="none")
        return float(shares @ each.flatten())

    return float(minimize_scalar(compute_expected_loss, bounds=(-30, 30), method="bounded").x)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_posterior_logits_return_the_true_probability(alpha, gamma):
    for eta in (0.02, 0.3, 0.5, 0.9):
        logit = torch.full((1, 1, 1), find_minimiser(eta, alpha, gamma))
        found = posterior_logits(logit, alpha=alpha, gamma=gamma).sigmoid().item()
        assert found == pytest.approx(eta, abs=2e-3)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_posterior_logits_are_finite_and_increasing(alpha, gamma):
    logits = torch.linspace(-80, 80, 2001).view(1, 1, -1)
    out = posterior_logits(logits, alpha=alpha, gamma=gamma)
    assert torch.isfinite(out).all()
    assert (out.diff() > 0).all()


def test_posterior_logits_take_a_weight_per_class():
    found = posterior_logits(torch.zeros(1, 2, 1), alpha=[0.25, 0.5], gamma=2.0).sigmoid()
    assert found.flatten().tolist() == pytest.approx([0.75, 0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "link"),
    [
        (FocalLoss(0.25, 2.0), (0.25, 2.0)),
        (CrossEntropyLoss(lesion_weight=3.0), (0.75, 0.0)),
        (DiceFocalLoss(0.25, 2.0), None),
        (DiceFocalLoss(0.4, 1.5, dice_weight=0), (0.4, 1.5)),  # only the focal term remains
        (DiceFocalLoss(0.4, 1.5, dice_weight=0, activation="softmax"), None),
        (DiceCrossEntropyLoss(), None),
        (DiceCrossEntropyLoss(lesion_weight=3.0, dice_weight=0), (0.75, 0.0)),
        (LesionBalancedLoss(0.4, 1.5, dice_weight=0, lesion_weight=0), (0.4, 1.5)),
        (LesionBalancedLoss(0.4, 1.5, dice_weight=0), None),
    ],
)
def test_losses_state_alpha_and_gamma_of_their_link(loss, link):
    assert loss.link == link
