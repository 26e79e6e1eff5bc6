"""What a reference says to ignore is scored in no number; each region is scored by itself."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry, Labels, Prediction, Reference
from lesionseg.evaluation import PRESETS, SummarySettings, match_case, summarise
from tests.evaluation.hand_cases import evaluate_case, prediction_of

SHAPE = (12, 24)
GEOMETRY = Geometry.from_spacing(SHAPE, (1.5, 1.5))
LESION, IGNORED = (slice(2, 6), slice(2, 7)), (slice(None), slice(14, None))
HIT, INSIDE, ACROSS = (2, 2, 6, 7), (3, 16, 9, 22), (8, 12, 11, 18)  # y, x, y, x
PRESET = PRESETS["lesionseg"]


def reference(ignored=True, lesion=True):
    """One lesion to the left; the right side is to be ignored, or not."""
    labels, ignore = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, bool)
    labels[LESION] = lesion
    ignore[IGNORED] = ignored
    return Reference(GEOMETRY, labels=labels, ignore=ignore)


def prediction(*boxes, masks=True):
    """Rectangles of falling score."""
    instances, rows = np.zeros(SHAPE, np.int32), []
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        instances[top:bottom, left:right] = number
    scores = np.linspace(0.9, 0.5, len(boxes)).tolist()
    for c in prediction_of(instances, scores, GEOMETRY).candidates:
        middle = GEOMETRY.to_mm([np.add(c.start_vox, c.stop_vox) / 2 - 0.5])[0]
        rows.append(replace(c, has_mask=masks, centre_mm=tuple(middle.tolist())))
    return Prediction("a", GEOMETRY, tuple(rows), instances if masks else None)


def evaluated(truth, *boxes, preset=PRESET, **options):
    return evaluate_case(truth, prediction(*boxes, **options), preset, case="a")


def scores(result, preset=PRESET, **options):
    settings = SummarySettings(evaluated_on="test", replicates=5, **options)
    return summarise([result], preset, settings).to_json()


@pytest.mark.parametrize("name", ["lesionseg", "instances", "iou50", "luna16"])
@pytest.mark.parametrize("masks", [True, False])
def test_a_candidate_in_what_is_ignored_changes_no_number(name, masks):
    preset = PRESETS[name]
    alone = evaluated(reference(), HIT, preset=preset, masks=masks)
    more = evaluated(reference(), HIT, INSIDE, preset=preset, masks=masks)
    assert [c.outcome for c in more.candidates] == ["true_positive", "ignored"]
    for number in ("dice", "surface_dice", "hd95_mm", "case_score", "n_detected"):
        assert getattr(more, number) == getattr(alone, number)
    assert more.dice == (1.0 if masks else None)
    first, second = (scores(found, preset) for found in (alone, more))
    for number in ("lesion_precision", "false_positives_per_case", "average_precision"):
        assert second[number] == first[number]
    there = evaluated(reference(ignored=False), HIT, INSIDE, preset=preset)
    assert there.n_outcome("false_positive") == 1


def test_only_the_part_of_a_candidate_that_counts_is_scored():
    found = evaluated(reference(), HIT, ACROSS)
    # four of its six columns are ignored: neither false nor true, but the other two are drawn
    assert found.candidates[1].outcome == "ignored"
    assert found.dice == pytest.approx(2 * 20 / (20 + 20 + 3 * 2))
    less = evaluated(reference(), HIT, (8, 10, 11, 16))
    assert less.candidates[1].outcome == "false_positive"
    # a lesion-free case called only where it is ignored is clean
    found = evaluated(reference(lesion=False), INSIDE)
    assert found.case_score == 0.0
    assert scores(found)["specificity"]["value"] == 1.0


def by_region(values, truth):
    labels = Labels((1, 2), ("whole", "core"), regions=((1, 2), (2,)))
    instances = (truth > 0).astype(np.int32)
    given = Reference(GEOMETRY, labels=truth, instances=instances, instance_labels=(1,))
    made = replace(prediction(HIT, INSIDE), values=values)
    return match_case(given, made, PRESET, case="a", labels=labels).result()


def test_each_region_is_scored_by_itself():
    truth, values = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[LESION], truth[3:5, 3:5] = 1, 2
    values[2:6, 2:7], values[3:9, 16:22], values[3:5, 3:6] = 1, 1, 2
    found = by_region(values, truth)
    assert found.dice == pytest.approx(2 * 20 / (20 + 20 + 36))
    assert list(found.regions) == ["whole", "core"]
    core = found.regions["core"]
    assert core.dice == pytest.approx(2 * 4 / (4 + 6))
    assert [c.outcome for c in core.candidates] == ["true_positive"]
    assert found.regions["whole"].dice == found.dice
    assert found.regions["whole"].n_outcome("false_positive") == 1
    row = scores(found, labels={1: "lesion"})["per_label"]["core"]
    assert (row["dice"]["mean"], row["n_lesions"]) == (core.dice, 1)
    assert by_region(None, truth).regions == {}  # boxes alone tell no region
