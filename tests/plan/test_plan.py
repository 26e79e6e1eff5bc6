import json
from dataclasses import replace
from typing import Any

import pytest

from lesionseg.core import Calibration, OperatingPoint
from lesionseg.errors import BundleError, DatasetError
from lesionseg.plan.plan import AnchorPlan, ChannelSet, FocalLink, Plan

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
    with pytest.raises(
        BundleError, match=r"anchors\.merge is wrong.*Seen: soft\. Expected: wbc, nms"
    ):
        Plan.from_json(json.dumps(raw))


def test_an_unknown_score_of_a_candidate_is_refused(plan: Plan) -> None:
    raw = json.loads(plan.to_json())
    raw["candidate_rule"]["score"] = "median"
    with pytest.raises(
        BundleError, match=r"candidate_rule\.score is wrong.*median\. Expected: max, top, mean"
    ):
        Plan.from_json(json.dumps(raw))


def test_another_version_is_refused(plan: Plan) -> None:
    with pytest.raises(BundleError, match="schema_version 9"):
        Plan.from_json(plan.with_(schema_version=9).to_json())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("label_values", [0], r"label_values\[0\] is wrong.*Seen: 0\. Expected: 1 to 255"),
        ("label_names", ["a", "b"], r"label_names is wrong.*Seen: 2 entries\. Expected: 1"),
        ("candidate_rule.floor", float("nan"), r"candidate_rule\.floor is wrong.*a number"),
        ("spacing_mm", [1, 1, -1.5], r"spacing_mm\[2\] is wrong.*0.001 to 100"),
        ("spacing_mm", [1, 1], "spacing_mm is wrong.*2 entries"),
        ("modality", "xxx", "modality is wrong.*mri, ct, xray"),
        ("n_members", 10**9, "n_members is wrong.*1 to 1000"),
        ("n_members", -5, "n_members is wrong.*1 to 1000"),
        ("architecture.blocks", 10**7, r"architecture\.blocks is wrong.*1 to 100"),
        ("link", {"alpha": None, "gamma": 1e9}, r"link\.gamma is wrong.*0 to 100"),
        ("dims", "3", "dims is wrong.*an integer"),
        ("channel_names", "T1", "channel_names is wrong.*a list"),
        ("surprise", 1, "surprise is wrong.*unknown key"),
        ("architecture", [], "architecture is wrong.*an object with keys"),
    ],
)
def test_m2_a_value_out_of_range_is_named_by_its_key(
    plan: Plan, key: str, value: object, expected: str
) -> None:
    raw = json.loads(plan.to_json())
    *folders, name = key.split(".")
    inner = raw
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    with pytest.raises(BundleError, match=expected) as caught:
        Plan.from_json(json.dumps(raw), "a/plan.json")
    assert "(in a/plan.json)" in str(caught.value)
    assert "How to fix:" in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 200_000, "{}", "[]", "null", "", "{", '{"a": NaN}'])
def test_m2_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Plan.from_json(text)


def test_what_a_scan_may_lack_is_kept(plan: Plan) -> None:
    known = ChannelSet((1,), (OperatingPoint("fp_per_case:1", 0.25),))
    plan = replace(plan, **_three_channels(plan), channel_sets=(known, ChannelSet((0, 2))))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.without((1,)) == known
    assert plan.without(()).operating_points == plan.operating_points
    with pytest.raises(DatasetError, match=r"no C0.*it may lack C1 or C0, C2.*channel_dropout"):
        plan.without((0,))


@pytest.mark.parametrize("missing", [(), (3,), (0, 1, 2), (2, 0), (1, 1)])
def test_a_set_of_other_channels_is_refused(plan: Plan, missing: tuple[int, ...]) -> None:
    plan = replace(plan, **_three_channels(plan), channel_sets=(ChannelSet(missing),))
    with pytest.raises(BundleError, match=r"channel_sets\.missing is wrong.*some of the 3"):
        Plan.from_json(plan.to_json())


def _three_channels(plan: Plan) -> dict[str, Any]:
    return {"channel_names": ("C0", "C1", "C2"), "normalisation": plan.normalisation[:1] * 3}
