"""Groups of weights, each at its own rate."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lesionseg.models import build_network
from lesionseg.training.settings import OptimiserSettings
from lesionseg.training.step.optimiser import (
    clipped_step,
    gradient_norm,
    make_optimiser,
    set_learning_rate,
)


def test_a_smaller_rate_for_the_backbone_keeps_its_ratio_through_the_schedule(make_plan):
    network = build_network(make_plan())
    optimiser = make_optimiser(network, OptimiserSettings(backbone_lr_scale=0.1))
    heads = {id(p) for p in network.heads.parameters()}
    for lr in (1.0, 0.25):
        assert set_learning_rate(optimiser, lr) == lr
        for group in optimiser.param_groups:
            of_heads = {id(p) in heads for p in group["params"]}
            assert of_heads == {group["lr"] == lr}
            assert group["lr"] in (lr, 0.1 * lr)
    grouped = [p for group in optimiser.param_groups for p in group["params"]]
    assert len(grouped) == len(list(network.parameters()))


def test_a_backbone_at_no_rate_stays_as_it_is(train, make_plan):
    network = build_network(make_plan())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    optimiser = OptimiserSettings(lr=1e-2, backbone_lr_scale=0.0)
    after = train(network=network, max_steps=3, optimiser=optimiser).network.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) != name.startswith("heads"), name


def test_norms_and_biases_do_not_decay(make_plan):
    optimiser = make_optimiser(build_network(make_plan()), OptimiserSettings(weight_decay=0.3))
    for group in optimiser.param_groups:
        kernels = {p.ndim > 1 for p in group["params"]}
        assert kernels == {group["weight_decay"] == 0.3}


def test_all_weights_decay_where_that_is_asked_for(make_plan):
    settings = OptimiserSettings(weight_decay=0.3, decay="all")
    (group,) = make_optimiser(build_network(make_plan()), settings).param_groups
    assert group["weight_decay"] == 0.3


def step(network, optimiser, *, finite=True):
    network(torch.ones(1, 2, 4, 4)).sum().backward()
    wrapped = SimpleNamespace(optimizer=optimiser, step=optimiser.step)
    clipped_step(wrapped, gradient_norm(network), 1.0, torch.tensor(float(not finite)))
    optimiser.zero_grad()
    return [weight.detach().clone() for weight in network.parameters()]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_that_are_left_out_leave_no_trace(name):
    """Not in the weights, nor in the moments: also where the first one is left out."""
    ends = []
    for pattern in ([True, True], [False, True, False, True]):
        torch.manual_seed(0)
        network = nn.Conv2d(2, 3, 3)
        optimiser = make_optimiser(network, OptimiserSettings(name=name))
        ends.append([step(network, optimiser, finite=finite) for finite in pattern][-1])
    for undisturbed, disturbed in zip(*ends, strict=True):
        assert torch.equal(undisturbed, disturbed)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_checkpoint_goes_on_in_another_memory_layout(name):
    """And one of an optimiser that was not fused."""
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = nn.Conv2d(2, 3, 3)
        optimiser = make_optimiser(network, OptimiserSettings(name=name))
        step(network, optimiser)
        state = optimiser.state_dict()
        for group in state["param_groups"]:
            group["fused"] = None
        network = network.to(memory_format=layout)
        optimiser = make_optimiser(network, OptimiserSettings(name=name))
        optimiser.load_state_dict(state)
        step(network, optimiser, finite=False)
        ends.append(step(network, optimiser))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)
