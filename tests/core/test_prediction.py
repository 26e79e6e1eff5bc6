"""Masks and accepted candidates of predictions."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, OperatingPoint, Prediction
from lesionseg.core.prediction import Calibration, InputCheckResult, logit


def test_mask_contains_labels_of_accepted_candidates_only():
    mask = _make_prediction().with_labels({1: 5, 2: 6, 3: 7}).mask()
    assert mask[0, 0].tolist() == [0, 5, 6, 0, 0]
    assert mask.sum() == 11


@pytest.mark.parametrize("instances", [None, np.zeros((3, 4, 5), np.int32)])
def test_mask_without_candidates_is_empty(instances):
    assert not Prediction("a", GRID, (), instances).mask().any()


def test_operating_point_does_not_accept_candidates_without_scores():
    """Their scores are placeholders."""
    unscored = _make_prediction(has_scores=False)
    assert unscored.accept(OperatingPoint("score:0.05", 0.05)) is unscored


GRID = Geometry.from_spacing((3, 4, 5), (3, 2, 1))


def _make_prediction(**fields):
    """Make a prediction with three candidates of one voxel each, in the zones a, b and a."""
    candidates = tuple(
        replace(
            Candidate.from_voxels(n, n, score, np.array([[0, 0, n]]), GRID),
            zone=zone,
            accepted=accepted,
        )
        for n, score, zone, accepted in ((1, 0.9, "a", True), (2, 0.5, "b", True), (3, 0.1, "a", 0))
    )
    instances = np.zeros(GRID.shape, np.int32)
    instances[0, 0, :4] = range(4)
    return Prediction("case", GRID, candidates, instances, **fields)


def test_candidate_is_measured_by_its_voxels():
    voxels = np.array([[0, 1, 1], [0, 1, 3], [1, 1, 2]])
    found = Candidate.from_voxels(7, 2, 0.5, voxels, GRID)
    assert (found.start_vox, found.stop_vox) == ((0, 1, 1), (2, 2, 4))
    assert found.centre_mm == (2, 2, 1)
    assert found.volume_ml == 0.018
    assert found.diameter_mm == pytest.approx((6 * 18 / np.pi) ** (1 / 3))
    flat = Candidate.from_voxels(7, 2, 0.5, voxels[:, 1:], Geometry.from_spacing((4, 5), (1, 1)))
    assert flat.volume_ml is None


def test_candidate_of_a_box_has_no_mask_and_no_volume():
    found = Candidate.from_box(7, 2, 0.5, (0, 1, 1, 2, 2, 4), GRID)
    assert (found.start_vox, found.stop_vox, found.centre_mm) == ((0, 1, 1), (2, 2, 4), (2, 2, 1.5))
    assert found.diameter_mm == pytest.approx((6 * 2 * 3) ** (1 / 3))
    assert (found.has_mask, found.volume_ml) == (False, None)


def test_calibration_is_a_logistic_function_of_the_logit():
    steep = Calibration(intercept=1.0, slope=2.0)
    assert steep.probability(0.5) == pytest.approx(1 / (1 + np.exp(-1)))
    assert steep.probability(0.75) == pytest.approx(1 / (1 + np.exp(-1 - 2 * np.log(3))))
    extreme = Calibration(slope=1e9)
    with np.errstate(all="raise"):
        assert extreme.probability([0, 1]).tolist() == pytest.approx([0, 1])
    assert logit([0, 1]).tolist() == pytest.approx([-13.8155, 13.8155], abs=1e-4)


@pytest.mark.parametrize(
    ("result", "is_warned"),
    [
        (InputCheckResult(), False),
        (InputCheckResult(score=1.0), False),
        (InputCheckResult(score=1.01), True),
        (InputCheckResult(empty=("T1",)), True),
        (InputCheckResult(score=0.5, empty=("T1",)), True),
        (InputCheckResult(missing=("T1",), blank=("T1",)), False),
    ],
)
def test_scan_is_warned_if_unlike_or_perhaps_damaged(result, is_warned):
    assert result.is_warned is is_warned


def test_remarks_are_added_to_the_warning():
    assert InputCheckResult(warning="A.").with_warnings(["B.", "C."]).warning == "A. B. C."
    assert InputCheckResult().with_warnings([]).warning == ""


def test_warnings_are_those_of_input_limit_and_zones():
    assert _make_prediction().warnings == ()
    unlike = InputCheckResult(warning="Unlike.")
    first, second, third = _make_prediction(input=unlike, n_left_out=3, n_outside=1).warnings
    assert first == "Unlike."
    assert "3" in second
    assert "1 candidate outside" in third


def test_kept_candidates_keep_their_voxels():
    whole = _make_prediction()
    kept = whole.keep(whole.candidates[1:])
    assert [c.id for c in kept.candidates] == [2, 3]
    assert kept.instances[0, 0].tolist() == [0, 0, 2, 3, 0]
    assert whole.keep(whole.candidates).instances is whole.instances
    assert replace(whole, instances=None).keep(()).instances is None
    assert [c.id for c in whole.without_labels([1, 3]).candidates] == [2]


def test_labels_are_exchanged_or_merged():
    whole = _make_prediction(labels={1: "x", 2: "y", 3: "z"})
    whole = replace(whole, removed=whole.candidates[:1], values=whole.instances)
    other = whole.with_labels({1: 5, 2: 6, 3: 7})
    assert [c.label for c in other.candidates] == [5, 6, 7]
    assert ([c.label for c in other.removed], other.labels) == ([5], {5: "x", 6: "y", 7: "z"})
    one = whole.with_one_label()
    assert {c.label for c in (*one.candidates, *one.removed)} == {1}
    assert one.values is whole.values
    assert whole.merge_labels().values is None


def test_candidates_with_at_least_the_score_are_accepted():
    point = OperatingPoint("score:0.5", 0.5)
    found = _make_prediction(n_outside=2).accept(point, Calibration(intercept=0.0, slope=1.0))
    assert [c.accepted for c in found.candidates] == [True, True, False]
    assert [c.probability for c in found.candidates] == pytest.approx([0.9, 0.5, 0.1])
    assert found.n_outside == 0


@pytest.mark.parametrize(
    ("zones", "accepted", "n_outside"),
    [("a", [True, False, False], 1), ("ab", [True, True, False], 0), ("c", [False] * 3, 2)],
)
def test_candidates_outside_the_kept_zones_are_rejected_and_counted(zones, accepted, n_outside):
    found = _make_prediction().reject_outside_zones(list(zones))
    assert [c.accepted for c in found.candidates] == accepted
    assert found.n_outside == n_outside


def test_zones_of_candidates_are_replaced_in_their_order():
    zones = _make_prediction().with_zones(["p", "q", "r"])
    assert [c.zone for c in zones.candidates] == ["p", "q", "r"]


def test_mask_has_the_values_of_regions_inside_accepted_candidates_only():
    values = np.full(GRID.shape, 4, np.uint8)
    mask = _make_prediction(values=values).mask()
    assert mask[0, 0].tolist() == [0, 4, 4, 0, 0]
    assert mask.sum() == 8
