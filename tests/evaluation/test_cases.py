"""One case: detections, sizes, references of boxes, and a stated IoU."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint, Reference
from lesionseg.errors import ConfigError
from lesionseg.evaluation import PRESETS, find_preset
from tests.boxes import predict_boxes, reference_of_boxes
from tests.evaluation.hand_cases import (
    CASES,
    HAND_CASES,
    evaluate_case,
    evaluate_hand_case,
    make_prediction,
    make_reference,
    prediction_of,
)

PRESET = PRESETS["lesionseg"]
BY_RULE = [("lesionseg", case) for case in HAND_CASES]
BY_RULE += [("instances", replace(c, **{"n_true": None, **c.by_pairs})) for c in HAND_CASES]


@pytest.mark.parametrize(("preset", "case"), BY_RULE, ids=lambda x: getattr(x, "name", x))
def test_hand_case_has_the_expected_result(preset, case):
    found = evaluate_hand_case(case, preset)
    assert found.n_detected == case.tp
    assert found.n_missed == len(case.detected_at) - case.tp
    assert found.n_outcome("true_positive") == (case.tp if case.n_true is None else case.n_true)
    assert found.n_outcome("false_positive") == found.n_false_positive == case.fp
    assert found.n_outcome("ignored") == found.n_ignored == case.ignored
    assert 0 <= found.seconds < 60
    assert found.dice == (None if case.dice is None else pytest.approx(case.dice))
    assert tuple(x.detected_at for x in found.lesions) == case.detected_at
    for name, (n_found, n_false) in case.secondary.items():
        assert sum(getattr(x, name) for x in found.lesions) == n_found
        assert getattr(found, f"n_false_{name}") == n_false


def test_operating_point_overrides_the_flags():
    point = OperatingPoint("score:0.7", 0.7)
    found = evaluate_hand_case("split", operating_point=point)
    assert [c.outcome for c in found.candidates] == ["true_positive", "not_accepted"]
    assert [c.outcome_any for c in found.candidates] == ["true_positive"] * 2
    by_pairs = evaluate_hand_case("split", "instances", operating_point=point)
    assert [c.outcome_any for c in by_pairs.candidates] == ["ignored", "true_positive"]
    assert found.dice == pytest.approx(2 * 2 / (6 + 2))
    assert found.operating_point == point


def test_sizes_in_three_axes_do_not_depend_on_the_order_of_axes():
    found = evaluate_hand_case("three_axes", spacing_mm=(3.0, 2.0, 1.0))
    (lesion,) = found.lesions
    assert found.reference_ml == pytest.approx(12 * 6 / 1000)
    assert found.predicted_ml == pytest.approx(8 * 6 / 1000)
    assert lesion.volume_ml == pytest.approx(0.072)
    assert lesion.diameter_mm == pytest.approx(2 * (72 * 3 / (4 * np.pi)) ** (1 / 3))
    assert (lesion.slices, lesion.voxels, lesion.near_resolution) == (3, 12, False)
    assert (lesion.centre_x_mm, lesion.centre_y_mm, lesion.centre_z_mm) == (0.5, 1.0, 3.0)
    assert found.hd95_mm == pytest.approx(3.0)
    turned = Geometry.from_spacing((2, 2, 3), (1.0, 2.0, 3.0))
    given = make_prediction(CASES["three_axes"])
    ids = make_reference(CASES["three_axes"]).instances.T.copy()
    truth = Reference(turned, instances=ids, instance_labels=(1,))
    given = replace(given, geometry=turned, instances=given.instances.T.copy())
    again = evaluate_case(truth, given, PRESET, case="a")
    for name in ("dice", "surface_dice", "hd95_mm"):
        assert getattr(again, name) == getattr(found, name)
    assert again.lesions[0].diameter_mm == lesion.diameter_mm


def test_volume_of_false_positives_is_that_of_their_voxels():
    places = {"reference": "1....|.....", "prediction": "...22|.1.22"}
    hand = replace(CASES["elsewhere"], **places, scores=(0.9, 0.8))
    found = evaluate_hand_case(hand, spacing_mm=(3.0, 2.0, 1.0))
    assert found.false_positive_ml == pytest.approx(5 * 6 / 1000)
    assert evaluate_hand_case("three_axes").false_positive_ml == 0
    assert evaluate_hand_case("elsewhere").false_positive_ml is None  # no volume in 2-D


@pytest.mark.parametrize("has_masks", [True, False])
def test_reference_of_boxes_is_scored_without_dice(has_masks):
    geometry = Geometry.from_spacing((20, 20), (0.5, 0.5))
    reference = reference_of_boxes(geometry, (2, 2, 6, 6), (12, 12, 14, 14))
    drawn = np.zeros((20, 20), dtype=np.int32)
    drawn[2:6, 2:5] = 1
    prediction = prediction_of(drawn, (0.8,), geometry)
    if not has_masks:
        rows = tuple(replace(c, has_mask=False) for c in prediction.candidates)
        prediction = replace(prediction, candidates=rows, instances=None)
    found = evaluate_case(reference, prediction, PRESET, case="a")
    first, second = found.lesions
    assert (first.detected, first.iou, first.diameter_mm) == (True, 0.75, 2.0)
    assert (second.detected, second.iou, second.diameter_mm) == (False, None, 1.0)
    assert (first.centre_x_mm, first.centre_y_mm) == (1.75, 1.75)
    assert (found.dice, found.surface_dice, found.hd95_mm) == (None, None, None)
    assert not hasattr(first, "voxels")
    assert found.candidates[0].touches_lesion


def test_box_on_one_slice_is_near_the_resolution():
    geometry = Geometry.from_spacing((10, 20, 20), (3.0, 1.0, 1.0))
    boxes = (2, 2, 2, 3, 12, 12), (2, 2, 2, 4, 12, 12), (2, 2, 2, 4, 3, 5)
    reference = reference_of_boxes(geometry, *boxes)
    found = evaluate_case(reference, None, PRESET, case="a")
    assert [lesion.near_resolution for lesion in found.lesions] == [True, False, True]


@pytest.mark.parametrize(
    ("minimum", "found"), [(0.4, True), (0.75, True), (0.76, False), (1.0, False)]
)
def test_rule_of_a_stated_iou_finds_boxes_of_at_least_that_iou(minimum, found):
    grid = Geometry.from_spacing((20, 30), (0.5, 0.5))
    reference = reference_of_boxes(grid, (2, 2, 6, 6))
    prediction = predict_boxes(grid, (2, 2, 6, 5))  # IoU 12 / 16
    result = evaluate_case(reference, prediction, find_preset(f"iou:{minimum}"), case="a")
    assert (result.n_detected, result.n_outcome("false_positive")) == (found, not found)
    assert result.lesions[0].why_missed == ("" if found else "iou_too_small")


@pytest.mark.parametrize("name", ["iou:0", "iou:1.1", "iou:half", "iou:", "iou:nan", "coco"])
def test_unknown_rule_or_iou_out_of_range_is_an_error(name):
    with pytest.raises(ConfigError, match=r"above 0 and at most 1|lesionseg, instances"):
        find_preset(name)
    assert find_preset("iou:0.50").name == "iou:0.5"
