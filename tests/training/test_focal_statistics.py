"""Statistics of a step: gradient shares and the probability in lesions, by hand and by a loop."""

import pytest
import torch

from lesionseg.training.callbacks import HARD_NAME, LESION_NAME, P_NAME, FocalStatistics
from lesionseg.training.objective import FinestLogits


def observe(p, labels, gradient, valid=None):
    """Return the statistics of voxels with these probabilities and gradients, each `[n]`."""
    logits = torch.tensor(p).logit().reshape(1, 1, -1).requires_grad_()
    labels = torch.tensor(labels).reshape(1, -1)
    valid = torch.ones_like(labels) if valid is None else torch.tensor(valid).reshape(1, -1)
    finest = FinestLogits(
        logits=logits,
        activation="sigmoid",
        class_axis=1,
        labels=labels,
        valid=valid.bool(),
    )
    statistics = FocalStatistics()
    statistics.observe(finest)
    (logits * torch.tensor(gradient).reshape(1, 1, -1)).sum().backward()
    return statistics.latest()


def test_shares_of_the_gradient_by_hand():
    found = observe([0.8, 0.2, 0.6, 0.1], [1, 1, 0, 0], [-3.0, 1.0, 5.0, 1.0])
    assert found == pytest.approx({P_NAME: 0.5, LESION_NAME: 0.4, HARD_NAME: 0.5})


def test_voxels_that_are_not_valid_are_left_out():
    found = observe([0.8, 0.2, 0.6, 0.1], [1, 1, 0, 0], [-3.0, 1.0, 5.0, 1.0], [1, 0, 0, 1])
    assert found == pytest.approx({P_NAME: 0.8, LESION_NAME: 0.75, HARD_NAME: 0.25})


def test_hardest_background_is_one_percent_of_the_background():
    p = torch.linspace(0.01, 0.99, 400).tolist()
    labels = [0] * 300 + [1] * 100
    gradient = [1.0 + n for n in range(400)]
    found = observe(p, labels, gradient)
    hardest = sum(gradient[297:300])  # 1 % of 300 voxels, although 400 are valid
    assert found[HARD_NAME] == pytest.approx(hardest / sum(gradient))


def test_statistic_without_lesion_background_or_gradient_is_left_out():
    assert set(observe([0.5, 0.5], [0, 0], [1.0, 1.0])) == {HARD_NAME, LESION_NAME}
    assert observe([0.5, 0.5], [1, 1], [1.0, 1.0])[HARD_NAME] == 0
    assert set(observe([0.5, 0.5], [1, 0], [0.0, 0.0])) == {P_NAME}
    assert set(observe([0.5, 0.5], [1, 0], [float("inf"), 1.0])) == {P_NAME}
