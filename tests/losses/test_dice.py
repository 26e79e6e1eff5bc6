"""Dice and the losses with named terms: values by hand and by loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from lesionseg.errors import ConfigError
from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    LesionBalancedLoss,
    dice_loss,
)
from tests.noise import noise


def test_dice_has_the_value_computed_by_hand():
    """Use p = 1/2 in four voxels, one of them lesion: Σpy = 1/2, Σp = 2, Σy = 1."""
    loss = dice_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 0], [0, 0]]]), smooth=0.5)
    assert loss.item() == pytest.approx(1 - (2 * 0.5 + 0.5) / (2 + 1 + 0.5))
    with pytest.raises(ConfigError, match=r"smooth="):
        dice_loss(torch.zeros(1, 1, 2), torch.zeros(1, 2).long(), smooth=0)


def test_dice_is_summed_over_the_batch_and_averaged_over_classes():
    labels = torch.tensor([[1, 1, 0, 0], [2, 0, 0, 0]])
    p = torch.tensor([[[0.9, 0.8, 0.1, 0.2], [0.1] * 4], [[0.1] * 4, [0.7, 0.2, 0.1, 0.1]]])
    one = 1 - (2 * 1.7 + 1) / (2.0 + 0.4 + 2 + 1)
    two = 1 - (2 * 0.7 + 1) / (0.4 + 1.1 + 1 + 1)
    loss = dice_loss(torch.logit(p), labels)
    assert loss.item() == pytest.approx((one + two) / 2, rel=1e-5)


def test_gradient_of_lesion_free_tiles_reduces_probabilities():
    logits = torch.full((1, 1, 4, 4), -2.0, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))
    p = 1 / (1 + math.exp(2))
    assert loss.item() == pytest.approx(1 - 1 / (16 * p + 1), rel=1e-5)
    assert (torch.autograd.grad(loss, logits)[0] > 0).all()


def test_cross_entropies_equal_those_of_torch():
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 6, 7, 8, generator=draw) - 2
    labels = torch.randint(0, 3, (2, 6, 7, 8), generator=draw)
    lesion = (labels > 0).to(torch.uint8)
    terms = CrossEntropyLoss(lesion_weight=5)(logits[:, :1], lesion, normaliser=3.0)
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0], lesion.float(), pos_weight=torch.tensor(5.0)
    )
    torch.testing.assert_close(terms, {"cross_entropy": expected})
    terms = DiceCrossEntropyLoss(activation="softmax")(logits, labels)
    assert list(terms) == ["dice", "cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, labels))


def test_terms_have_weight_one_by_default():
    x = noise(1, 1, 4, 4)
    y = (x[:, 0] > 0.5).long()
    terms = DiceFocalLoss()(x, y)
    torch.testing.assert_close(terms["dice"], dice_loss(x, y))
    torch.testing.assert_close(terms["focal"], FocalLoss()(x, y)["focal"])


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (FocalLoss, {"activation": "relu"}),
        (FocalLoss, {"reduction": "none"}),
        (CrossEntropyLoss, {"lesion_weight": 0}),
        (DiceFocalLoss, {"smooth": 0}),
    ],
)
def test_settings_that_give_no_training_loss_are_an_error(make, settings):
    with pytest.raises(ConfigError):
        make(**settings)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (FocalLoss, "weight"),
        (CrossEntropyLoss, "weight"),
        (DiceFocalLoss, "focal_weight"),
        (DiceFocalLoss, "dice_weight"),
        (DiceFocalLoss, "smooth"),
        (DiceCrossEntropyLoss, "cross_entropy_weight"),
        (DiceCrossEntropyLoss, "dice_weight"),
        (DiceCrossEntropyLoss, "smooth"),
        (LesionBalancedLoss, "lesion_weight"),
    ],
)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1"])
def test_weight_or_smooth_that_is_negative_or_not_finite_is_an_error(make, name, value):
    with pytest.raises(ConfigError, match=rf"loss\.{name}="):
        make(**{name: value})


@pytest.mark.parametrize(
    ("make", "voxel_weight"),
    [(DiceFocalLoss, "focal_weight"), (DiceCrossEntropyLoss, "cross_entropy_weight")],
)
def test_only_one_of_both_weights_may_be_0(make, voxel_weight):
    assert make(dice_weight=0)
    assert make(**{voxel_weight: 0})
    with pytest.raises(ConfigError, match=r"loss\.dice_weight=0 leaves no loss"):
        make(**{voxel_weight: 0, "dice_weight": 0})


def compute_nnunet_loss_by_loops(logits, labels, per_tile):
    """Compute mean cross-entropy minus Dice, with 1e-5 added to numerator and denominator."""
    p = logits.double().softmax(1)
    entropy = 0.0
    sums = [[0.0, 0.0, 0.0] for _ in labels]
    for b, tile in enumerate(labels.tolist()):
        for i, label in enumerate(tile):
            entropy -= math.log(float(p[b, label, i])) / labels.numel()
            sums[b][0] += float(p[b, 1, i]) * label
            sums[b][1] += float(p[b, 1, i])
            sums[b][2] += label
    groups = sums if per_tile else [[sum(column) for column in zip(*sums, strict=True)]]
    dice = [(2 * hit + 1e-5) / (predicted + present + 1e-5) for hit, predicted, present in groups]
    return entropy - sum(dice) / len(dice)


@pytest.mark.parametrize("per_tile", [False, True])
def test_loss_with_nnunet_settings_equals_nnunets_plus_one(per_tile):
    """Compare with nnU-Net's loss plus 1. `per_tile` changes most for the lesion-free tile."""
    logits = noise(2, 2, 40, seed=5)
    labels = torch.zeros(2, 40, dtype=torch.uint8)
    labels[0, 3:9] = 1
    options = {"activation": "softmax", "smooth": 1e-5, "per_tile": per_tile}
    with_focal = DiceFocalLoss(0.5, 0.0, reduction="mean", focal_weight=2.0, **options)
    expected = compute_nnunet_loss_by_loops(logits, labels, per_tile)
    for loss in (with_focal, DiceCrossEntropyLoss(**options)):
        total = float(sum(loss(logits, labels).values()))
        assert total - 1 == pytest.approx(expected, abs=1e-6)
