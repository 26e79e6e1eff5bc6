"""Average precision of boxes: hand values, pycocotools, labels, ignored candidates, the limit."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation import PRESETS, SummarySettings, summarise
from lesionseg.evaluation.box_precision import BoxHits
from lesionseg.evaluation.intervals import Estimate
from lesionseg.evaluation.scores import scores_table
from tests.boxes import predict_boxes, reference_of_boxes
from tests.evaluation.hand_cases import box_of, evaluate_case, replace, tables_of
from tests.grids import unit_grid

GRID = unit_grid(60, 90)
PRESET = PRESETS["lesionseg"]


def match_boxes(name, lesions, candidates, accepted_from=0.0, ignore=None, grid=GRID, **more):
    """Match a case of lesions (label, box) and candidates (label, score, box)."""
    reference = Reference(
        grid,
        boxes=np.array([box for _, box in lesions], dtype=np.float32).reshape(-1, 2 * grid.dims),
        box_labels=tuple(label for label, _ in lesions),
        ignore=ignore,
    )
    rows = [
        replace(Candidate.from_box(n, label, score, box, grid), accepted=score >= accepted_from)
        for n, (label, score, box) in enumerate(candidates, 1)
    ]
    ranked = tuple(sorted(rows, key=lambda c: (-c.score, c.id)))
    prediction = Prediction(name, grid, ranked, None, **more)
    return evaluate_case(reference, prediction, PRESET, case=name)


def score_boxes(results, labels=(), replicates=0):
    """Return the scores of some cases."""
    names = {label: str(label) for label in labels}
    return summarise(
        tables_of(results),
        PRESET,
        SummarySettings(evaluated_on="test", replicates=replicates, labels=names),
    )


def precisions(rows, label=""):
    """Return the average precision at each IoU."""
    return [x.value for x in rows if x.name == "box_average_precision" and x.label == label]


LESION = (10.0, 20.0, 20.0, 30.0)
OTHER = (40.0, 60.0, 50.0, 70.0)
FOUR_FIFTHS = (10.0, 20.0, 20.0, 28.0)  # IoU 80 / 100 with LESION
FAR = (0.0, 0.0, 5.0, 5.0)


def test_lesion_with_an_iou_of_four_fifths_counts_up_to_that_iou():
    found = score_boxes([match_boxes("a", [(1, LESION)], [(1, 0.9, FOUR_FIFTHS)])])
    assert precisions(found.rows) == pytest.approx(
        [1.0] * 15 + [0.0] * 3
    )  # from 0.1 to 0.8, up to 0.95
    for name in ("box_ap_40", "box_ap_50", "box_ap_40_75"):
        assert found[name].value == pytest.approx(1.0)
    assert found["box_ap_50_95"].value == pytest.approx(0.7)  # at 7 of the 10 IoUs
    assert found["box_candidates_left_out"].value == 0


def test_mean_is_over_labels_and_each_label_has_its_precision():
    results = [
        match_boxes("a", [(1, LESION), (2, OTHER)], [(1, 0.9, LESION), (2, 0.3, FAR)]),
        match_boxes("b", [(1, OTHER)], [(1, 0.2, OTHER), (3, 0.5, FAR)]),
    ]
    scores = score_boxes(results, labels=(1, 2, 3))
    values = [scores.find("box_ap_50", label=name).value for name in ("", "1", "2", "3")]
    assert values == [pytest.approx(0.5), pytest.approx(1.0), 0.0, None]  # label 3 has no lesion
    assert scores.find("box_ap_50", label="3").reason


def test_candidates_in_ignored_regions_and_beyond_a_hundred_are_left_out():
    ignore = np.zeros(GRID.shape, dtype=np.bool_)
    ignore[:8, :8] = True
    candidates = [(1, 0.9, FAR), (1, 0.8, LESION)]
    found = score_boxes([match_boxes("a", [(1, LESION)], candidates, ignore=ignore)])
    assert found["box_ap_50"].value == pytest.approx(1.0)
    many = [(1, 0.9, FAR)] * 100 + [(1, 0.8, LESION)] * 3
    found = score_boxes([match_boxes("a", [(1, LESION)], many)])
    assert (found["box_ap_50"].value, found["box_candidates_left_out"].value) == (0.0, 3)


def test_candidates_without_scores_have_no_average_precision():
    scores = score_boxes([match_boxes("a", [(1, LESION)], [(1, 0.9, LESION)], has_scores=False)])
    assert set(precisions(scores.rows)) == {None}
    assert "score" in scores["box_ap_50"].reason
    free = score_boxes([match_boxes("a", [], [(1, 0.9, LESION)])])
    assert "no reference lesion" in free["box_ap_50"].reason


def test_case_without_a_prediction_lowers_the_recall():
    missing = evaluate_case(reference_of_boxes(GRID, LESION), None, PRESET, case="b")
    found = score_boxes([match_boxes("a", [(1, LESION)], [(1, 0.9, LESION)]), missing])
    assert found["box_ap_50"].value == pytest.approx(51 / 101)


def test_rsna_score_equals_the_value_by_hand():
    candidates = [(1, 0.9, (10.0, 20.0, 20.0, 26.0)), (1, 0.8, FAR), (1, 0.1, OTHER)]
    found = match_boxes("a", [(1, LESION), (1, OTHER)], candidates, accepted_from=0.5)
    # IoU 0.6: a hit at 0.4 to 0.6, which is 5 of 8 IoUs; 1 TP, 1 FP and 1 FN give 1/3
    empty = match_boxes("b", [], [])
    tables = tables_of([found, empty])
    first, second = BoxHits.of(tables).rsna_by_case()
    assert first == pytest.approx(5 / 8 / 3)
    assert np.isnan(second)
    false = match_boxes("c", [], [(1, 0.9, FAR)])
    assert score_boxes([found, empty, false])["rsna_score"].value == pytest.approx(5 / 48)


def test_best_box_iou_counts_only_accepted_candidates_of_the_label():
    candidates = [(1, 0.9, FOUR_FIFTHS), (1, 0.2, LESION), (2, 0.9, OTHER)]
    found = match_boxes("a", [(1, LESION), (1, OTHER)], candidates, accepted_from=0.5)
    assert [x.box_iou for x in found.lesions] == [pytest.approx(0.8), 0.0]


def test_three_axes_and_masks_are_compared_by_their_bounding_boxes():
    grid = Geometry.from_spacing((8, 8, 8), (2.0, 1.0, 1.0))
    lesion = (1.0, 1.0, 1.0, 5.0, 5.0, 5.0)
    near = (1.0, 1.0, 1.0, 5.0, 5.0, 3.0)
    found = score_boxes([match_boxes("a", [(1, lesion)], [(1, 0.9, near)], grid=grid)])
    assert precisions(found.rows) == pytest.approx([1.0] * 9 + [0.0] * 9)  # up to an IoU of a half
    drawn = np.zeros((20, 20), np.int32)
    drawn[2, 2:10] = drawn[2:10, 2] = 1  # an angle, whose box is a square
    plane = unit_grid(*drawn.shape)
    reference = Reference(plane, instances=drawn, instance_labels=(1,))
    prediction = predict_boxes(plane, (2, 2, 10, 10))
    result = evaluate_case(reference, prediction, PRESET, case="b")
    assert score_boxes([result])["box_ap_50_95"].value == pytest.approx(1.0)


def test_terminal_has_the_numbers_of_boxes_only_if_there_are_boxes():
    scores = score_boxes([match_boxes("a", [(1, LESION)], [(1, 0.9, FOUR_FIFTHS)])])
    masks = replace(scores, image_axes=(3,), rows=(*scores.rows, Estimate(0.5, name="dice")))
    for own, is_shown in ((scores, True), (masks, False)):
        names = [line[0] for line in scores_table({"role test": own})]
        assert any("box AP" in name for name in names) == is_shown


def test_interval_contains_the_value_and_repeated_patients_change_nothing():
    rng = np.random.default_rng(3)
    results = [random_case(rng, f"c{k}", n_scores=10**9)[2] for k in range(30)]
    scores = score_boxes(results, replicates=200)
    low, high = scores["box_ap_50"].ci95
    assert low < scores["box_ap_50"].value < high
    again = score_boxes([replace(r, case=f"{r.case}{k}") for r in results for k in range(2)])
    assert precisions(again.rows) == pytest.approx(precisions(scores.rows))


# --- pycocotools ---------------------------------------------------------------------------------


def random_box(rng):
    corner = rng.integers(0, (50, 80))
    return np.array([*corner, *(corner + rng.integers(2, 11, 2))], float)


def random_case(rng, name, n_scores=12):
    """Return the lesions, candidates and result of a random case.

    Boxes have whole corners and there are few different scores, so IoUs and scores are often equal.
    """
    lesions = [(int(rng.integers(1, 4)), random_box(rng)) for _ in range(rng.integers(0, 5))]
    drawn = [(int(rng.integers(1, 4)), random_box(rng)) for _ in range(rng.integers(0, 4))]
    for label, box in lesions:
        for _ in range(rng.integers(0, 3)):
            moved = np.maximum(box + rng.integers(-2, 3, 4), 0)
            moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
            drawn.append((label if rng.random() < 0.8 else int(rng.integers(1, 4)), moved))
    scores = (rng.integers(1, n_scores, len(drawn)) / n_scores).tolist()
    candidates = [
        (label, score, tuple(box.tolist()))
        for (label, box), score in zip(drawn, scores, strict=True)
    ]
    return lesions, candidates, match_boxes(name, lesions, candidates)


def to_coco(box):
    """Return [x, y, width, height] of a box (y, x, y, x)."""
    return [box[1], box[0], box[3] - box[1], box[2] - box[0]]


def precision_by_pycocotools(cases):
    """Return average precisions [ious, labels] of pycocotools, −1 without lesions of the label."""
    annotations = []
    rows = []
    for image, (lesions, _, result) in enumerate(cases, 1):
        for label, box in lesions:
            x, y, width, height = to_coco(box)
            own = {"id": len(annotations) + 1, "image_id": image, "category_id": label}
            size = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append(own | size)
        for candidate in result.candidates:
            row = {"image_id": image, "category_id": candidate.label, "score": candidate.score}
            rows.append({**row, "bbox": to_coco(box_of(candidate))})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": k} for k in range(1, len(cases) + 1)],
            "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        # in steps of a twentieth, from 0.5 on as COCO rounds them
        evaluation.params.iouThrs = np.array(
            [*(k / 20 for k in range(2, 10)), *np.linspace(0.5, 0.95, 10)]
        )
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=1)


@pytest.mark.parametrize("block", range(2))
def test_precision_of_random_sets_equals_pycocotools(block):
    rng = np.random.default_rng(block)
    for _ in range(12):  # 24 sets of 3 to 8 cases
        cases = [random_case(rng, f"c{k}") for k in range(rng.integers(3, 9))]
        expected = precision_by_pycocotools(cases)
        known = expected[0] >= 0
        found = score_boxes([c[2] for c in cases], labels=(1, 2, 3))
        for label, is_known in enumerate(known):
            if is_known:
                own = precisions(found.rows, str(label + 1))
                assert own == pytest.approx(expected[:, label], abs=1e-6)
        mean = expected[:, known].mean(axis=1)
        assert precisions(found.rows) == pytest.approx(mean, abs=1e-6)
        assert found["box_ap_50_95"].value == pytest.approx(mean[8:].mean(), abs=1e-6)
