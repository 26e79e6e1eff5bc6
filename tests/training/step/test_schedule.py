"""Progress, the clock and the learning rate, by hand."""

import pytest

from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.schedule import (
    Clock,
    TrainingBudget,
    batch_factor,
    learning_rate,
    settled,
)


@pytest.mark.parametrize(
    ("device", "given", "minutes", "steps"),
    [
        ("cpu", {}, 60.0, None),
        ("cuda", {}, None, 125_000),  # twice as many voxels a step as nnU-Net's
        ("cuda", {"budget": "full"}, None, 250_000),
        ("cuda", {"budget": "quick"}, 15.0, None),
        ("cuda", {"max_minutes": 5.0}, 5.0, None),
        ("cuda", {"max_steps": 7}, None, 7),
        ("cpu", {"budget": "standard", "max_minutes": 90.0}, 90.0, 125_000),
        ("cpu", {"budget": "full", "max_steps": 9}, None, 9),
        ("cpu", {"budget": "quick", "max_minutes": 3.0}, 3.0, None),
    ],
)
def test_a_budget_becomes_limits(make_plan, device, given, minutes, steps):
    plan = make_plan(batch_size=4).with_(dims=3, tile_shape=(128, 128, 128))
    found = settled(TrainerSettings(**{"budget": "auto", **given}), plan, device)
    assert (found.max_minutes, found.max_steps) == (minutes, steps)


def test_small_batches_take_no_more_steps_than_nnunet(make_plan):
    assert settled(TrainerSettings(budget="standard"), make_plan(), "cuda").max_steps == 250_000


@pytest.mark.parametrize(
    ("given", "every"),
    [
        ({"max_minutes": 30.0}, None),
        ({"max_minutes": 60.0}, 10.0),
        ({"budget": "full"}, 20.0),
        ({"max_steps": 50}, None),
        ({"max_minutes": 5.0, "budget": "full"}, None),
    ],
)
def test_long_trainings_are_validated_meanwhile(make_plan, given, every):
    settings = TrainerSettings(**given, validate_every_minutes="auto")
    assert settled(settings, make_plan(), "cpu").validate_every_minutes == every
    never = TrainerSettings(**given, validate_every_minutes=None)
    assert settled(never, make_plan(), "cpu").validate_every_minutes is None


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
    assert batch_factor(OptimiserSettings(name=name), plan) == factor


def test_progress_is_that_of_the_limit_nearer_to_its_end():
    both = TrainingBudget(max_steps=200, max_minutes=10)
    assert both.progress(100, 2) == 0.5
    assert both.progress(100, 8) == 0.8
    assert TrainingBudget(None, 4).progress(10**6, 1) == 0.25
    assert TrainingBudget(4, None).progress(1, 10**6) == 0.25


def test_the_reason_to_stop_is_the_limit_reached():
    both = TrainingBudget(max_steps=10, max_minutes=1)
    assert both.stop_reason(9, 0.9) is None
    assert both.stop_reason(10, 0.9) == "max_steps"
    assert both.stop_reason(9, 1.0) == "max_minutes"


def test_the_clock_goes_on_from_the_minutes_before_a_resume():
    now = [1000.0]
    clock = Clock(lambda: now[0])
    now[0] += 30
    assert clock.minutes() == 0.5
    clock.start(7.0)
    now[0] += 60
    assert clock.minutes() == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("progress", "rate"),
    [
        (0.0, 0.02),  # a hundredth of the peak rather than nothing
        (0.05, 1.0),
        (0.1, 2.0),
        (0.55, 1.0),  # half of what follows the warm-up
        (0.325, 1 + 2**-0.5),  # a quarter: (1 + cos π/4) / 2 of 2
        (1.0, 0.0),
        (1.3, 0.0),
    ],
)
def test_cosine_rises_linearly_then_falls_to_nothing(progress, rate):
    settings = OptimiserSettings(lr=2.0, warmup_fraction=0.1, schedule="cosine")
    assert learning_rate(progress, settings) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("progress", "rate"), [(0.0, 1.0), (0.5, 0.5358867), (0.9, 0.1258925), (1.0, 0.0)]
)
def test_poly_falls_with_the_power_of_nine_tenths(progress, rate):
    settings = OptimiserSettings(lr=1.0, warmup_fraction=0.0, schedule="poly")
    assert learning_rate(progress, settings) == pytest.approx(rate)
