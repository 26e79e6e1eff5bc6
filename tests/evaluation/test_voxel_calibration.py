"""What voxels' probabilities are worth, by hand."""

import numpy as np
import pytest

from lesionseg.core import Calibration, Geometry, Reference
from lesionseg.evaluation.voxel_calibration import (
    LevelCounts,
    mean_calibration,
    select_voxel_calibration,
)


def counted(p, lesion, group="a"):
    counts = LevelCounts(group)
    counts.add(p.astype(np.float32), lesion)
    return counts


def drawn(seed, a=0.0, b=1.0):
    """Voxels that are lesion as often as logit p = a + b · what is said."""
    rng = np.random.default_rng(seed)
    said = rng.normal(-3, 0.4, 40_000)
    lesion = rng.random(len(said)) < 1 / (1 + np.exp(-(a + b * said)))
    return counted(1 / (1 + np.exp(-said)), lesion, f"p{seed}")


def test_dice_of_all_voxels_by_hand():
    counts = counted(np.array([0.9, 0.7, 0.2, 0.01]), np.array([True, False, True, False]))
    assert counts.dice(0.0) == pytest.approx(2 / 4)  # from one half: 2 voxels, 1 of 2 hit
    assert counts.dice(-2.0) == pytest.approx(4 / 5)
    assert np.isnan(counted(np.array([0.5]), np.array([False])).dice(0.0))


def test_what_a_decision_is_shown_is_counted_slab_by_slab_without_what_is_ignored(plan):
    labels = np.zeros((4, 3, 2), np.uint8)
    labels[1:3] = plan.label_values[0]
    ignore = np.zeros(labels.shape, np.bool_)
    ignore[2] = True
    counts = LevelCounts("a")
    geometry = Geometry.from_spacing(labels.shape, (1.0,) * 3)
    count = counts.counter(Reference(geometry, labels=labels, ignore=ignore), plan)
    for row, p in enumerate((0.1, 0.8, 0.8, 0.1)):
        count(0, row, np.full((1, 3, 2), p, np.float32))
    assert (counts.voxels.sum(), counts.lesion.sum()) == (18, 6)
    assert counts.dice(0.0) == 1.0


def test_a_network_that_is_far_too_unsure_is_put_right():
    fit, why = select_voxel_calibration([drawn(s, 3.0, 0.8) for s in range(3)], 0.4, "validation")
    assert (fit.intercept, fit.slope) == (pytest.approx(3, abs=0.1), pytest.approx(0.8, abs=0.05))
    assert (fit.fitted_on, fit.n_true + fit.n_false) == ("validation", 120_000)
    assert "+0." in why
    assert select_voxel_calibration([drawn(0, 3.0, 0.8)], 0.4, "validation")[0] is not None


def test_probabilities_that_are_right_are_left_alone():
    free = counted(np.full(9, 0.1), np.zeros(9, np.bool_))
    for cases in ([drawn(s) for s in range(3)], [free], []):
        fit, why = select_voxel_calibration(cases, 0.4, "validation")
        assert (fit, why[:7]) == (None, "skipped")


def test_the_mean_of_several_networks_takes_those_without_a_fit_as_they_are():
    assert mean_calibration([None, None]) is None
    mean = mean_calibration([Calibration("platt", 2.0, 0.6, n_true=3), None])
    assert (mean.intercept, mean.slope, mean.n_true) == (1.0, 0.8, 3)
