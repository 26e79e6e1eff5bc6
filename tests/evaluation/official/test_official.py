"""Scorers that no package index has, on cases worked out by hand and by plain loops."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Reference
from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.official import mask_challenges as masks
from lesionseg.evaluation.official import score_cases, score_intervals
from lesionseg.evaluation.scores import summarise
from lesionseg.evaluation.statistics.bootstrap import draw_groups, percentiles
from tests.evaluation.hand_cases import (
    HAND_CASES,
    draw,
    make_prediction,
    make_reference,
    prediction_of,
)
from tests.evaluation.random_cases import random_cases

OFFICIAL = [name for name, preset in PRESETS.items() if preset.official]


def judge(name, reference, prediction, scores=(), spacing=None, case="a"):
    lesions, found = draw(reference), draw(prediction)
    geometry = Geometry.from_spacing(lesions.shape, spacing or (1.0,) * lesions.ndim)
    scores = scores or (0.5,) * int(found.max())
    truth = Reference(geometry, labels=(lesions > 0).astype(np.uint8))
    return evaluate_case(truth, prediction_of(found, scores, geometry), PRESETS[name], case=case)


def values(name, *pair, **more):
    return score_cases(PRESETS[name].official, [judge(name, *pair, **more)]).values


# ---- LUNA16


def test_luna_hits_lie_within_the_radius_and_spare_marks_count_for_nothing():
    results = [
        judge("luna16", "111.... 111.... 111....", "12..... ....... .....33", (0.4, 0.9, 0.6)),
        judge("luna16", "....... ....... .......", "1...... ....... .......", (0.7,), case="b"),
    ]
    # mark 1 is 1.41 mm off, radius 1.69: hit; mark 2 (1 mm off) hits too and scores higher
    assert [x.detected_at for x in results[0].lesions] == [0.9]
    assert [c.outcome for c in results[0].candidates] == [
        "true_positive",
        "false_positive",
        "ignored",
    ]
    found = score_cases("luna16", results).values
    assert found["cpm"] == 1.0


def test_luna_interpolates_between_the_points_of_the_curve():
    lesion, far = "111.... 111.... 111....", "....... ....... ......."
    results = [
        judge("luna16", lesion, "1.....2 ....... .......", (0.4, 0.8)),
        judge("luna16", far, far, case="b"),
    ]
    found = score_cases("luna16", results).values
    # (0, 0), (0.5, 0), (0.5, 1) false positives per scan and sensitivity
    assert found["sensitivity_at_0.25_fp"] == 0.0
    assert found["sensitivity_at_0.5_fp"] == 1.0
    assert found["cpm"] == pytest.approx(5 / 7)


def test_a_missed_nodule_stays_in_luna_s_denominator():
    results = [judge("luna16", "111...22 111...22 111.....", "........ .1...... ........")]
    assert score_cases("luna16", results).values["cpm"] == 0.5


# ---- nnDetection


def test_nndetection_matches_boxes_from_the_top_score_and_spares_nothing():
    result = judge("nndetection", "111111 ......", "111222 ......", (0.6, 0.9))
    assert [c.outcome for c in result.candidates] == ["true_positive", "false_positive"]
    assert [x.detected_at for x in result.lesions] == [0.9]
    found = score_cases("nndetection", [result]).values
    # at IoU 0.1 the first box is right; at 0.5 too (exactly 0.5); precision 1 at recall 1
    assert (found["ap_0.1"], found["ap_0.5"]) == pytest.approx((1.0, 1.0))
    assert found["froc_0.1"] == 1.0


def test_nndetection_s_precision_falls_with_a_false_box_on_top():
    found = values("nndetection", "11..... .......", "11...22 .......", (0.3, 0.9))
    assert found["map"] == found["ap_0.1"] == pytest.approx(0.5)
    # the first half: nothing; from one false positive per case: all
    assert found["sensitivity_at_0.5_fp_0.1"] == 0.0
    assert found["sensitivity_at_1_fp_0.1"] == 1.0


# ---- ISLES'22, autoPET


def naive_components(mask, faces_only):
    """Components by flood filling, as sets of voxels."""
    left = {tuple(v) for v in np.argwhere(mask).tolist()}
    found = []
    while left:
        todo, part = [left.pop()], set()
        while todo:
            here = todo.pop()
            part.add(here)
            near = [v for v in left if _neighbours(v, here) <= faces_only]
            left -= set(near)
            todo += near
        found.append(part)
    return found


def _neighbours(a, b):
    """Along how many axes two voxels of one 3x3x3 block differ; 9 beyond."""
    apart = np.abs(np.subtract(a, b))
    return int(apart.sum()) if apart.max() == 1 else 9


@pytest.mark.parametrize("case", random_cases(25, 3, size=9), ids=lambda c: c.name)
def test_isles_and_autopet_by_plain_loops(case):
    reference, prediction = case.reference, case.instances > 0
    results = {
        n: evaluate_case(case.as_reference(), case.as_prediction(), PRESETS[n], case="a").official
        for n in ("isles22", "autopet")
    }
    lesions, found = naive_components(reference, 3), naive_components(prediction, 3)
    hit = sum(any(prediction[v] for v in x) for x in lesions)
    false = sum(not any(reference[v] for v in x) for x in found)
    total = hit + (false + len(lesions) - hit) / 2
    assert results["isles22"]["lesion_f1"] == pytest.approx(hit / total if total else 1.0)
    assert results["isles22"]["lesion_count_difference"] == abs(len(lesions) - len(found))
    ml = np.prod(case.spacing_mm) / 1000
    difference = abs(int(reference.sum()) - int(prediction.sum())) * ml
    assert results["isles22"]["volume_difference_ml"] == pytest.approx(difference)
    alone = [len(x) for x in naive_components(prediction, 2) if not any(reference[v] for v in x)]
    assert results["autopet"]["false_positive_volume_ml"] == pytest.approx(sum(alone) * ml)
    lost = [len(x) for x in naive_components(reference, 2) if not any(prediction[v] for v in x)]
    expected = pytest.approx(sum(lost) * ml) if reference.any() else None
    assert results["autopet"]["false_negative_volume_ml"] == expected


def test_isles_without_anything_is_perfect():
    assert values("isles22", "... ...", "... ...")["lesion_f1"] == 1.0
    assert values("isles22", "... ...", "... ...")["dice"] == 1.0
    assert values("isles22", "... ...", "1.. ...")["lesion_f1"] == 0.0


def test_autopet_without_lesions_counts_false_volume_alone():
    found = values("autopet", "..|..", "1.|..", spacing=(10.0, 10.0, 10.0))
    expected = {"dice": None, "false_positive_volume_ml": 1.0, "false_negative_volume_ml": None}
    assert found == pytest.approx(expected)


# ---- MSSEG (Anima)


def slab(text):
    """A case of two axes as a volume of one slice."""
    return text + "|" + " ".join("." * len(row) for row in text.split())


@pytest.mark.parametrize(
    ("sentence", "reference", "prediction", "recall", "ppv"),
    [
        ("a copy", "1111..", "1111..", 1.0, 1.0),
        ("3 mm3 are too few", "111...", "111...", None, None),
        (
            "components touch by faces only",
            "11...... 11...... ..11.... ..11....",
            "11...... 11...... ........ ........",
            0.5,
            1.0,
        ),
        ("covered by exactly a tenth: too little", "1111111111....", "1.............", 0.0, None),
        (
            "outside by exactly 0.7: still inside",
            "11111111.......",
            ".....1111111111",
            1.0,
            1.0,
        ),
        ("mostly outside", "11111111.........", "......11111111111", 0.0, 0.0),
    ],
)
def test_anima_by_hand(sentence, reference, prediction, recall, ppv):
    found = values("msseg", slab(reference.strip()), slab(prediction.strip()))
    assert (found["lesion_recall"], found["lesion_ppv"]) == (recall, ppv), sentence


# ---- BraTS 2023


def brats(reference, prediction, dilations, min_mm3):
    pair = masks.MaskPair(draw(reference) > 0, draw(prediction) > 0, (1.0,) * 3, 1.0)
    return masks.brats_case(pair, dilations, min_mm3)


def test_brats_lesions_whose_dilations_touch_are_one():
    near, far = slab("11..11"), slab("11...........11")
    one = brats(near, slab("11...."), 1, 0)
    assert (one["n_true_positive"], one["n_false_negative"]) == (1, 0)
    assert one["lesion_wise_dice"] == pytest.approx(2 * 2 / 6)
    two = brats(far, slab("11............."), 1, 0)
    assert (two["n_true_positive"], two["n_false_negative"]) == (1, 1)
    assert two["lesion_wise_dice"] == 0.5
    assert two["lesion_wise_hd95_mm"] == 374 / 2


def test_brats_components_within_the_dilated_lesion_are_its_own():
    beside = brats(slab("11......"), slab("..11...."), 1, 0)
    assert (beside["n_true_positive"], beside["n_false_positive"]) == (1, 0)
    assert beside["lesion_wise_dice"] == 0.0
    away = brats(slab("11......"), slab(".....11."), 1, 0)
    assert (away["n_true_positive"], away["n_false_positive"]) == (0, 1)
    assert away["lesion_wise_hd95_mm"] == 374


def test_brats_small_lesions_do_not_count_but_what_finds_them_is_not_false():
    small = brats(slab("11....."), slab("11....."), 1, 2)
    assert small["lesion_wise_dice"] == 1.0
    assert small["lesion_wise_hd95_mm"] == 0.0
    assert (small["n_true_positive"], small["n_false_positive"]) == (0, 0)


# ---- all of them


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_preset_judges_every_hand_case(name):
    results = [
        evaluate_case(make_reference(c), make_prediction(c), PRESETS[name], case=c.name)
        for c in HAND_CASES
    ]
    scores = summarise(results, PRESETS[name], evaluated_on="test", replicates=10)
    assert scores["official"]["scorer"] == PRESETS[name].official
    assert all(v is None or np.isfinite(v) for v in scores["official"]["values"].values())
    assert len(scores["official"]["values"]) >= 3


@pytest.mark.parametrize("name", OFFICIAL)
def test_boxes_or_masks_without_what_the_scorer_needs_give_a_reason(name):
    case = HAND_CASES[0]
    bare = make_prediction(case)
    bare = type(bare)("a", bare.geometry, bare.candidates, None, scored=False)
    result = evaluate_case(make_reference(case), bare, PRESETS[name], case="a")
    found = summarise([result], PRESETS[name], evaluated_on="test", replicates=0)["official"]
    assert found["values"] == {}
    assert found["reason"]


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.official])
def test_official_numbers_have_intervals_around_them(name):
    cases = random_cases(24, 5, dims=2 if name == "coco" else 3)
    results = [
        evaluate_case(
            c.as_reference(), c.as_prediction(), PRESETS[name], case=c.name, group=f"g{i % 9}"
        )
        for i, c in enumerate(cases)
    ]
    found = summarise(results, PRESETS[name], evaluated_on="test", replicates=60)["official"]
    assert found["values"].keys() == found["ci95"].keys()
    known = {k: v for k, v in found["ci95"].items() if v is not None}
    assert known
    for key, (low, high) in known.items():
        assert low <= found["values"][key] <= high
    few = summarise(results[:4], PRESETS[name], evaluated_on="test", replicates=60)["official"]
    assert set(few["ci95"].values()) == {None}
    assert few["reason"]


def test_an_interval_is_that_of_the_cases_drawn_again():
    cases = random_cases(12, 8)
    preset = PRESETS["isles22"]
    results = [
        evaluate_case(c.as_reference(), c.as_prediction(), preset, case=c.name) for c in cases
    ]
    weights = draw_groups(12, 40, np.random.default_rng(0))
    found = score_intervals("isles22", results, weights)["dice"]
    dice = np.array([r.official["dice"] for r in results])
    means = weights @ dice / 12
    assert found.ci95[0] == pytest.approx(percentiles(means, 12).ci95[0])
    assert found.ci95[1] == pytest.approx(percentiles(means, 12).ci95[1])
