"""Our numbers under official presets and those of the official packages, on the same masks."""

import json

import numpy as np
import pytest

from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.official import score_cases
from lesionseg.evaluation.scores import summarise
from tests.evaluation.peers.freeze import GOLD, PEERS, peer_scores, program_scores
from tests.evaluation.random_cases import random_cases

COCO_NAMES = (
    *("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l"),
    *("ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l"),
)


def judged(cases, name):
    return [
        evaluate_case(c.as_reference(), c.as_prediction(), PRESETS[name], case=c.name)
        for c in cases
    ]


def check(cases, expected):
    check_picai(cases, expected["picai"])
    for name in ("panoptica", "surface_distance"):
        for case in cases:
            check_case(case, name, expected[name][case.name])


def check_picai(cases, expected):
    results = judged(cases, "picai")
    assert score_cases("picai", results).values == pytest.approx(expected)
    scores = summarise(results, PRESETS["picai"], evaluated_on="test", replicates=0)
    assert scores["average_precision"] == pytest.approx(expected["average_precision"])
    assert scores["case_auroc"] == pytest.approx(expected["auroc"])
    assert scores["official"]["values"] == pytest.approx(expected)


def check_case(case, name, expected):
    if name == "panoptica":
        found = judged([case], "panoptica")[0].official
    else:
        result = judged([case], "lesionseg")[0]
        found = {"surface_dice_1mm": result.surface_dice, "hd95_mm": result.hd95_mm}
        if expected["hd95_mm"] is None:
            assert result.hd95_mm is None
            return
    for key, value in expected.items():
        assert found[key] == (None if value is None else pytest.approx(value)), (case.name, key)


def test_frozen_numbers_of_the_official_packages():
    gold = json.loads(GOLD.read_text())
    check(random_cases(**gold["cases"]), gold)


def check_programs(cases, expected):
    for name, numbers in expected.items():
        results = judged(cases, name)
        if name in ("luna16", "nndetection"):
            assert score_cases(name, results).values == pytest.approx(numbers), name
            continue
        for result in results:
            for key, value in numbers[result.case].items():
                same = None if value is None else pytest.approx(value)
                assert result.official[key] == same, (name, result.case, key)


def test_frozen_numbers_of_the_challenges_own_programs():
    gold = json.loads(GOLD.read_text())
    check_programs(random_cases(**gold["program_cases"]), gold["programs"])
    held = {preset.official for preset in PRESETS.values() if preset.peer and preset.official}
    assert {*gold["programs"], "picai", "panoptica", "coco"} == held


@pytest.mark.bench
@pytest.mark.skipif(not PEERS.is_file(), reason="make peers")
def test_the_challenges_own_programs():
    cases = random_cases(50, 3, size=20)
    check_programs(cases, program_scores(cases))


@pytest.mark.bench
@pytest.mark.skipif(not PEERS.is_file(), reason="make peers")
@pytest.mark.parametrize("seed", range(5))
def test_the_official_packages_themselves(seed):
    cases = random_cases(80, seed)
    check(cases, peer_scores(cases))


def coco_of(cases):
    """The cases as COCO's own evaluation takes them."""
    images, lesions, boxes = [], [], []
    for i, case in enumerate(cases, start=1):
        images.append({"id": i})
        result = judged([case], "coco")[0]
        for lesion in result.lesions:
            entry = {"image_id": i, "category_id": 1, "iscrowd": 0, "area": lesion.voxels}
            lesions.append({"id": len(lesions) + 1, "bbox": _bbox(lesion), **entry})
        boxes += [
            {"image_id": i, "category_id": 1, "bbox": _bbox(c), "score": c.score}
            for c in result.candidates
        ]
    return {"images": images, "annotations": lesions, "categories": [{"id": 1}]}, boxes


def _bbox(item):
    (y, x), (y2, x2) = item.start_vox, item.stop_vox
    return [x, y, x2 - x, y2 - y]


@pytest.mark.parametrize("seed", range(4))
def test_pycocotools(seed, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    cases = random_cases(50, seed, dims=2, size=60 if seed % 2 else 18)
    reference, boxes = coco_of(cases)
    dataset = COCO()
    dataset.dataset = reference
    dataset.createIndex()
    peer = COCOeval(dataset, dataset.loadRes(boxes), "bbox")
    peer.evaluate()
    peer.accumulate()
    peer.summarize()
    found = score_cases("coco", judged(cases, "coco")).values
    names = COCO_NAMES
    theirs = {n: None if v < 0 else v for n, v in zip(names, peer.stats.tolist(), strict=True)}
    for name in names:
        value = theirs[name]
        assert found[name] == (None if value is None else pytest.approx(value)), name


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_monai_metrics():
    import torch
    from monai.metrics import compute_dice, compute_iou, compute_surface_dice

    for case in random_cases(40, 5):
        result = judged([case], "lesionseg")[0]
        masks = [
            torch.from_numpy(np.asarray(m))[None, None].float()
            for m in (case.instances > 0, case.reference)
        ]
        if not case.reference.any() or not case.scores:
            continue
        assert result.dice == pytest.approx(compute_dice(*masks).item(), abs=1e-6)
        counts = result.counts[0]
        union = counts.reference + counts.predicted - counts.shared
        assert counts.shared / union == pytest.approx(compute_iou(*masks).item(), abs=1e-6)
        theirs = compute_surface_dice(
            *masks,
            [1.0],
            include_background=True,
            spacing=list(case.spacing_mm),
            use_subvoxels=True,
        )
        assert result.surface_dice == pytest.approx(theirs.item(), abs=1e-5)
