"""Calibrations are fitted on some folds, tested on others, and described."""

import numpy as np
import pytest
from scipy.special import expit, logit

from lesionseg.core import Calibration, Reference
from lesionseg.errors import ContentError
from lesionseg.evaluation.calibration import describe_calibration, fit_calibration, fit_logistic
from lesionseg.evaluation.voxel_calibration import (
    LevelCounts,
    mean_calibration,
    select_voxel_calibration,
)
from tests.evaluation.hand_cases import result, tables_of
from tests.grids import unit_grid


def result_of_candidates(p, true):
    """Return the tables of a case whose candidates have these scores and outcomes."""
    return tables_of([result("x", p[true].tolist(), p[~true].tolist())])


def test_calibrated_scores_have_slope_and_ratio_of_one(rng):
    p = rng.uniform(0.02, 0.98, 8000)
    found = describe_calibration(result_of_candidates(p, rng.random(8000) < p))
    statistic_value = {row.name: row.value for row in found}
    assert statistic_value["calibration_slope"] == pytest.approx(1, abs=0.06)
    assert statistic_value["observed_expected"] == pytest.approx(1, abs=0.03)
    assert statistic_value["calibration_brier"] == pytest.approx(np.mean(p * (1 - p)), abs=0.01)
    assert sum(row.n for row in found if row.name == "true_share") == 8000
    (undefined,) = describe_calibration(tables_of([]))
    assert undefined.reason


def test_calibration_corrects_overconfident_scores_and_keeps_the_order(rng):
    p = rng.uniform(0.02, 0.98, 6000)
    sure = expit(3 * logit(p))
    corrected = fit_calibration(result_of_candidates(sure, rng.random(6000) < p)).probability(sure)
    assert np.abs(corrected - p).mean() < 0.04
    assert (np.diff(corrected[np.argsort(sure)]) >= -1e-12).all()
    for n_true in (9, 11):
        with pytest.raises(ContentError, match=f"there are {n_true} and {20 - n_true}"):
            fit_calibration(result_of_candidates(p[:20], np.arange(20) < n_true))
    assert fit_calibration(result_of_candidates(p[:20], np.arange(20) < 10)).n_true == 10


def test_probability_of_one_belongs_to_the_last_tenth():
    p = np.array([0.95, 1.0] + [0.01] * 20)
    found = describe_calibration(result_of_candidates(p, np.arange(22) < 11))
    shares = {round(row.at, 3): row.n for row in found if row.name == "true_share"}
    assert shares == {0.01: 20, 0.975: 2}


def test_logistic_fit_solves_its_score_equations(rng):
    x = rng.normal(3, 2, 60)
    totals = rng.integers(0, 4, (5, 60)).astype(float)
    true = totals * (rng.random(60) < expit(x - 3))
    a, b = fit_logistic(x, true, totals).T[..., np.newaxis]
    left = true - totals * expit(a + b * x)
    np.testing.assert_allclose([left.sum(1), (left * x).sum(1)], 0, atol=1e-5)
    same = fit_logistic(np.full(5, 2.0), np.array([[1.0, 1, 0, 0, 0]]), np.ones((1, 5)))
    assert same[0, 1] == 0.0


# --- voxels ---


def count_levels(p, lesion, group="a"):
    counts = LevelCounts(group)
    counts.add(p.astype(np.float32), lesion)
    return counts


def test_dice_of_all_voxels_equals_the_value_by_hand():
    counts = count_levels(np.array([0.9, 0.7, 0.2, 0.01]), np.array([True, False, True, False]))
    assert counts.dice(0.0) == pytest.approx(2 / 4)  # threshold one half: 2 voxels, 1 of 2 hits
    assert counts.dice(-2.0) == pytest.approx(4 / 5)
    assert np.isnan(count_levels(np.array([0.5]), np.array([False])).dice(0.0))
    # a voxel counts at the nearest of levels a twentieth apart: logits −.02 and −.03
    counts = count_levels(expit([-0.02, -0.03]), np.array([True, True]))
    assert (counts.dice(0.0), counts.dice(-0.05)) == (pytest.approx(2 / 3), 1)


def draw_voxels(seed, a=0.0, b=1.0):
    """Draw voxels that are lesion with logit a + b · stated logit."""
    rng = np.random.default_rng(seed)
    stated = rng.normal(-3, 0.4, 40_000)
    return count_levels(expit(stated), rng.random(len(stated)) < expit(a + b * stated), f"p{seed}")


def test_slabs_are_counted_without_ignored_voxels(plan):
    labels = np.zeros((4, 3, 2), np.uint8)
    labels[1:3] = plan.labels.values[0]
    ignore = np.zeros(labels.shape, np.bool_)
    ignore[2] = True
    counts = LevelCounts("a")
    geometry = unit_grid(*labels.shape)
    count = counts.slab_counter(Reference(geometry, labels=labels, ignore=ignore), plan)
    for row, p in enumerate((0.1, 0.8, 0.8, 0.1)):
        count(0, row, np.full((1, 3, 2), p, np.float32))
    assert (counts.voxels.sum(), counts.lesion.sum(), counts.dice(0.0)) == (18, 6, 1.0)


def test_underconfident_network_gets_a_calibration():
    drawn = [draw_voxels(s, 3.0, 0.8) for s in range(3)]
    fit, why = select_voxel_calibration(drawn, 0.4, "validation")
    assert (fit.intercept, fit.slope) == (pytest.approx(3, abs=0.1), pytest.approx(0.8, abs=0.05))
    assert (fit.fitted_on, fit.n_true + fit.n_false) == ("validation", 120_000)
    assert "+0." in why
    assert "only 3 patients" in why  # fewer than an interval needs
    assert select_voxel_calibration(drawn[:1], 0.4, "validation")[0] is not None


def test_calibrated_probabilities_get_no_calibration():
    free = count_levels(np.full(9, 0.1), np.zeros(9, np.bool_))
    faint = count_levels(np.full(9, 5e-6), np.arange(9) < 1)  # all below the lowest level: no slope
    for cases in ([draw_voxels(s) for s in range(3)], [free], [faint], []):
        fit, why = select_voxel_calibration(cases, 0.4, "validation")
        assert (fit, why[:8]) == (None, "not used")
        assert ("cannot be measured" in why) == (len(cases) < 3)


def test_mean_treats_networks_without_a_fit_as_calibrated():
    assert mean_calibration([None, None]) is None
    mean = mean_calibration([Calibration(2.0, 0.6, n_true=3), None])
    assert (mean.intercept, mean.slope, mean.n_true) == (1.0, 0.8, 3)
