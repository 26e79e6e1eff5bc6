"""The reason of a missed lesion, with one case for each reason of each rule."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Candidate, OperatingPoint, Prediction, Reference
from lesionseg.evaluation import PRESETS
from lesionseg.evaluation.missed import WhyMissed
from tests.boxes import predict_boxes, reference_of_boxes
from tests.evaluation.hand_cases import (
    CASES,
    HandCase,
    evaluate_case,
    evaluate_hand_case,
    make_reference,
    prediction_of,
    random_instances,
)
from tests.grids import unit_grid

POINT = OperatingPoint("score:0.5", 0.5)


def draw_case(reference, prediction, *scores, labels=()):
    return HandCase("case", reference, prediction, scores, candidate_labels=labels)


def evaluate_lesion(hand, preset="lesionseg", row=0, point=POINT):
    return evaluate_hand_case(hand, preset, operating_point=point).lesions[row]


UNTOUCHED = draw_case(".11. ....", ".... ....")
BELOW = draw_case(".11. .11.", ".11. .11.", 0.3)


@pytest.mark.parametrize(
    ("preset", "hand", "row", "why"),
    [
        ("lesionseg", UNTOUCHED, 0, WhyMissed.NO_RESPONSE),
        ("iou50", UNTOUCHED, 0, WhyMissed.NO_RESPONSE),
        ("lesionseg", "elsewhere", 0, WhyMissed.NO_RESPONSE),
        ("instances", "two_of_three", 2, WhyMissed.NO_RESPONSE),
        ("lesionseg", BELOW, 0, WhyMissed.BELOW_OPERATING_POINT),
        ("iou50", BELOW, 0, WhyMissed.BELOW_OPERATING_POINT),
        ("luna16", BELOW, 0, WhyMissed.BELOW_OPERATING_POINT),
    ],
)
def test_lesion_is_missed_without_a_response_or_below_the_point(preset, hand, row, why):
    assert evaluate_lesion(hand, preset, row).why_missed == why


@pytest.mark.parametrize(
    ("preset", "hand", "row", "why"),
    [
        ("lesionseg", "contained", 0, WhyMissed.OVERLAP_TOO_SMALL),
        ("lesionseg", "under_a_tenth", 0, WhyMissed.CANDIDATE_TOO_LARGE),
        ("lesionseg", "unsupported", 0, WhyMissed.CANDIDATE_TOO_LARGE),
        ("instances", "under_a_tenth", 0, WhyMissed.IOU_TOO_SMALL),
        ("instances", "umbrella", 4, WhyMissed.IOU_TOO_SMALL),
        ("iou50", "exactly_a_tenth", 0, WhyMissed.IOU_TOO_SMALL),
        ("luna16", "under_a_tenth", 0, WhyMissed.CENTRE_TOO_FAR),
        ("instances", "merge", 1, WhyMissed.MERGED),
        ("instances", "wrong_label", 0, WhyMissed.WRONG_LABEL),
        ("luna16", "wrong_label", 0, WhyMissed.WRONG_LABEL),
        ("brats", "merge", 1, WhyMissed.MERGED),  # its only candidate is paired with lesion 0
        ("brats", "wrong_label", 0, WhyMissed.WRONG_LABEL),
    ],
)
@pytest.mark.parametrize("point", [0.4, 0.99])
def test_insufficient_candidate_above_or_below_the_point_is_named_with_its_score(
    preset, hand, row, why, point
):
    lesion = evaluate_lesion(hand, preset, row, OperatingPoint("score", point))
    assert lesion.why_missed == why
    assert (lesion.nearest_candidate, lesion.nearest_score) == (1, *CASES[hand].scores)


@pytest.mark.parametrize(
    ("name", "covered", "nearest", "in_lesions"),
    [
        ("under_a_tenth", 1.0, (1, 0.5, pytest.approx(1 / 11)), 1 / 11),
        ("contained", 1 / 20, (1, 0.9, pytest.approx(1 / 20)), 1.0),
        ("fragments", 2 / 20, (None, None, None), 1.0),  # found
    ],
)
def test_lesion_states_its_cover_and_a_missed_one_its_nearest_candidate(
    name, covered, nearest, in_lesions
):
    result = evaluate_hand_case(name, operating_point=POINT if name == "under_a_tenth" else None)
    lesion = result.lesions[0]
    assert lesion.covered == pytest.approx(covered)
    assert (lesion.nearest_candidate, lesion.nearest_score, lesion.nearest_iou) == nearest
    assert result.candidates[0].in_lesions == pytest.approx(in_lesions)


def test_accepted_huge_candidate_precedes_a_fitting_rejected_one():
    # candidate 1 covers half of the lesion and is far too large; candidate 2 would find it
    lesion = evaluate_lesion(draw_case("11" + 19 * ".", "121111111111111111111", 0.9, 0.2))
    assert lesion.why_missed == WhyMissed.CANDIDATE_TOO_LARGE
    assert lesion.nearest_candidate == 1


def test_candidate_rejected_despite_its_score_is_not_below_the_point():
    prediction = prediction_of(np.array([[0, 1], [0, 2]], np.int32), (0.9, 0.4), unit_grid(2, 2))
    first, second = prediction.candidates
    flagged = replace(prediction, candidates=(replace(first, accepted=False), second))
    lesions = evaluate(reference_of([[0, 1], [0, 2]], (1, 1)), flagged).lesions
    assert [x.why_missed for x in lesions] == [WhyMissed.NOT_ACCEPTED, WhyMissed.FOUND]
    assert lesions[0].nearest_score == 0.9


def test_a_failed_case_is_the_reason_for_all_its_lesions():
    result = evaluate_case(make_reference(CASES["merge"]), None, PRESETS["lesionseg"], case="a")
    assert [x.why_missed for x in result.lesions] == [WhyMissed.CASE_FAILED] * 2


@pytest.mark.parametrize(
    ("score", "row", "label", "preset", "is_reason"),
    [
        (0.7, 1, 1, "lesionseg", True),
        (0.7, 0, 1, "lesionseg", False),  # next to the lesion
        (0.4, 1, 1, "lesionseg", True),  # a low score is stated, too
        (0.7, 1, 2, "lesionseg", True),  # this rule ignores labels
        (0.7, 1, 2, "instances", False),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_candidate_removed_by_size_explains_a_missed_lesion(
    score, row, label, preset, is_reason, masked
):
    removed = Candidate.from_box(1, label, score, (row, 1, row + 1, 2), unit_grid(2, 4))
    marked = make_reference(CASES["missed"])
    if not masked:
        marked = reference_of_boxes(unit_grid(2, 4), (1, 1, 2, 3))
    given = Prediction("a", unit_grid(2, 4), (), np.zeros((2, 4), np.int32), removed=(removed,))
    result = evaluate(marked, given, preset, POINT)
    (lesion,) = result.lesions
    why = WhyMissed.REMOVED_BY_SIZE if is_reason else WhyMissed.NO_RESPONSE
    assert lesion.why_missed == why
    assert lesion.nearest_score == (score if is_reason else None)
    assert result.candidates == ()  # nothing else changes


@pytest.mark.parametrize(
    ("point", "why"), [(0.5, WhyMissed.WRONG_LABEL), (0.95, WhyMissed.NO_RESPONSE)]
)
def test_candidate_of_an_unannotated_label_gives_the_reason_wrong_label(point, why):
    found = prediction_of(np.array([[1, 1, 0, 0]], np.int32), (0.9,), unit_grid(1, 4), (2,))
    marked = replace(reference_of([[1, 1, 0, 0]], (1,)), annotated={1: True, 2: False})
    result = evaluate(marked, found, point=OperatingPoint("score", point))
    assert [x.why_missed for x in result.lesions] == [why]
    assert result.candidates == ()


def test_boxes_give_the_reasons_of_filled_masks():
    plane = unit_grid(20, 20)
    marked = reference_of_boxes(plane, (0, 0, 2, 2), (10, 10, 20, 20), (10, 0, 12, 2))
    # two equal boxes cover a lesion once
    given = predict_boxes(plane, (0, 0, 10, 10), (10, 10, 11, 15), (10, 10, 11, 15))
    lesions = evaluate(marked, given).lesions
    assert [(x.why_missed, x.covered) for x in lesions] == [
        (WhyMissed.CANDIDATE_TOO_LARGE, 1.0),
        (WhyMissed.OVERLAP_TOO_SMALL, 0.05),
        (WhyMissed.NO_RESPONSE, 0.0),
    ]


@pytest.mark.parametrize("preset", ["lesionseg", "instances", "iou50", "luna16"])
@pytest.mark.parametrize("seed", range(25))
def test_each_reason_is_true_on_random_cases(seed, preset):
    rng = np.random.default_rng(seed)
    truth, found = (random_instances(rng, (24, 24), n, sides=[1, 2, 4, 14]) for n in (8, 6))
    scores = rng.choice([0.2, 0.4, 0.6, 0.8], size=found.max()).tolist()
    labels = rng.integers(1, 3, size=found.max()).tolist()
    marked = reference_of(truth, tuple(rng.integers(1, 3, size=truth.max()).tolist()))
    prediction = prediction_of(found, tuple(scores), unit_grid(*truth.shape), tuple(labels))
    result = evaluate(marked, prediction, preset, POINT)
    threshold = PRESETS[preset].criterion.threshold
    for lesion in result.lesions:
        voxels = truth == lesion.lesion
        covering = [c for c in result.candidates if (voxels & (found == c.candidate)).any()]
        drawn = [c for c in covering if c.accepted] or covering
        share = sum((voxels & (found == c.candidate)).sum() for c in drawn) / voxels.sum()
        assert lesion.covered == pytest.approx(share)
        near = next((c for c in covering if c.candidate == lesion.nearest_candidate), None)
        why = lesion.why_missed
        assert (why == WhyMissed.FOUND) == lesion.detected
        if why == WhyMissed.NO_RESPONSE:
            assert not covering
        elif not covering and not lesion.detected:  # a centre may be near without a common voxel
            assert (preset, why) == ("luna16", WhyMissed.BELOW_OPERATING_POINT)
        if why == WhyMissed.BELOW_OPERATING_POINT:
            assert lesion.detected_at < POINT.score
        elif why == WhyMissed.OVERLAP_TOO_SMALL:
            assert share < threshold
        elif why == WhyMissed.CANDIDATE_TOO_LARGE:
            assert share >= threshold
            assert (truth[found == near.candidate] > 0).mean() < threshold
        elif why == WhyMissed.IOU_TOO_SMALL:
            assert lesion.nearest_iou < threshold
        elif why == WhyMissed.WRONG_LABEL:
            assert near.label != lesion.label
        elif why == WhyMissed.MERGED:
            assert any(x.candidate == near.candidate for x in result.lesions) or not near.accepted
        else:
            assert why in (WhyMissed.FOUND, WhyMissed.NO_RESPONSE, WhyMissed.CENTRE_TOO_FAR)


def reference_of(instances, labels):
    ids = np.array(instances, dtype=np.int32)
    return Reference(unit_grid(*ids.shape), instances=ids, instance_labels=labels)


def evaluate(marked, prediction, preset="lesionseg", point=None):
    return evaluate_case(marked, prediction, PRESETS[preset], case="a", operating_point=point)


def test_candidate_that_completes_the_cover_is_named_with_its_own_score():
    """Two rejected candidates cover 8 % and 4 % of a lesion, which must be covered to 10 %."""
    hand = draw_case(50 * "1" + 10 * ".", "1111" + 42 * "." + "22" + 12 * ".", 0.4, 0.3)
    lesion = evaluate_lesion(hand)
    assert lesion.why_missed == WhyMissed.BELOW_OPERATING_POINT
    assert (lesion.nearest_candidate, lesion.nearest_score) == (2, 0.3)
