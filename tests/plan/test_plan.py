import json
from dataclasses import replace

import pytest

from lesionseg.core import Calibration, OperatingPoint
from lesionseg.errors import BundleError
from lesionseg.plan.anchor_plan import AnchorPlan
from lesionseg.plan.plan import FocalLink, Plan

ANCHORS = AnchorPlan(stages=(1,), sizes=(((3.0, 3.0, 3.0),),))
POINT = OperatingPoint(
    "fp_per_case:1",
    0.3,
    "out-of-fold",
    lesion_recall=0.8,
    false_positives_per_case=0.9,
    lesion_recall_ci95=(0.7, 0.9),
    expected_recall=0.75,
    expected_false_positives_per_case=1.1,
    attainable_recall=0.95,
)


def test_a_plan_read_back_is_the_plan_written(plan: Plan) -> None:
    full = plan.with_(
        operating_points=(POINT,),
        calibration=Calibration("isotonic", knots=(-1.0, 2.0), probabilities=(0.1, 0.9), n_true=3),
        link=FocalLink((0.25, 0.5), 2.0),
        n_members=5,
        reasons={"spacing": "as measured"},
    )
    assert Plan.from_json(full.to_json()) == full


def test_a_plan_written_before_these_decisions_existed_can_still_be_read(plan: Plan) -> None:
    points = (OperatingPoint("score:0.5", 0.5),)
    raw = json.loads(plan.with_(operating_points=points, anchors=ANCHORS).to_json())
    for key in ("calibration", "n_members"):
        del raw[key]
    del (
        raw["candidate_rule"]["min_diameter_mm"],
        raw["candidate_rule"]["score"],
        raw["candidate_rule"]["join"],
        raw["anchors"]["merge"],
    )
    raw["operating_points"] = [
        {k: raw["operating_points"][0][k] for k in ("name", "score", "chosen_on")}
    ]
    old = Plan.from_json(json.dumps(raw))
    assert (old.calibration, old.n_members, old.candidate_rule.min_diameter_mm) == (None, 1, 0.0)
    assert old.operating_points[0].expected_recall is None
    assert old.anchors == ANCHORS
    assert old.candidate_rule.join == 1  # its operating points were chosen on unjoined candidates
    assert old.candidate_rule.score == "max"
    assert ANCHORS.merge == "wbc"


@pytest.mark.parametrize(
    ("name", "anchors", "source", "heads"),
    [
        ("unet", None, "segmentation", (True, False)),
        ("retinanet", ANCHORS, "detection", (False, True)),
        ("retina_unet", ANCHORS, "both", (True, True)),
        ("retina_unet", ANCHORS, "detection", (True, True)),  # it has voxels, wanted or not
        ("mine", None, "segmentation", (True, False)),
        ("mine", ANCHORS, "both", (True, True)),
        ("mine", ANCHORS, "detection", (False, True)),  # a detector of somebody's own
    ],
)
def test_which_heads_a_network_has(plan: Plan, name, anchors, source, heads) -> None:
    named = plan.with_(
        architecture=replace(plan.architecture, name=name),
        anchors=anchors,
        candidate_rule=replace(plan.candidate_rule, source=source),
    )
    assert (named.has_voxels, named.has_boxes) == heads
    assert named.n_voxel_channels == len(plan.label_values) * heads[0]


def test_an_unknown_way_to_merge_boxes_is_refused(plan: Plan) -> None:
    raw = json.loads(plan.with_(anchors=replace(ANCHORS, merge="nms")).to_json())
    assert Plan.from_json(json.dumps(raw)).anchors == replace(ANCHORS, merge="nms")
    raw["anchors"]["merge"] = "soft"
    with pytest.raises(BundleError, match="merge boxes: soft"):
        Plan.from_json(json.dumps(raw))


def test_an_unknown_score_of_a_candidate_is_refused(plan: Plan) -> None:
    raw = json.loads(plan.to_json())
    raw["candidate_rule"]["score"] = "median"
    with pytest.raises(BundleError, match="score of a candidate: median"):
        Plan.from_json(json.dumps(raw))


def test_another_version_is_refused(plan: Plan) -> None:
    with pytest.raises(BundleError, match="schema_version 9"):
        Plan.from_json(plan.with_(schema_version=9).to_json())
