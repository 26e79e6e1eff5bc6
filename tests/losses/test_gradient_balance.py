"""Shares against autograd, and hand values."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed.operation_counts import OperationCounts
from lesionseg.losses import (
    CrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    FocalTverskyLoss,
    InstanceWise,
    TrimmedFocalLoss,
    UnifiedFocalLoss,
)
from lesionseg.losses.gradient_balance import (
    Balance,
    FocalTerm,
    LossCurves,
    Parts,
    balance_figures,
    cumulative_share,
    curve_figures,
    focal_terms,
)


def measure_balance(*of: Any, **settings: Any) -> Balance:
    """Who gets the loss of a batch, read on the host."""
    return Balance.of(balance_figures(*of, **settings).tolist())


def loss_curves(*of: Any, **settings: Any) -> LossCurves:
    """The cumulative loss of lesions and of background, read on the host."""
    return LossCurves.of(curve_figures(*of, **settings).tolist())


def batch(n_channels, n_labels=None, shape=(2, 12, 14), seed=0):
    noise = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape[0], n_channels, *shape[1:], generator=noise) - 1
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[0, 2:5, 3:6] = 1
    labels[1, 7:9, 1:4] = n_labels or n_channels
    return logits, labels


def test_hand_values_of_one_lesion_voxel_in_a_hundred_and_one():
    # background at p = ½ but for one voxel at p = ¾; γ = 0, no α: the loss is −log p_t, the
    # gradient's norm is 1 − p_t
    logits = torch.zeros(1, 1, 101)
    logits[0, 0, 0] = math.log(3)
    labels = torch.zeros(1, 101, dtype=torch.uint8)
    labels[0, 100] = 1
    found = measure_balance(logits, labels, labels.int(), [FocalTerm(None, 0.0)])
    assert found.loss.lesion == pytest.approx(math.log(2))
    assert found.loss.hard == pytest.approx(math.log(4))
    assert found.loss.easy == pytest.approx(99 * math.log(2), rel=1e-6)
    assert found.gradient.lesion == pytest.approx(0.5)
    assert found.gradient.hard == pytest.approx(0.75)
    assert found.gradient.easy == pytest.approx(49.5)
    assert found.lesion_p == pytest.approx((0.5,))
    assert found.background_p == pytest.approx(0.75)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (None, 0.0), (0.75, 5.0)])
def test_sums_equal_those_of_the_loss_and_of_autograd(activation, alpha, gamma):
    logits, labels = batch(3, n_labels=2)
    valid = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) > 0.2
    loss = FocalLoss(alpha, gamma, "sum", activation, weight=0.7)
    logits.requires_grad_()
    (total,) = loss(logits, labels, valid=valid).values()
    (gradient,) = torch.autograd.grad(total, logits)
    found = measure_balance(
        logits, labels, labels.int(), focal_terms(loss), activation=activation, valid=valid
    )
    norm = gradient.abs().sum().item() / (2 if activation == "softmax" else 1)
    assert found.loss.total == pytest.approx(total.item(), rel=1e-5)
    assert found.gradient.total == pytest.approx(norm, rel=1e-5)
    if activation == "softmax":
        lesion = (labels > 0).unsqueeze(1).expand_as(gradient)
    else:
        lesion = torch.stack([labels == k for k in (1, 2, 3)], dim=1)
    share = gradient.abs()[lesion].sum().item() / gradient.abs().sum().item()
    assert found.gradient.shares().lesion == pytest.approx(share, rel=1e-5)


def test_a_weight_for_each_class_is_taken_into_account():
    logits, labels = batch(2)
    loss = FocalLoss([0.2, 0.9], 1.0, "sum")
    found = measure_balance(logits, labels, labels.int(), focal_terms(loss))
    assert found.loss.total == pytest.approx(loss(logits, labels)["focal"].item(), rel=1e-5)


def test_the_hardest_hundredth_of_background_is_that_of_the_highest_loss():
    logits = torch.linspace(-6, 3, 1000).view(1, 1, 1000)
    labels = torch.zeros(1, 1000, dtype=torch.uint8)
    each = FocalLoss(0.25, 2.0, "sum")
    found = measure_balance(logits, labels, labels.int(), focal_terms(each))
    hardest = each(logits[..., -10:], labels[:, -10:])["focal"]
    assert found.loss.hard == pytest.approx(hardest.item(), rel=1e-5)
    assert found.lesion_p == ()


def test_equal_logits_give_the_hardest_hundredth_a_hundredth():
    labels = torch.zeros(1, 1000, dtype=torch.uint8)
    logits = torch.full((1, 1, 1000), -2.0)
    shares = measure_balance(logits, labels, labels.int(), [FocalTerm(0.25, 2.0)]).gradient.shares()
    assert (shares.hard, shares.easy) == pytest.approx((0.01, 0.99))


def test_lesions_are_told_apart_by_tile_and_id_and_judged_by_their_own_class():
    logits = torch.full((2, 2, 10), -5.0)
    labels = torch.zeros(2, 10, dtype=torch.uint8)
    instances = torch.zeros(2, 10, dtype=torch.int32)
    labels[0, :2], instances[0, :2] = 1, 7
    labels[0, 4:6], instances[0, 4:6] = 2, 8
    labels[1, :3], instances[1, :3] = 1, 7  # the same id in another tile is another lesion
    logits[0, 0, 1], logits[0, 1, 0] = 0.0, 9.0  # the second is of the wrong class
    logits[1, 0, 2] = 2.0
    found = measure_balance(logits, labels, instances, [FocalTerm(0.25, 2.0)])
    expected = torch.tensor([0.0, -5.0, 2.0]).sigmoid().tolist()
    assert found.lesion_p == pytest.approx(expected)


def test_extreme_logits_and_nothing_valid_stay_finite():
    logits, labels = batch(1)
    for extreme in (1e4, -1e4):
        found = measure_balance(
            torch.full_like(logits, extreme), labels, labels.int(), [FocalTerm(0.25, 2.0)]
        )
        assert math.isfinite(found.loss.total)
        assert math.isfinite(found.gradient.total)
    nothing = torch.zeros_like(labels, dtype=torch.bool)
    terms = [FocalTerm(0.25, 2.0)]
    for activation, c in (("sigmoid", 1), ("softmax", 2)):
        found = measure_balance(
            logits.expand(-1, c, -1, -1),
            labels,
            labels.int(),
            terms,
            activation=activation,
            valid=nothing,
        )
        assert found.loss.shares() is None
        assert (found.lesion_p, found.background_p) == ((), None)


def test_focal_terms_are_found_in_every_compound():
    assert focal_terms(DiceFocalLoss(0.3, 1.5, focal_weight=2)) == (FocalTerm(0.3, 1.5, 2),)
    assert focal_terms(CrossEntropyLoss()) == (FocalTerm(0.5, 0.0, 2.0),)
    assert focal_terms(InstanceWise(DiceFocalLoss(0.3, 1.5))) == (FocalTerm(0.3, 1.5, 1.0),)
    assert focal_terms(TrimmedFocalLoss(alpha=0.4)) == (FocalTerm(0.4, 2.0, 1.0),)
    assert len(focal_terms(UnifiedFocalLoss())) == 2
    assert focal_terms(FocalTverskyLoss()) == ()


def test_two_terms_add_up():
    logits, labels = batch(1)
    terms = focal_terms(UnifiedFocalLoss())
    one, other = (measure_balance(logits, labels, labels.int(), [term]) for term in terms)
    both = measure_balance(logits, labels, labels.int(), terms)
    assert one.loss.lesion > 0 == other.loss.lesion
    assert (one.loss + other.loss).total == pytest.approx(both.loss.total)


def test_shares_of_nothing_are_none():
    assert Parts(0.0, 0.0, 0.0).shares() is None


def test_curves_rise_from_nothing_to_all_and_bend_with_gamma():
    logits, labels = batch(1, shape=(2, 40, 40))
    flat = loss_curves(logits, labels, [FocalTerm(None, 0.0)])
    sharp = loss_curves(logits, labels, [FocalTerm(None, 3.0)])
    for curve in (flat.lesion, flat.background, sharp.background):
        assert curve.shape == (101,)
        assert (curve[0], curve[-1]) == pytest.approx((0, 1))
        assert (np.diff(curve) >= 0).all()
    assert (sharp.background <= flat.background + 1e-12).all()
    assert sharp.background[50] < 0.1 * flat.background[50]


def test_curve_of_equal_losses_is_a_straight_line_and_of_none_is_none():
    seven = torch.tensor([0.3] * 7 + [9.0] * 2)
    straight = cumulative_share(seven, seven < 1)
    assert straight.numpy() == pytest.approx(np.linspace(0, 1, 101), abs=1e-6)
    for nothing in (torch.zeros(5), torch.zeros(0)):
        assert cumulative_share(nothing, nothing == 0).isnan().all()
    logits, labels = batch(1)
    none = loss_curves(logits, 0 * labels, [FocalTerm(0.25, 2.0)])
    assert none.lesion is None
    assert none.background is not None


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_gpu_is_not_waited_for(activation):
    """On a device without values, whatever the host would read raises."""
    logits, labels = (t.to("meta") for t in batch(3, n_labels=2))
    terms = [FocalTerm(0.25, 2.0), FocalTerm(None, 0.0)]
    with OperationCounts() as counts:
        figures = balance_figures(logits, labels, labels.int(), terms, activation=activation)
        curves = curve_figures(logits, labels, terms, activation=activation)
    assert (counts.waits, figures.device.type) == ({}, "meta")
    assert curves.shape == (2 * 101,)
