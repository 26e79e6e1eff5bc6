"""Progress, the clock and the learning rate, by hand."""

import pytest

from lesionseg.training.settings import OptimiserSettings
from lesionseg.training.step.schedule import Clock, TrainingBudget, learning_rate


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
