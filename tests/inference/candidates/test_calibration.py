from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Calibration, Candidate, Geometry, Prediction
from lesionseg.inference.candidates.acceptance import calibrated

PLATT = Calibration("platt", intercept=-1.0, slope=2.0)


def make(*scores: float, scored: bool = True) -> Prediction:
    candidates = tuple(
        Candidate(i, 1, score, (0.0, 0.0), (1.0, 1.0), (0.0, 0.0, 0.0), 1.0, None)
        for i, score in enumerate(scores, start=1)
    )
    geometry = Geometry.from_spacing((4, 4), (1.0, 1.0))
    return Prediction("a", geometry, candidates, None, scored=scored)


def test_platt_by_hand() -> None:
    # logit(0.8) = ln 4; 1 / (1 + exp(1 − 2 ln 4)) = 1 / (1 + e/16)
    chances = [c.probability for c in calibrated(make(0.8, 0.5), PLATT).candidates]
    assert chances == pytest.approx([1 / (1 + np.e / 16), 1 / (1 + np.e)])


def test_isotonic_is_linear_between_its_knots_and_flat_beyond() -> None:
    steps = Calibration("isotonic", knots=(-2.0, 0.0), probabilities=(0.1, 0.5))
    chances = [c.probability for c in calibrated(make(0.99, 1 / (1 + np.e), 0.0), steps).candidates]
    assert chances == pytest.approx([0.5, 0.3, 0.1])


def test_scores_and_their_order_stay() -> None:
    turned = calibrated(make(0.9, 0.4), replace(PLATT, slope=-1.0))
    assert [c.score for c in turned.candidates] == [0.9, 0.4]
    assert [c.id for c in turned.candidates] == [1, 2]


def test_nothing_to_do() -> None:
    prediction = make(0.9)
    assert calibrated(prediction, None) is prediction
    assert calibrated(make(), PLATT).candidates == ()
    assert calibrated(make(0.9, scored=False), PLATT).candidates[0].probability is None
