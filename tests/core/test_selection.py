"""The selection after training and its file."""

import json
from dataclasses import replace

import pytest

from lesionseg.core import Calibration, OperatingPoint, Selection
from lesionseg.errors import BundleError

POINT = OperatingPoint(
    name="fp_per_case:1",
    score=0.3,
    chosen_on="out-of-fold",
    lesion_recall=0.8,
    lesion_recall_ci95=(0.7, 0.9),
    expected_false_positives_per_case=1.1,
)
FULL = Selection(
    operating_points=(POINT, OperatingPoint("score:0.5", 0.5)),
    calibration=Calibration(-1.0, 2.0, n_true=3),
    voxel_calibration=Calibration(0.5, 1.5),
    n_members=5,
    is_mirrored=True,
    reasons={"calibration": "of three lesions"},
)


def test_selection_survives_a_round_trip():
    assert Selection.from_json(FULL.to_json()) == FULL


def test_first_operating_point_is_used():
    assert FULL.point == POINT
    assert Selection().point is None


def test_promise_does_not_change_the_key_of_a_predicted_case():
    """The text of the operating point is a part of the key, and earlier versions had no promise."""
    promised = replace(POINT, promised=0.9, expected_recall_per_patient=0.9)
    broken = replace(POINT, why_not_promised="too few patients")
    assert repr(promised) == repr(broken) == repr(POINT)
    assert repr(POINT).endswith("n_cases=None, n_patients=None, n_false_positives=None)")
    for point in (promised, broken):
        assert Selection.from_json(Selection((point,)).to_json()).point == point


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("n_members", 10**9, "n_members: 1000000000"),
        ("schema_version", 9, "schema_version: 9"),
        ("calibration", {"slope": "steep"}, r"calibration\.slope: steep"),
        (
            "operating_points",
            [{"name": "score:1"}],
            r"operating_points\[0\]\.score: the key is missing\.$",
        ),
    ],
)
def test_error_names_the_key_of_an_invalid_value(key, value, expected):
    text = json.dumps({**json.loads(FULL.to_json()), key: value})
    with pytest.raises(BundleError, match=f"^a/selection.json: {expected}"):
        Selection.from_json(text, "a/selection.json")


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", "null", "", "{"])
def test_text_that_is_not_a_selection_is_an_error(text):
    with pytest.raises(BundleError, match=r"selection\.json"):
        Selection.from_json(text)
