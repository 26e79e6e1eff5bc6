import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    posterior_logits,
)
from lesionseg.losses.focal import sigmoid_focal_loss


def _minimiser(eta: float, alpha: float, gamma: float) -> float:
    """The logit of least expected focal loss for a voxel that is lesion with chance η."""

    def risk(logit: float) -> float:
        x = torch.full((1, 1, 1), logit, dtype=torch.float64)
        terms = [
            sigmoid_focal_loss(
                x, torch.tensor([[y]]), alpha=alpha, gamma=gamma, reduction="sum"
            ).item()
            for y in (0, 1)
        ]
        return (1 - eta) * terms[0] + eta * terms[1]

    return float(minimize_scalar(risk, bounds=(-30, 30), method="bounded").x)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_gives_back_the_chance_that_the_loss_was_minimised_for(alpha: float, gamma: float) -> None:
    for eta in (0.02, 0.3, 0.5, 0.9):
        logit = torch.full((1, 1, 1), _minimiser(eta, alpha, gamma))
        found = posterior_logits(logit, alpha=alpha, gamma=gamma).sigmoid().item()
        assert found == pytest.approx(eta, abs=2e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_rises_with_the_logit_and_stays_finite(gamma: float) -> None:
    logits = torch.linspace(-80, 80, 2001).view(1, 1, -1)
    out = posterior_logits(logits, alpha=0.25, gamma=gamma)
    assert torch.isfinite(out).all()
    assert (out.diff() > 0).all()


def test_each_class_has_its_own_weight() -> None:
    logits = torch.zeros(1, 2, 1)
    found = posterior_logits(logits, alpha=[0.25, 0.5], gamma=2.0).sigmoid().flatten()
    assert np.allclose(found.numpy(), [0.75, 0.5], atol=1e-6)


def test_losses_say_what_undoes_them() -> None:
    assert FocalLoss(0.25, 2.0).link is not None
    assert FocalLoss(0.25, 2.0).link == (0.25, 2.0)
    assert CrossEntropyLoss(lesion_weight=3.0).link == (0.75, 0.0)
    assert DiceFocalLoss(0.25, 2.0).link is None
    assert DiceCrossEntropyLoss().link is None
