"""Budgets, the learning rate by hand, and groups of weights."""

from types import SimpleNamespace

import pytest
import torch

from lesionseg.config import OptimConfig, TrainConfig, TrainerConfig
from lesionseg.models import build_network
from lesionseg.plan.plan import AnchorPlan
from lesionseg.training.module import (
    lr_factor,
    make_optimiser,
    peak_lr,
    resolve_budget,
)
from tests.training.conftest import make_module


@pytest.mark.parametrize(
    ("device", "given", "minutes", "steps", "every"),
    [
        ("cpu", {}, 60.0, None, 10.0),
        ("cuda", {}, None, 125_000, 20.0),  # twice as many voxels per step as nnU-Net
        ("cuda", {"devices": 2, "lightning": {"accumulate_grad_batches": 4}}, None, 15_625, 20.0),
        ("cuda", {"max_minutes": 5.0}, 5.0, None, None),
        ("cuda", {"max_steps": 7}, None, 7, None),
        ("cpu", {"max_minutes": 90.0, "max_steps": 9}, 90.0, 9, 15.0),
        ("cpu", {"validate_every_minutes": None}, 60.0, None, None),
    ],
)
def test_missing_limits_are_chosen_by_device(make_plan, device, given, minutes, steps, every):
    plan = make_plan(batch_size=4).with_(dims=3, tile_shape=(128, 128, 128))
    found = resolve_budget(TrainerConfig.of(**given), plan, device)
    assert (found.max_minutes, found.max_steps) == (minutes, steps)
    assert found.validate_every_minutes == every


@pytest.mark.parametrize(
    ("dims", "batch", "world", "name", "factor"),
    [(3, 2, 1, "adamw", 1), (3, 4, 2, "adamw", 2), (3, 8, 1, "sgd", 4), (2, 1, 1, "adamw", 0.5)],
)
def test_learning_rate_is_scaled_by_all_tiles_of_a_step(
    make_plan, dims, batch, world, name, factor
):
    plan = make_plan(batch_size=batch).with_(dims=dims)
    module = make_module(plan, TrainConfig.of(optim={"name": name, "lr": 1.0}), torch.nn.PReLU())
    module.trainer = SimpleNamespace(
        world_size=world, accumulate_grad_batches=1, precision="32-true"
    )
    assert module.configure_optimizers()["optimizer"].param_groups[0]["initial_lr"] == factor


@pytest.mark.parametrize(
    ("name", "progress", "rate"),
    [
        ("adamw", 0.0, 0.01),  # a hundredth instead of 0
        ("adamw", 0.025, 0.5),
        ("adamw", 0.2875, (1 + 2**-0.5) / 2),  # a quarter: (1 + cos π/4) / 2
        ("adamw", 1.3, 0.0),
        ("sgd", 0.5, 0.5358867),  # 0.5 to the power of 0.9
    ],
)
def test_learning_rate_follows_cosine_or_polynomial_schedule(name, progress, rate):
    assert lr_factor(progress, OptimConfig.of(name=name)) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("name", "dims", "detects", "rate"),
    [
        ("adamw", 3, False, 0.003),
        ("adamw", 3, True, 0.003),
        ("adamw", 2, False, 0.003),
        ("adamw", 2, True, 0.001),
        ("sgd", 2, True, 0.01),
    ],
)
def test_default_rate_is_lower_for_detectors_in_2d(make_plan, name, dims, detects, rate):
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0,) * dims,),), width=8, depth=1)
    plan = make_plan().with_(dims=dims, anchors=anchors if detects else None)
    n_tiles = {3: 2, 2: 4}[dims]
    assert peak_lr(OptimConfig.of(name=name, lr="auto"), plan, n_tiles) == rate
    assert peak_lr(OptimConfig.of(name=name, lr=0.5), plan, n_tiles) == 0.5


def test_smaller_rate_of_the_backbone_keeps_its_ratio(make_plan):
    network = build_network(make_plan())
    optimiser = make_optimiser(
        network, OptimConfig.of(backbone_lr_scale=0.1, weight_decay=0.3), 3e-3
    )
    heads = {id(p) for p in network.heads.parameters()}
    torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 0.5)
    for group in optimiser.param_groups:
        (of_heads,) = {id(p) in heads for p in group["params"]}
        assert group["lr"] == pytest.approx(0.5 * 3e-3 * (1 if of_heads else 0.1))
        # norms and biases do not decay
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.3}
    n_grouped = sum(len(group["params"]) for group in optimiser.param_groups)
    assert n_grouped == len(list(network.parameters()))
