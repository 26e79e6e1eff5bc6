"""Groups of weights, each at its own rate."""

import pytest
import torch

from lesionseg.config import OptimConfig
from lesionseg.models import build_network
from lesionseg.training.module import make_optimiser


def test_a_smaller_rate_for_the_backbone_keeps_its_ratio_through_the_schedule(make_plan):
    network = build_network(make_plan())
    optimiser = make_optimiser(network, OptimConfig.of(backbone_lr_scale=0.1))
    heads = {id(p) for p in network.heads.parameters()}
    half = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 0.5)
    assert len(half.get_last_lr()) == 4
    for group in optimiser.param_groups:
        of_heads = {id(p) in heads for p in group["params"]}
        assert of_heads == {group["lr"] == 0.5 * 3e-3}
        assert group["lr"] == pytest.approx(0.5 * 3e-3 * (1 if of_heads == {True} else 0.1))
    grouped = [p for group in optimiser.param_groups for p in group["params"]]
    assert len(grouped) == len(list(network.parameters()))


def test_a_backbone_at_no_rate_stays_as_it_is(train, make_plan):
    network = build_network(make_plan())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    optim = {"lr": 1e-2, "backbone_lr_scale": 0.0}
    after = train(network=network, max_steps=3, optim=optim).network.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) != name.startswith("heads"), name


def test_norms_and_biases_do_not_decay(make_plan):
    optimiser = make_optimiser(build_network(make_plan()), OptimConfig.of(weight_decay=0.3))
    for group in optimiser.param_groups:
        kernels = {p.ndim > 1 for p in group["params"]}
        assert kernels == {group["weight_decay"] == 0.3}


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimiser_by_name(make_plan, name, kind):
    optimiser = make_optimiser(build_network(make_plan()), OptimConfig.of(name=name))
    assert isinstance(optimiser, kind)
    for group in optimiser.param_groups:
        assert group.get("betas", (0.9, 0.95)) == (0.9, 0.95)
        assert group.get("momentum", 0.99) == 0.99
