"""What a reference says to ignore is judged in no number."""

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, LabelRegion, Prediction, Reference
from lesionseg.evaluation import PRESETS, CaseResult, evaluate_case, match_case, summarise

SHAPE = (12, 24)
GEOMETRY = Geometry.from_spacing(SHAPE, (1.5, 1.5))
LESION, IGNORED = (slice(2, 6), slice(2, 7)), (slice(None), slice(14, None))


def reference(ignored: bool = True, lesion: bool = True) -> Reference:
    """One lesion to the left; the right side is to be ignored, or not."""
    labels, ignore = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, bool)
    labels[LESION] = lesion
    ignore[IGNORED] = ignored
    return Reference(GEOMETRY, labels=labels, ignore=ignore)


def prediction(*boxes: tuple[int, int, int, int], masks: bool = True) -> Prediction:
    """Rectangles (y, x, y, x) of falling score."""
    instances = np.zeros(SHAPE, np.int32)
    candidates = []
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        instances[top:bottom, left:right] = number
        centre = GEOMETRY.to_mm([[(top + bottom - 1) / 2, (left + right - 1) / 2]])[0]
        candidates.append(
            Candidate(
                id=number,
                label=1,
                score=1 - number / 10,
                start_vox=(top, left),
                stop_vox=(bottom, right),
                centre_mm=tuple(centre.tolist()),
                diameter_mm=5.0,
                volume_ml=None,
                has_mask=masks,
            )
        )
    return Prediction("a", GEOMETRY, tuple(candidates), instances if masks else None)


HIT, INSIDE, ACROSS = (2, 2, 6, 7), (3, 16, 9, 22), (8, 12, 11, 18)


@pytest.mark.parametrize("preset", ["lesionseg", "instances", "iou50", "luna16", "picai"])
@pytest.mark.parametrize("masks", [True, False])
def test_a_candidate_in_what_is_ignored_changes_no_number(preset: str, masks: bool) -> None:
    rules = PRESETS[preset]
    alone = evaluate_case(reference(), prediction(HIT, masks=masks), rules, case="a")
    more = evaluate_case(reference(), prediction(HIT, INSIDE, masks=masks), rules, case="a")
    assert [c.outcome for c in more.candidates] == ["true_positive", "ignored"]
    for name in ("dice", "surface_dice", "hd95_mm", "case_score", "n_detected"):
        assert getattr(more, name) == getattr(alone, name)
    if masks:
        assert more.dice == 1.0
    first, second = (
        summarise([found], rules, evaluated_on="test", replicates=5) for found in (alone, more)
    )
    for name in ("lesion_precision", "false_positives_per_case", "average_precision"):
        assert second[name] == first[name]
    there = evaluate_case(reference(ignored=False), prediction(HIT, INSIDE), rules, case="a")
    assert there.n_outcome("false_positive") == 1


def test_only_the_judged_part_of_a_candidate_counts() -> None:
    found = evaluate_case(reference(), prediction(HIT, ACROSS), PRESETS["lesionseg"], case="a")
    # four of its six columns are ignored: neither false nor true, but the other two are drawn
    assert found.candidates[1].outcome == "ignored"
    assert found.dice == pytest.approx(2 * 20 / (20 + 20 + 3 * 2))
    less = evaluate_case(
        reference(), prediction(HIT, (8, 10, 11, 16)), PRESETS["lesionseg"], case="a"
    )
    assert less.candidates[1].outcome == "false_positive"


def test_a_lesion_free_case_called_only_where_it_is_ignored_is_clean() -> None:
    empty = reference(lesion=False)
    found = evaluate_case(empty, prediction(INSIDE), PRESETS["lesionseg"], case="a")
    assert found.case_score == 0.0
    scores = summarise([found], PRESETS["lesionseg"], evaluated_on="test", replicates=5)
    assert scores["specificity"]["value"] == 1.0


REGIONS = (LabelRegion("whole", (1, 2), 1), LabelRegion("core", (2,), 2))


def judged_by_region(values: np.ndarray | None, truth: np.ndarray) -> CaseResult:
    instances = (truth > 0).astype(np.int32)
    given = Reference(GEOMETRY, labels=truth, instances=instances, instance_labels=(1,))
    made = prediction(HIT, INSIDE)
    made = Prediction("a", GEOMETRY, made.candidates, made.instances, values=values)
    return match_case(given, made, PRESETS["lesionseg"], case="a", regions=REGIONS).result()


def test_each_region_is_judged_by_itself() -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[LESION] = 1
    truth[3:5, 3:5] = 2
    values = np.zeros(SHAPE, np.uint8)
    values[2:6, 2:7], values[3:9, 16:22] = 1, 1
    values[3:5, 3:6] = 2
    found = judged_by_region(values, truth)
    assert found.dice == pytest.approx(2 * 20 / (20 + 20 + 36))
    assert list(found.regions) == ["whole", "core"]
    core = found.regions["core"]
    assert core.dice == pytest.approx(2 * 4 / (4 + 6))
    assert [c.outcome for c in core.candidates] == ["true_positive"]
    assert found.regions["whole"].dice == found.dice
    assert found.regions["whole"].n_outcome("false_positive") == 1
    scores = summarise(
        [found], PRESETS["lesionseg"], evaluated_on="test", labels={1: "lesion"}, replicates=5
    )
    assert scores["per_label"]["core"]["dice"]["mean"] == core.dice
    assert scores["per_label"]["core"]["n_lesions"] == 1


def test_boxes_alone_tell_no_region() -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[LESION] = 2
    assert judged_by_region(None, truth).regions == {}
