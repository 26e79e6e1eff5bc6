"""The selection of operating points and of a calibration on development cases."""

import numpy as np
import pytest

from lesionseg.core import Calibration, Selection
from lesionseg.evaluation.operating_points import Aim
from lesionseg.evaluation.selection import AIMS, select
from tests.evaluation.hand_cases import result, tables_of

OUT_OF_FOLD = {"chosen_on": "out-of-fold", "fold_of": {f"c{i:02d}": i % 3 for i in range(12)}}


@pytest.fixture
def results():
    """Return twelve patients with two lesions and one false positive of similar scores."""
    scores = np.random.default_rng(0).uniform(0.3, 0.9, (12, 3)).tolist()
    return [result(f"c{i:02d}", row[:2], row[2:]) for i, row in enumerate(scores)]


@pytest.fixture
def choose():
    """Return a function that selects operating points on validation cases."""

    def select_on_validation(results, aim="fp_per_case:1", confidence=None):
        tables = tables_of(results)
        return select(tables, Selection(), Aim.parse(aim), confidence, chosen_on="validation")[0]

    return select_on_validation


def test_points_state_their_cases_and_the_expected_rate(results):
    choice, _ = select(
        tables_of(results), Selection(), Aim.parse("fp_per_case:3"), None, **OUT_OF_FOLD
    )
    first = choice.operating_points[0]
    assert (first.name, first.chosen_on) == ("fp_per_case:3", "out-of-fold")
    assert [p.name for p in choice.operating_points[1:]] == list(AIMS)
    assert 0.9 < choice.operating_points[1].expected_false_positives_per_case <= 1.0
    expected = 1.0 + 0.5 / len(results)  # all are accepted, and half a further one is expected
    assert first.expected_false_positives_per_case == pytest.approx(expected)
    assert f"{expected:.2f}" in choice.reasons["operating point"]


def test_requested_point_comes_first(results, choose):
    assert choose(results, "sensitivity:0.8").operating_points[0].name == "sensitivity:0.8"
    by_hand = choose(results, "score:0.4").operating_points
    assert (by_hand[0].score, by_hand[0].chosen_on, len(by_hand)) == (0.4, None, 1 + len(AIMS))
    assert by_hand[0].false_positives_per_case is not None
    few = [result(f"c{i}", [0.9, None], [0.4]) for i in range(6)]
    choice = choose(few, "sensitivity:0.9")  # out of reach
    assert choice.operating_points[0].name == "fp_per_case:1"
    assert "6 of 12 lesions (0.5)" in choice.reasons["operating point"]


def test_too_few_patients_are_stated_in_the_reason(results, choose):
    some = choose(results[:4], "fp_per_case:0.5", 0.9)
    few = choose(results[:2], "fp_per_case:0.4")
    assert "only 4 patients, too few to guarantee" in some.reasons["operating point"]
    assert "only 2 patients, too few to expect" in few.reasons["operating point"]
    assert some.operating_points[0].confidence is None


def test_probabilities_of_a_case_come_from_a_fit_without_its_fold(results, choose):
    voxels = Selection(voxel_calibration=Calibration(), n_members=5, reasons={"a": "b"})
    complete, fits = select(
        tables_of(results), voxels, Aim.parse("fp_per_case:1"), None, **OUT_OF_FOLD
    )
    assert (complete.calibration.n_true, complete.calibration.n_false) == (24, 12)
    assert fits["c00"] is fits["c03"] is None  # 8 false positives in other folds are too few
    assert choose(results[:6]).calibration is None
    assert (complete.voxel_calibration, complete.n_members) == (Calibration(), 5)
    assert set(complete.reasons) == {"a", "operating point", "calibration"}
