"""Probabilities of logits: in order however sure the network is."""

from dataclasses import replace

import pytest
import torch

from lesionseg.inference.probabilities import compress_log_odds, label_probabilities
from lesionseg.plan.plan import Plan

SURER = torch.tensor([7.0, 8.0, 12.0, 17.0, 20.0, 40.0, 80.0])


def test_the_surer_voxel_has_the_higher_probability_and_doubt_stays_as_it_is() -> None:
    for sign in (1, -1):
        assert (sign * compress_log_odds(sign * SURER).sigmoid().diff() > 0).all()
    assert torch.sigmoid(SURER)[-1] == torch.sigmoid(SURER)[-3] == 1  # as they are, these tie
    doubtful = torch.linspace(-8, 8, 33)
    assert torch.equal(compress_log_odds(doubtful), doubtful)
    assert compress_log_odds(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_softmax_gives_its_own_probabilities(n: int, plan: Plan) -> None:
    logits = torch.randn(2, n, 3, 4, 5, generator=torch.manual_seed(0))
    found = label_probabilities(logits, replace(plan, activation="softmax"))
    assert torch.allclose(found, logits.softmax(1)[:, 1:], atol=1e-6)


def test_softmax_of_sure_channels_keeps_their_order(plan: Plan) -> None:
    logits = torch.stack([-SURER, SURER, torch.zeros_like(SURER)])[None]
    found = label_probabilities(logits, replace(plan, activation="softmax", compressed=True))[0, 0]
    assert (found[1:] > found[:-1]).all()


def test_a_plan_says_whether_probabilities_are_compressed(plan: Plan) -> None:
    logits = SURER[None, None]
    assert torch.equal(
        label_probabilities(logits, replace(plan, compressed=False)), logits.sigmoid()
    )
    new = label_probabilities(logits, replace(plan, compressed=True))
    assert torch.equal(new, compress_log_odds(logits).sigmoid())
