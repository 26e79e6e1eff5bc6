"""What is chosen on development predictions, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.pipeline.select import POINTS, select, unselected
from tests.evaluation.hand_cases import result

OUT_OF_FOLD = {"chosen_on": "out-of-fold", "fold_of": {f"c{i:02d}": i % 3 for i in range(12)}}


@pytest.fixture
def results():
    """Twelve patients of two lesions and a speck, which scores as high."""
    scores = np.random.default_rng(0).uniform(0.3, 0.9, (12, 3)).tolist()
    return [result(f"c{i:02d}", row[:2], row[2:]) for i, row in enumerate(scores)]


@pytest.fixture
def chosen(plan):
    """The plan with what is selected on validation cases."""

    def of(results, point="fp_per_case:1", sure=None):
        return select(results, plan, point, sure, chosen_on="validation")[0]

    return of


def test_points_say_what_they_were_chosen_on_and_what_to_expect(results, plan):
    choice, _ = select(results, plan, "fp_per_case:3", None, **OUT_OF_FOLD)
    first = choice.operating_points[0]
    assert (first.name, first.chosen_on) == ("fp_per_case:3", "out-of-fold")
    assert [p.name for p in choice.operating_points[1:]] == list(POINTS)
    assert 0.9 < choice.operating_points[1].expected_false_positives_per_case <= 1.0
    expected = 1.0 + 0.5 / len(results)  # all are accepted: half of one more is expected
    assert first.expected_false_positives_per_case == pytest.approx(expected)
    assert f"{expected:.2f}" in choice.reasons["operating point"]


def test_the_one_that_was_asked_for_accepts(results, chosen):
    assert chosen(results, "sensitivity:0.8").operating_points[0].name == "sensitivity:0.8"
    by_hand = chosen(results, "score:0.4").operating_points
    assert (by_hand[0].score, by_hand[0].chosen_on, len(by_hand)) == (0.4, None, 1 + len(POINTS))
    assert by_hand[0].false_positives_per_case is not None
    few = [result(f"c{i}", [0.9, None], [0.4]) for i in range(6)]
    choice = chosen(few, "sensitivity:0.9")  # out of reach
    assert choice.operating_points[0].name == "fp_per_case:1"
    assert "6 of 12 lesions (0.5)" in choice.reasons["operating point"]


def test_few_patients_are_named_with_what_they_cannot_hold(results, chosen):
    some, few = chosen(results[:4], "fp_per_case:0.5", 0.9), chosen(results[:2], "fp_per_case:0.4")
    assert "only 4 patients, too few to guarantee" in some.reasons["operating point"]
    assert "only 2 patients, too few to expect" in few.reasons["operating point"]
    assert some.operating_points[0].confidence is None
    many = [replace(r, case=f"{r.case}{i}", group=f"{r.group}{i}") for r in results for i in (0, 1)]
    sure, expected = (chosen(many, "fp_per_case:0.5", level) for level in (0.9, None))
    assert "only" not in sure.reasons["operating point"]
    first, other = sure.operating_points[0], expected.operating_points[0]
    assert (first.confidence, other.confidence) == (0.9, None)
    assert other.score < first.score


def test_probabilities_of_a_case_come_from_a_fit_without_its_fold(results, plan, chosen):
    planned = plan.with_(reasons={"spacing": "as measured"})
    complete, fits = select(results, planned, "fp_per_case:1", None, **OUT_OF_FOLD)
    assert (complete.calibration.n_true, complete.calibration.n_false) == (24, 12)
    assert fits["c00"] is fits["c03"] is None  # 8 false ones elsewhere are too few
    assert chosen(results[:6]).calibration is None
    assert unselected(complete.with_(n_members=5)) == planned  # it forgets what was chosen
