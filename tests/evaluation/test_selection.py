"""The selection of operating points and of a calibration on development cases."""

import numpy as np
import pytest

from lesionseg.core import Calibration, Selection
from lesionseg.evaluation.operating_points import OperatingPointAim
from lesionseg.evaluation.selection import AIMS, select
from tests.evaluation.hand_cases import result, tables_of

OUT_OF_FOLD = {"chosen_on": "out-of-fold", "fold_of": {f"c{i:02d}": i % 3 for i in range(12)}}


@pytest.fixture
def results():
    """Return twelve patients with two lesions and one false positive of similar scores."""
    scores = np.random.default_rng(0).uniform(0.3, 0.9, (12, 3)).tolist()
    return [result(f"c{i:02d}", row[:2], row[2:]) for i, row in enumerate(scores)]


def choose(results, aim="fp_per_case:1", confidence=None):
    """Select operating points on validation cases."""
    tables = tables_of(results)
    return select(
        tables, Selection(), OperatingPointAim.parse(aim), confidence, chosen_on="validation"
    )[0]


def test_points_state_their_cases_and_the_expected_rate(results):
    aim = OperatingPointAim.parse("fp_per_case:3")
    choice, _ = select(tables_of(results), Selection(), aim, None, **OUT_OF_FOLD)
    first, *others = choice.operating_points
    assert (first.name, first.chosen_on) == ("fp_per_case:3", "out-of-fold")
    assert [p.name for p in others] == list(AIMS)
    assert 0.9 < others[0].expected_false_positives_per_case <= 1.0
    expected = 1.0 + 0.5 / len(results)  # all are accepted, and half a further one is expected
    assert first.expected_false_positives_per_case == pytest.approx(expected)
    assert f"{expected:.2f}" in choice.reasons["operating point"]


def test_requested_point_comes_first(results):
    assert choose(results, "sensitivity:0.8").operating_points[0].name == "sensitivity:0.8"
    first, *others = choose(results, "score:0.4").operating_points
    assert (first.score, first.chosen_on, len(others)) == (0.4, None, len(AIMS))
    assert first.false_positives_per_case is not None
    few = [result(f"c{i}", [0.9, None], [0.4]) for i in range(6)]
    choice = choose(few, "sensitivity:0.9")  # out of reach
    assert choice.operating_points[0].name == "fp_per_case:1"
    assert "6 of 12 lesions (0.5)" in choice.reasons["operating point"]


@pytest.mark.parametrize(
    ("n", "rate", "confidence", "words"),
    [(4, 0.5, 0.9, "only 4 patients, too few to guar"), (2, 0.4, None, "only 2 patients, too few")],
)
def test_too_few_patients_are_stated_in_the_reason(results, n, rate, confidence, words):
    choice = choose(results[:n], f"fp_per_case:{rate}", confidence)
    assert words in choice.reasons["operating point"]
    assert choice.operating_points[0].confidence is None


def test_probabilities_of_a_case_come_from_a_fit_without_its_fold(results):
    voxels = Selection(voxel_calibration=Calibration(), n_members=5, reasons={"a": "b"})
    aim = OperatingPointAim.parse("fp_per_case:1")
    complete, fits = select(tables_of(results), voxels, aim, None, **OUT_OF_FOLD)
    assert (complete.calibration.n_true, complete.calibration.n_false) == (24, 12)
    assert fits["c00"] is fits["c03"] is None  # 8 false positives in other folds are too few
    assert choose(results[:6]).calibration is None
    assert (complete.voxel_calibration, complete.n_members) == (Calibration(), 5)
    assert set(complete.reasons) == {"a", "operating point", "calibration"}
