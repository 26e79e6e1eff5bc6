"""Calibrations fitted on some folds are judged on the others."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.statistics.calibration_curve import (
    fit_calibration,
    fit_out_of_fold,
    judgements,
)
from tests.evaluation.hand_cases import HandCase, make_prediction, make_reference

ROWS = "11.22.33 ........"


def case(name: str, scores: tuple[float, float, float]):
    """Two lesions and three candidates, the third one false."""
    drawn = HandCase(name, "", "11.22... ........", ROWS, scores, 0, 0, 0)
    return evaluate_case(
        make_reference(drawn),
        make_prediction(drawn),
        PRESETS["lesionseg"],
        case=name,
        group=name,
        role="validation",
    )


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    return [
        case(f"c{i}", tuple(np.clip(rng.normal([0.7, 0.6, 0.4], 0.2), 0.05, 0.95).tolist()))
        for i in range(30)
    ]


def test_each_fold_has_the_fit_of_the_others(results):
    fold_of = {r.case: i % 3 for i, r in enumerate(results)}
    fits = fit_out_of_fold(results, fold_of)
    assert sorted(fits) == [0, 1, 2]
    others = judgements([r for r in results if fold_of[r.case] != 1])
    assert fits[1] == fit_calibration(others)
    assert fits[1].n_true == 40
    assert fits[1].n_false == 20


def test_too_few_elsewhere_gives_none(results):
    assert fit_out_of_fold(results[:12], {r.case: i % 2 for i, r in enumerate(results[:12])}) == {
        0: None,
        1: None,
    }


def test_a_fit_says_what_it_was_made_of(results):
    fit = fit_calibration(judgements(results), fitted_on="out-of-fold")
    assert (fit.kind, fit.fitted_on, fit.n_true, fit.n_false) == ("platt", "out-of-fold", 60, 30)
    ranked = fit.probability([0.2, 0.5, 0.9])
    assert (np.diff(ranked) > 0).all()
    assert (
        replace(fit, slope=0.0).probability([0.1])[0] == replace(fit, slope=0.0).probability([1])[0]
    )
