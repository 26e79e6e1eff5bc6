"""Budgets and the learning rate, by hand."""

import pytest

from lesionseg.config import OptimConfig, TrainerConfig
from lesionseg.training.module import batch_rate, learning_rate, resolve_budget


@pytest.mark.parametrize(
    ("device", "given", "minutes", "steps", "every"),
    [
        ("cpu", {}, 60.0, None, 10.0),
        ("cuda", {}, None, 125_000, 20.0),  # twice as many voxels a step as nnU-Net's
        ("cuda", {"max_minutes": 5.0}, 5.0, None, None),
        ("cuda", {"max_steps": 7}, None, 7, None),
        ("cpu", {"max_minutes": 90.0, "max_steps": 9}, 90.0, 9, 15.0),
        ("cpu", {"validate_every_minutes": None}, 60.0, None, None),
        ("cpu", {"max_steps": 7, "validate_every_minutes": 3.0}, None, 7, 3.0),
    ],
)
def test_what_is_open_becomes_limits(make_plan, device, given, minutes, steps, every):
    plan = make_plan(batch_size=4).with_(dims=3, tile_shape=(128, 128, 128))
    found = resolve_budget(TrainerConfig.of(**given), plan, device)
    assert (found.max_minutes, found.max_steps) == (minutes, steps)
    assert found.validate_every_minutes == every


def test_small_batches_take_no_more_steps_than_nnunet(make_plan):
    assert resolve_budget(TrainerConfig.of(), make_plan(), "cuda").max_steps == 250_000


@pytest.mark.parametrize(
    ("dims", "batch", "name", "factor"),
    [
        (3, 2, "adamw", 1),
        (2, 4, "sgd", 1),
        (3, 8, "adamw", 2),
        (3, 8, "sgd", 4),
        (2, 1, "adamw", 0.5),
    ],
)
def test_the_rate_follows_the_batch(make_plan, dims, batch, name, factor):
    plan = make_plan(batch_size=batch).with_(dims=dims)
    assert batch_rate(OptimConfig.of(name=name, lr=1.0), plan).lr == factor


@pytest.mark.parametrize(
    ("progress", "rate"),
    [
        (0.0, 0.02),  # a hundredth of the peak rather than nothing
        (0.025, 1.0),
        (0.05, 2.0),
        (0.525, 1.0),  # half of what follows the warm-up
        (0.2875, 1 + 2**-0.5),  # a quarter: (1 + cos π/4) / 2 of 2
        (1.0, 0.0),
        (1.3, 0.0),
    ],
)
def test_cosine_rises_linearly_then_falls_to_nothing(progress, rate):
    settings = OptimConfig.of(lr=2.0)
    assert learning_rate(progress, settings) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("progress", "rate"), [(0.0, 1.0), (0.5, 0.5358867), (0.9, 0.1258925), (1.0, 0.0)]
)
def test_poly_falls_with_the_power_of_nine_tenths(progress, rate):
    settings = OptimConfig.of(lr=1.0, name="sgd")
    assert learning_rate(progress, settings) == pytest.approx(rate)
