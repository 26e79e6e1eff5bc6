"""Ignored voxels change no number, and each region is scored separately."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry, Labels, Prediction, Reference
from lesionseg.evaluation import PRESETS, SummarySettings, summarise
from tests.boxes import reference_of_boxes
from tests.evaluation.hand_cases import draw, evaluate_case, prediction_of, tables_of

SHAPE = (12, 24)
GEOMETRY = Geometry.from_spacing(SHAPE, (1.5, 1.5))
LESION = (slice(2, 6), slice(2, 7))
IGNORED = (slice(None), slice(14, None))
# boxes y, x, y, x
HIT = (2, 2, 6, 7)
INSIDE = (3, 16, 9, 22)
ACROSS = (8, 12, 11, 18)
PRESET = PRESETS["lesionseg"]


def make_reference(ignored=True, lesion=True):
    """Return one lesion on the left. The right side is ignored if `ignored` is True."""
    labels = np.zeros(SHAPE, np.uint8)
    ignore = np.zeros(SHAPE, bool)
    labels[LESION] = lesion
    ignore[IGNORED] = ignored
    return Reference(GEOMETRY, labels=labels, ignore=ignore)


def make_prediction(*boxes, masks=True):
    """Return rectangles with falling scores."""
    instances = np.zeros(SHAPE, np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        instances[top:bottom, left:right] = number
    rows = []
    for c in prediction_of(instances, (0.9, 0.5)[: len(boxes)], GEOMETRY).candidates:
        middle = GEOMETRY.to_mm([np.add(c.start_vox, c.stop_vox) / 2 - 0.5])[0]
        rows.append(replace(c, has_mask=masks, centre_mm=tuple(middle.tolist())))
    return Prediction("a", GEOMETRY, tuple(rows), instances if masks else None)


def evaluate(truth, *boxes, preset=PRESET, **options):
    return evaluate_case(truth, make_prediction(*boxes, **options), preset, case="a")


def summarise_case(result, preset=PRESET, **options):
    settings = SummarySettings(evaluated_on="test", replicates=5, **options)
    return summarise(tables_of([result]), preset, settings)


@pytest.mark.parametrize("name", ["lesionseg", "instances", "iou50", "luna16"])
@pytest.mark.parametrize("masks", [True, False])
def test_candidate_in_an_ignored_region_changes_no_number(name, masks):
    preset = PRESETS[name]
    single = evaluate(make_reference(), HIT, preset=preset, masks=masks)
    more = evaluate(make_reference(), HIT, INSIDE, preset=preset, masks=masks)
    assert [c.outcome for c in more.candidates] == ["true_positive", "ignored"]
    for number in ("dice", "surface_dice", "hd95_mm", "case_score", "n_detected"):
        assert getattr(more, number) == getattr(single, number)
    assert more.dice == (1.0 if masks else None)
    assert more.n_counted == single.n_counted == 1
    first = summarise_case(single, preset)
    second = summarise_case(more, preset)
    for number in ("lesion_precision", "false_positives_per_case", "average_precision"):
        assert second[number] == first[number]
    without_ignore = evaluate(make_reference(ignored=False), HIT, INSIDE, preset=preset)
    assert without_ignore.n_outcome("false_positive") == 1


def test_only_the_part_of_a_candidate_that_counts_is_scored():
    found = evaluate(make_reference(), HIT, ACROSS)
    # Four of six columns are ignored, so the candidate is neither true nor false.
    # The other two columns still count for Dice.
    assert found.candidates[1].outcome == "ignored"
    assert found.dice == pytest.approx(2 * 20 / (20 + 20 + 3 * 2))
    less = evaluate(make_reference(), HIT, (8, 10, 11, 16))
    assert less.candidates[1].outcome == "false_positive"
    # a lesion-free case with candidates only in the ignored region counts as clean
    found = evaluate(make_reference(lesion=False), INSIDE)
    assert found.case_score == 0.0
    assert summarise_case(found)["specificity"].value == 1.0


def test_ignored_box_is_not_a_missed_lesion():
    truth = reference_of_boxes(GEOMETRY, HIT, INSIDE, ignore=make_reference().ignore)
    found = evaluate(truth, HIT, masks=False)
    assert (len(found.lesions), found.n_detected) == (1, 1)


def test_each_region_is_scored_separately():
    labels = Labels((1, 2), ("whole", "core"), regions=((1, 2), (2,)))
    truth, grid = draw(".11111.... .12211.... .11111....")
    drawn, _ = draw(".11111.222 .11111.222 .11111....")
    values, _ = draw(".11111.111 .12221.111 .11111....")
    instances = (truth > 0).astype(np.int32)
    given = Reference(grid, labels=truth, instances=instances, instance_labels=(1,))
    without_values = prediction_of(drawn, (0.9, 0.5), grid)
    masks = replace(without_values, values=values.astype(np.uint8))
    found = evaluate_case(given, masks, PRESET, case="a", labels=labels)
    assert tables_of([found]).regions == ["whole", "core"]
    core = found.of_region("core")
    assert core.dice == pytest.approx(2 * 2 / (2 + 3))
    assert [c.outcome for c in core.candidates] == ["true_positive"]
    whole = found.of_region("whole")
    assert whole.dice == found.dice == pytest.approx(2 * 15 / (15 + 15 + 6))
    assert whole.n_outcome("false_positive") == 1
    scores = summarise_case(found, labels={1: "lesion"})
    assert scores.find("dice", label="core").value == core.dice
    assert scores.find("n_lesions", label="core").value == 1
    without = evaluate_case(given, without_values, PRESET, case="a", labels=labels)
    assert tables_of([without]).regions == []
