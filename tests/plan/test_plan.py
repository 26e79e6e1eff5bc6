import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lesionseg.core import Labels, Selection
from lesionseg.errors import BundleError
from lesionseg.plan.plan import AnchorPlan, FocalCorrection, Plan

ANCHORS = AnchorPlan(stages=(1,), sizes=(((3.0, 3.0, 3.0),),))


def test_json_round_trip_keeps_the_plan(plan):
    full = plan.with_(
        link=FocalCorrection((0.25, 0.5), 2.0),
        reasons={"spacing": "as measured"},
    )
    assert Plan.from_json(full.to_json()) == full


@pytest.mark.parametrize(
    ("name", "anchors", "source", "heads"),
    [
        ("unet", None, "segmentation", (True, False)),
        ("retinanet", ANCHORS, "detection", (False, True)),
        ("retina_unet", ANCHORS, "both", (True, True)),
        ("retina_unet", ANCHORS, "detection", (True, True)),  # it always has a head for voxels
        ("mine", None, "segmentation", (True, False)),
        ("mine", ANCHORS, "both", (True, True)),
        ("mine", ANCHORS, "detection", (False, True)),  # a user's own detector
    ],
)
def test_heads_follow_from_name_anchors_and_candidate_source(plan, name, anchors, source, heads):
    named = plan.with_(
        architecture=replace(plan.architecture, name=name),
        anchors=anchors,
        candidate_rule=replace(plan.candidate_rule, source=source),
    )
    assert (named.has_voxels, named.has_boxes) == heads
    assert named.n_voxel_channels == len(plan.labels) * heads[0]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("schema_version", 9, "schema_version: 9"),
        ("label_values", [0], r"label_values\[0\]: 0"),
        ("label_names", ["a", "b"], "label_names does not fit"),
        ("regions", [[1, "x"]], r"regions\[0\]\[1\]: x"),
        ("candidate_rule.floor", float("nan"), r"candidate_rule\.floor: nan"),
        ("spacing_mm", [1, 1, -1.5], r"spacing_mm\[2\]: -1\.5"),
        ("spacing_mm", [1, 1], "spacing_mm or tile_shape does not fit"),
        ("modality", "xxx", "modality: xxx.*'mri', 'ct', 'xray' or 'colour'"),
        ("architecture.blocks", 10**7, r"architecture\.blocks: 10000000"),
        ("architecture.kernels", [[3, 3, 3]], r"architecture\.strides or kernels does not fit"),
        ("architecture.strides", [[1, 1]] * 3, r"architecture\.strides or kernels does not fit"),
        ("architecture.encoder_blocks", [1] * 9, r"architecture\.encoder_blocks does not fit"),
        ("lesion_fraction", 0, "lesion_fraction: 0"),
        ("link", {"alpha": None, "gamma": 1e9}, r"link\.gamma: "),
        ("dims", "many", "dims: many"),
        ("channel_names", "T1", "channel_names: T1"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_key(plan, key, value, expected):
    raw = inner = json.loads(plan.to_json())
    *folders, name = key.split(".")
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    with pytest.raises(BundleError, match=f"^a/plan.json: {expected}"):
        Plan.from_json(json.dumps(raw), "a/plan.json")


def test_plan_of_an_old_bundle_is_read_and_keeps_its_keys():
    file = Path(__file__).with_name("plan_schema_1.json")
    text = file.read_text("utf-8")
    plan = Plan.from_json(text, file)
    assert plan.labels == Labels((1, 2), ("whole tumor", "core"), regions=((1, 2), (2,)))
    assert set(plan.reasons) >= {"spacing_mm", "tile_shape"}
    assert not set(plan.reasons) & {"operating point", "calibration", "voxel calibration"}
    before = json.loads(text)
    after = json.loads(plan.to_json())
    for scheme in after["normalisation"]:
        assert scheme.pop("sigma") == 0  # not in that version
    same = (key for key in after if key not in ("reasons", "schema_version"))
    assert [key for key in same if before.get(key, after[key]) != after[key]] == []
    selection = Selection.from_json(text)
    assert (selection.n_members, len(selection.operating_points)) == (1, 9)
    assert before["voxel_calibration"].items() >= asdict(selection.voxel_calibration).items()
    kept = {*after, *json.loads(selection.to_json())}
    assert set(before) - kept == {"compressed"}


def test_differences_name_only_decisions_that_prevent_an_ensemble(plan):
    renamed = replace(plan.labels, names=("another name",))
    own = plan.with_(batch_size=plan.batch_size + 1, may_lack=True, reasons={}, labels=renamed)
    assert plan.differences(own) == []
    valued = replace(plan.labels, values=(7,))
    other = own.with_(spacing_mm=(9.0, 9.0, 9.0), anchors=ANCHORS, labels=valued)
    assert plan.differences(other) == ["labels", "spacing_mm", "anchors"]


@pytest.mark.parametrize("text", ["[" * 200_000, "{}", "[]", "null", "", "{", '{"a": NaN}'])
def test_invalid_plan_is_refused(text):
    with pytest.raises(BundleError, match=r"plan\.json"):
        Plan.from_json(text)
