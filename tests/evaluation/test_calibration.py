"""Calibrations: fitted on some folds and tested on the others, and described."""

import numpy as np
import pytest

from lesionseg.core import Calibration, Geometry, Reference
from lesionseg.errors import ContentError
from lesionseg.evaluation.calibration import describe_calibration, fit_calibration, fit_logistic
from lesionseg.evaluation.voxel_calibration import (
    LevelCounts,
    mean_calibration,
    select_voxel_calibration,
)
from tests.evaluation.hand_cases import result


def candidates(p, true):
    """One result whose candidates have these scores and outcomes."""
    return [result("x", p[true].tolist(), p[~true].tolist())]


def test_scores_that_are_probabilities_are_called_calibrated():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 8000)
    found = describe_calibration(candidates(p, rng.random(8000) < p))
    assert found.slope == pytest.approx(1, abs=0.06)
    assert found.observed_expected == pytest.approx(1, abs=0.03)
    assert found.brier == pytest.approx(np.mean(p * (1 - p)), abs=0.01)
    assert sum(b.n for b in found.reliability) == 8000
    assert describe_calibration([]).of is None


def test_calibration_mends_what_is_overconfident_and_keeps_the_order():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 6000)
    sure = 1 / (1 + np.exp(-3 * np.log(p / (1 - p))))
    mended = fit_calibration(candidates(sure, rng.random(6000) < p)).probability(sure)
    assert np.abs(mended - p).mean() < 0.04
    assert (np.diff(mended[np.argsort(sure)]) >= -1e-12).all()
    with pytest.raises(ContentError):
        fit_calibration(candidates(p[:20], np.arange(20) < 3))


def test_logistic_fits_solve_their_score_equations_also_of_repeated_counts():
    rng = np.random.default_rng(3)
    x, totals = rng.normal(3, 2, 60), rng.integers(0, 4, (5, 60)).astype(float)
    true = totals * (rng.random(60) < 1 / (1 + np.exp(3 - x)))
    for (a, b), t, n in zip(fit_logistic(x, true, totals), true, totals, strict=True):
        left = t - n / (1 + np.exp(-a - b * x))
        assert left.sum() == pytest.approx(0, abs=1e-6)
        assert (left * x).sum() == pytest.approx(0, abs=1e-5)
    same = fit_logistic(np.full(5, 2.0), np.array([[1.0, 1, 0, 0, 0]]), np.ones((1, 5)))
    assert same[0, 1] == 0.0


# --- of voxels ---


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
    labels[1:3] = plan.labels.values[0]
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
    faint = counted(np.full(9, 5e-6), np.arange(9) < 1)  # all below the lowest level: no slope
    for cases in ([drawn(s) for s in range(3)], [free], [faint], []):
        fit, why = select_voxel_calibration(cases, 0.4, "validation")
        assert (fit, why[:8]) == (None, "not used")


def test_the_mean_of_several_networks_takes_those_without_a_fit_as_they_are():
    assert mean_calibration([None, None]) is None
    mean = mean_calibration([Calibration(2.0, 0.6, n_true=3), None])
    assert (mean.intercept, mean.slope, mean.n_true) == (1.0, 0.8, 3)
