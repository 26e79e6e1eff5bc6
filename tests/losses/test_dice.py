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
    dice_loss,
)


def test_dice_has_the_value_computed_by_hand() -> None:
    """With p = 1/2 in four voxels, one of them lesion: Σpy = 1/2, Σp = 2, Σy = 1."""
    loss = dice_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 0], [0, 0]]]), smooth=0.5)
    assert loss.item() == pytest.approx(1 - (2 * 0.5 + 0.5) / (2 + 1 + 0.5))


def test_dice_is_summed_over_the_batch_and_averaged_over_classes() -> None:
    labels = torch.tensor([[1, 1, 0, 0], [2, 0, 0, 0]])
    p = torch.tensor([[[0.9, 0.8, 0.1, 0.2], [0.1] * 4], [[0.1] * 4, [0.7, 0.2, 0.1, 0.1]]])
    one = 1 - (2 * 1.7 + 1) / (2.0 + 0.4 + 2 + 1)
    two = 1 - (2 * 0.7 + 1) / (0.4 + 1.1 + 1 + 1)
    loss = dice_loss(torch.logit(p), labels)
    assert loss.item() == pytest.approx((one + two) / 2, rel=1e-5)


def test_lesion_free_tiles_push_probabilities_down() -> None:
    logits = torch.full((1, 1, 4, 4), -2.0, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))
    p = 1 / (1 + math.exp(2))
    assert loss.item() == pytest.approx(1 - 1 / (16 * p + 1), rel=1e-5)
    assert (torch.autograd.grad(loss, logits)[0] > 0).all()


def test_cross_entropies_equal_those_of_torch() -> None:
    logits = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(3)) - 2
    labels = torch.zeros(2, 6, 7, 8, dtype=torch.uint8)
    labels[0, 1:3, 1:3, 1:4], labels[1, 4:, 5:, 6:] = 1, 2
    one, bits = logits[:, :1], (labels > 0).float()
    terms = CrossEntropyLoss(lesion_weight=5)(one, labels.clamp_max(1), normaliser=3.0)
    weight = torch.tensor(5.0)
    expected = F.binary_cross_entropy_with_logits(one[:, 0], bits, pos_weight=weight)
    torch.testing.assert_close(terms, {"cross_entropy": expected})
    terms = DiceCrossEntropyLoss(activation="softmax")(logits, labels)
    assert list(terms) == ["dice", "cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, labels.long()))


def test_settings_that_give_no_training_loss_are_an_error() -> None:
    for make, wrong in (
        (FocalLoss, {"activation": "relu"}),
        (FocalLoss, {"reduction": "none"}),
        (CrossEntropyLoss, {"lesion_weight": 0}),
    ):
        with pytest.raises(ConfigError):
            make(**wrong)


def compute_nnunet_loss_by_loops(
    logits: torch.Tensor, labels: torch.Tensor, per_tile: bool
) -> float:
    """Compute mean cross-entropy minus Dice, with 1e-5 added to numerator and denominator."""
    p = logits.double().softmax(1)
    entropy, sums = 0.0, [[0.0, 0.0, 0.0] for _ in labels]
    for b, one in enumerate(labels.tolist()):
        for i, label in enumerate(one):
            entropy -= math.log(float(p[b, label, i])) / labels.numel()
            sums[b][0] += float(p[b, 1, i]) * label
            sums[b][1] += float(p[b, 1, i])
            sums[b][2] += label
    groups = sums if per_tile else [[sum(column) for column in zip(*sums, strict=True)]]
    dice = [(2 * hit + 1e-5) / (predicted + present + 1e-5) for hit, predicted, present in groups]
    return entropy - sum(dice) / len(dice)


@pytest.mark.parametrize("per_tile", [False, True])
def test_loss_with_nnunet_settings_equals_nnunets_plus_one(per_tile: bool) -> None:
    """Our loss is larger by 1. The second tile has no lesion, for which `per_tile` matters most."""
    logits = torch.randn(2, 2, 40, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(2, 40, dtype=torch.uint8)
    labels[0, 3:9] = 1
    how = {"activation": "softmax", "smooth": 1e-5, "per_tile": per_tile}
    ours = DiceFocalLoss(0.5, 0.0, reduction="mean", focal_weight=2.0, **how)
    for loss in (ours, DiceCrossEntropyLoss(**how)):
        total = float(sum(loss(logits, labels).values()))
        assert total - 1 == pytest.approx(
            compute_nnunet_loss_by_loops(logits, labels, per_tile), abs=1e-6
        )
