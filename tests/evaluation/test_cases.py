from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, OperatingPoint, Prediction, Reference
from lesionseg.evaluation import PRESETS, evaluate_case
from tests.evaluation.hand_cases import (
    HAND_CASES,
    make_prediction,
    make_reference,
    prediction_of,
)

PRESET = PRESETS["lesionseg"]
CASES = {case.name: case for case in HAND_CASES}


def evaluated(name, preset="lesionseg", **changes):
    case = CASES[name]
    rules = PRESETS[preset]
    return evaluate_case(make_reference(case), make_prediction(case), rules, case=name, **changes)


def test_a_missing_prediction_counts_as_missed_lesions():
    found = evaluate_case(make_reference(CASES["perfect"]), None, PRESET, case="a", group="g")
    assert (found.status, found.n_detected, len(found.lesions)) == ("missing", 0, 1)
    assert (found.dice, found.surface_dice, found.hd95_mm) == (0.0, 0.0, None)
    assert found.lesions[0].why_missed == "case_failed"


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("perfect", [""]),
        ("missed", ["no_response"]),
        ("elsewhere", ["no_response"]),
        ("under_a_tenth", ["overlap_too_small"]),
        ("merge", ["", ""]),
        ("contained", ["overlap_too_small"]),
        ("unsupported", ["overlap_too_small"]),
        ("below_the_point", ["below_operating_point"]),
    ],
)
def test_why_a_lesion_was_missed(name, reasons):
    assert [lesion.why_missed for lesion in evaluated(name).lesions] == reasons


def test_what_no_score_would_cover_enough_is_not_said_to_lie_below_the_point():
    point = OperatingPoint("score:1", 1.0)
    (lesion,) = evaluated("under_a_tenth", operating_point=point).lesions
    assert (lesion.why_missed, lesion.detected_at) == ("overlap_too_small", None)


@pytest.mark.parametrize(
    ("name", "reasons"), [("merge", ["", "merged"]), ("wrong_label", ["wrong_label"])]
)
def test_why_a_lesion_is_in_no_pair(name, reasons):
    assert [lesion.why_missed for lesion in evaluated(name, "instances").lesions] == reasons


def test_the_operating_point_overrules_the_flags():
    case = CASES["split"]
    point = OperatingPoint("score:0.7", 0.7)
    found = evaluated("split", operating_point=point)
    assert [c.outcome for c in found.candidates] == ["true_positive", "not_accepted"]
    assert [c.outcome_any for c in found.candidates] == ["true_positive"] * 2
    by_pairs = evaluated("split", "instances", operating_point=point)
    assert [c.outcome_any for c in by_pairs.candidates] == ["ignored", "true_positive"]
    assert found.dice == pytest.approx(2 * 2 / (6 + 2))
    assert found.operating_point == point
    assert case.accepted_from == 0.0


def test_volumes_and_sizes_in_three_axes():
    case = CASES["three_axes"]
    found = evaluate_case(
        make_reference(case, (3.0, 2.0, 1.0)), make_prediction(case, (3.0, 2.0, 1.0)), PRESET,
        case="a",
    )  # fmt: skip
    lesion = found.lesions[0]
    assert found.reference_ml == pytest.approx(12 * 6 / 1000)
    assert found.predicted_ml == pytest.approx(8 * 6 / 1000)
    assert lesion.volume_ml == pytest.approx(0.072)
    assert lesion.diameter_mm == pytest.approx(2 * (72 * 3 / (4 * np.pi)) ** (1 / 3))
    assert (lesion.slices, lesion.voxels, lesion.near_resolution) == (3, 12, False)
    assert lesion.centre_mm == (0.5, 1.0, 3.0)
    assert found.hd95_mm == pytest.approx(3.0)


def test_boxes_alone_are_judged_without_dice():
    geometry = Geometry.from_spacing((20, 20), (0.5, 0.5))
    boxes = np.array([[2, 2, 6, 6]], dtype=np.float32)
    reference = Reference(geometry, boxes=boxes, box_labels=(1,))
    drawn = np.zeros((20, 20), dtype=np.int32)
    drawn[2:6, 2:5] = 1
    masked = prediction_of(drawn, (0.8,), geometry)
    bare = Prediction(
        "a", geometry, tuple(replace(c, has_mask=False) for c in masked.candidates), None
    )
    for prediction in (masked, bare):
        found = evaluate_case(reference, prediction, PRESET, case="a")
        assert (found.n_detected, found.lesions[0].iou) == (1, 0.75)
        assert (found.dice, found.surface_dice, found.hd95_mm) == (None, None, None)
        assert found.lesions[0].voxels is None
        assert found.candidates[0].touches_lesion


def test_the_order_of_axes_changes_nothing():
    case = CASES["three_axes"]
    reference, prediction = make_reference(case, (3.0, 2.0, 1.0)), make_prediction(case)
    turned = Geometry.from_spacing((2, 2, 3), (1.0, 2.0, 3.0))
    again = evaluate_case(
        Reference(turned, instances=reference.instances.T.copy(), instance_labels=(1,)),
        Prediction("a", turned, prediction.candidates, prediction.instances.T.copy()),
        PRESET,
        case="a",
    )
    first = evaluate_case(reference, make_prediction(case, (3.0, 2.0, 1.0)), PRESET, case="a")
    assert (first.dice, first.surface_dice, first.hd95_mm) == (
        again.dice, again.surface_dice, again.hd95_mm,
    )  # fmt: skip
    assert first.lesions[0].diameter_mm == again.lesions[0].diameter_mm


def small(score, start, label=1):
    stop = tuple(s + 1.0 for s in start)
    return Candidate(1, label, score, start, stop, (0.0, 0.0), 1.0, None, False, accepted=False)


@pytest.mark.parametrize(
    ("removed", "why"),
    [
        ((), "no_response"),
        ((small(0.7, (1.0, 1.0)),), "removed_by_size"),
        ((small(0.7, (0.0, 1.0)),), "no_response"),  # beside the lesion
        ((small(0.4, (1.0, 1.0)),), "no_response"),  # would not have been accepted
        ((small(0.7, (1.0, 1.0), label=2),), "no_response"),
    ],
)
def test_what_was_removed_for_its_size_tells_why_a_lesion_was_missed(removed, why):
    hand = next(c for c in HAND_CASES if c.name == "missed")
    given = replace(
        make_prediction(hand), removed=removed, operating_point=OperatingPoint("score:0.5", 0.5)
    )
    result = evaluate_case(make_reference(hand), given, PRESETS["lesionseg"], case="a")
    assert [x.why_missed for x in result.lesions] == [why]
    assert result.candidates == ()  # nothing else changes
