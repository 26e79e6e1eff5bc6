"""What a point leads to expect is what it gives on patients that nobody has seen."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.evaluation import PRESETS, CaseResult, choose, evaluate_case
from lesionseg.evaluation.statistics.detection import pool_results
from lesionseg.evaluation.statistics.operating_point import dealt_folds, with_expectation
from tests.evaluation.hand_cases import HandCase, make_prediction, make_reference


@pytest.fixture(scope="module")
def template() -> CaseResult:
    """A lesion found and a false positive, to be multiplied."""
    drawn = HandCase("x", "", "11... .....", "11.22 .....", (0.9, 0.5), 0, 0, 0)
    return evaluate_case(
        make_reference(drawn), make_prediction(drawn), PRESETS["lesionseg"], case="x", group="x"
    )


def patients(template: CaseResult, n: int, rng: np.random.Generator) -> list[CaseResult]:
    """Patients of about three lesions and four false positives; some score higher throughout."""
    (lesion,), false = template.lesions, template.candidates[1]
    made = []
    for i in range(n):
        level = rng.normal(0, 0.5)
        found, wrong = (
            1 / (1 + np.exp(-rng.normal(middle + level, 1.1, rng.poisson(mean))))
            for middle, mean in ((0.5, 3), (-1.0, 4))
        )
        made.append(
            replace(
                template,
                case=f"p{i:04d}",
                group=f"p{i:04d}",
                lesions=tuple(replace(lesion, detected_at=float(s)) for s in found),
                candidates=tuple(replace(false, score=float(s)) for s in wrong),
            )
        )
    return made


def test_the_expectation_is_nearer_to_new_patients_than_what_was_chosen_on(template):
    """Averages of 300 data sets of 20 patients, by recall and false positives a case."""
    rng = np.random.default_rng(0)
    fresh = pool_results(patients(template, 6000, rng))
    wishes = [{"fp_per_case": 0.5}, {"fp_per_case": 1.0}, {"sensitivity": 0.9}]
    chosen, expected, true = (np.zeros((3, 2)) for _ in range(3))
    for _ in range(300):
        results = patients(template, 20, rng)
        for k, wish in enumerate(wishes):
            point = with_expectation(choose(results, **wish), results, dealt_folds(results))
            chosen[k] += point.lesion_recall, point.false_positives_per_case
            expected[k] += point.expected_recall, point.expected_false_positives_per_case
            true[k] += (
                (fresh.detected_at >= point.score).mean(),
                (fresh.false_score >= point.score).sum() / fresh.n_cases,
            )
    optimism, error = (chosen - true) / 300, (expected - true) / 300
    assert optimism[:2, 1].max() < -0.02  # fewer false positives than there will be
    assert optimism[2, 0] > 0.01
    assert np.abs(error[:, 0]).max() < 0.01
    assert abs(error[1, 1]) < abs(optimism[1, 1])
    assert error[:, 1].min() > -0.02  # a fifth fewer patients to choose on flatter no one
    assert error[:, 1].max() < 0.05
