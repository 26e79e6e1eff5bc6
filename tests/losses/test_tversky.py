"""Focal Tversky and unified focal loss by hand."""

import math

import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.losses import FocalTverskyLoss, UnifiedFocalLoss


def test_focal_tversky_hand_value() -> None:
    """p = 1/2 in four voxels, one lesion: TP 0.5, FN 0.5, FP 1.5."""
    terms = FocalTverskyLoss(0.7, 4 / 3, smooth=1)(
        torch.zeros(1, 1, 4), torch.tensor([[1, 0, 0, 0]])
    )
    index = (0.5 + 1) / (0.5 + 0.7 * 0.5 + 0.3 * 1.5 + 1)
    assert terms["focal_tversky"].item() == pytest.approx((1 - index) ** 0.75, rel=1e-5)


def test_missed_lesion_voxels_cost_more_than_false_ones() -> None:
    labels = torch.tensor([[1, 1, 0, 0]])
    missed = torch.tensor([[[9.0, -9, -9, -9]]])
    false = torch.tensor([[[9.0, 9, 9, -9]]])
    loss = FocalTverskyLoss()
    assert loss(missed, labels)["focal_tversky"] > loss(false, labels)["focal_tversky"]


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_unified_hand_value(activation: str) -> None:
    """p = 1/2 in four voxels, one lesion; of background TP 1.5, FN 1.5, FP 0.5."""
    loss = UnifiedFocalLoss(share=0.3, delta=0.6, gamma=0.5, activation=activation, smooth=1)
    logits = torch.zeros(1, 1 if activation == "sigmoid" else 2, 4)
    terms = loss(logits, torch.tensor([[1, 0, 0, 0]]))
    focal = (0.6 * math.log(2) + 0.4 * 3 * math.sqrt(0.5) * math.log(2)) / 4
    assert terms["focal"].item() == pytest.approx(0.3 * focal, rel=1e-5)
    wrong = 0.6 * 0.5 + 0.4 * 1.5
    lesion = math.sqrt(wrong / (0.5 + wrong + 1))
    wrong = 0.6 * 1.5 + 0.4 * 0.5
    background = wrong / (1.5 + wrong + 1)
    expected = 0.7 * (lesion + background) / 2
    assert terms["focal_tversky"].item() == pytest.approx(expected, rel=1e-5)


def test_perfect_answers_cost_next_to_nothing() -> None:
    labels = torch.tensor([[1, 1, 0, 2, 0, 0]])
    logits = torch.where(labels.unsqueeze(1) == torch.tensor([1, 2]).view(1, 2, 1), 40.0, -40.0)
    for loss in (FocalTverskyLoss(), UnifiedFocalLoss()):
        logits.requires_grad_()
        total = sum(loss(logits, labels).values())
        (gradient,) = torch.autograd.grad(total, logits)
        assert total < 0.01
        assert torch.isfinite(gradient).all()


def test_refuses_settings_without_meaning() -> None:
    for setting in ({"share": 1.2}, {"delta": -1}, {"gamma": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            UnifiedFocalLoss(**setting)
    with pytest.raises(ConfigError, match="gamma"):
        FocalTverskyLoss(gamma=0)
