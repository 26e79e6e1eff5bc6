"""The average of the weights."""

import pickle

import pytest
from torch import nn

from lesionseg.training.step.optimiser import WarmAverage


def with_weight(value):
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def test_the_average_starts_at_the_first_weights_and_its_memory_grows():
    network = with_weight(1.0)
    averaged = WarmAverage(network, decay=0.99)
    averaged.update_parameters(network)
    assert averaged.module.weight.item() == 1.0
    nn.init.constant_(network.weight, 0.0)
    averaged.update_parameters(network)  # n = 1: decay 2/11
    assert averaged.module.weight.item() == pytest.approx(2 / 11)
    averaged.update_parameters(network)  # n = 2: decay 3/12
    assert averaged.module.weight.item() == pytest.approx(2 / 11 * 3 / 12)


def test_the_decay_never_exceeds_the_one_asked_for():
    averaged = WarmAverage(with_weight(1.0), decay=0.9)
    averaged.n_averaged = 10_000
    averaged.update_parameters(with_weight(0.0))
    assert averaged.module.weight.item() == pytest.approx(0.9)


def test_the_average_does_not_learn_and_buffers_follow():
    network = nn.BatchNorm1d(2)
    averaged = WarmAverage(network, decay=0.5)
    network.running_mean.fill_(3.0)
    averaged.update_parameters(network)
    network.running_mean.fill_(5.0)
    averaged.update_parameters(network)
    assert averaged.module.running_mean.tolist() == [5.0, 5.0]
    assert not any(p.requires_grad for p in averaged.parameters())


def test_it_travels_to_other_processes():
    averaged = WarmAverage(with_weight(1.0), decay=0.5)
    averaged.update_parameters(with_weight(2.0))
    there = pickle.loads(pickle.dumps(averaged))
    assert (there.decay, int(there.n_averaged), there.module.weight.item()) == (0.5, 1, 2.0)
