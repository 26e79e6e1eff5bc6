"""Soft Dice loss by hand."""

import math

import pytest
import torch

from lesionseg.losses import dice_loss


def test_hand_value() -> None:
    """p = 1/2 in four voxels, one of them lesion: Σpy = 1/2, Σp = 2, Σy = 1."""
    loss = dice_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 0], [0, 0]]]), smooth=0.5)
    assert loss.item() == pytest.approx(1 - (2 * 0.5 + 0.5) / (2 + 1 + 0.5))


def test_classes_count_alike_and_the_batch_is_summed() -> None:
    labels = torch.tensor([[1, 1, 0, 0], [2, 0, 0, 0]])
    p = torch.tensor([[[0.9, 0.8, 0.1, 0.2], [0.1] * 4], [[0.1] * 4, [0.7, 0.2, 0.1, 0.1]]])
    one = 1 - (2 * 1.7 + 1) / (2.0 + 0.4 + 2 + 1)
    two = 1 - (2 * 0.7 + 1) / (0.4 + 1.1 + 1 + 1)
    loss = dice_loss(torch.logit(p), labels)
    assert loss.item() == pytest.approx((one + two) / 2, rel=1e-5)


def test_lesion_free_tiles_push_probabilities_down() -> None:
    logits = torch.full((1, 1, 4, 4), -2.0, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))
    loss.backward()
    p = 1 / (1 + math.exp(2))
    assert loss.item() == pytest.approx(1 - 1 / (16 * p + 1), rel=1e-5)
    assert logits.grad is not None
    assert (logits.grad > 0).all()
