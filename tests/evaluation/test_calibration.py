"""Calibrations: fitted on some folds and tested on the others, and described."""

import numpy as np
import pytest

from lesionseg.errors import ContentError
from lesionseg.evaluation.calibration import describe_calibration, fit_calibration, fit_logistic
from tests.evaluation.hand_cases import result


def candidates(p, true):
    """One result whose candidates have these scores and outcomes."""
    return [result("x", p[true].tolist(), p[~true].tolist())]


def test_scores_that_are_probabilities_are_called_calibrated():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 8000)
    found = describe_calibration(candidates(p, rng.random(8000) < p))
    assert found["slope"] == pytest.approx(1, abs=0.06)
    assert found["observed_expected"] == pytest.approx(1, abs=0.03)
    assert found["brier"] == pytest.approx(np.mean(p * (1 - p)), abs=0.01)
    assert sum(b["n"] for b in found["reliability"]) == 8000
    assert describe_calibration([])["of"] is None


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
