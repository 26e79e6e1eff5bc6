"""A whole plan: reasoned, repeatable, and bent only by what somebody asks for."""

from contextlib import nullcontext
from dataclasses import replace
from math import prod

import pytest

from lesionseg.config import ModelConfig
from lesionseg.core import Case, Dataset, LabelRegion
from lesionseg.errors import ConfigError
from lesionseg.plan import Fingerprint, Plan, make_plan
from tests.plan.conftest import take_fingerprint


@pytest.fixture
def fingerprint(dataset: Dataset, cases: list[Case]) -> Fingerprint:
    taken = take_fingerprint(dataset, cases)
    return replace(taken, shapes=((160, 190, 160),) * 3, spacings_mm=((1.0, 1.0, 1.0),) * 3)


def plan_of(fingerprint: Fingerprint, dataset: Dataset, **overrides) -> Plan:
    return make_plan(
        fingerprint, dataset, memory_gb=16, device="cpu", overrides=ModelConfig.of(**overrides)
    )


def test_regions_are_channels_of_mask_values(fingerprint: Fingerprint, dataset: Dataset):
    regions = (LabelRegion("whole", (1, 4, 9), 1), LabelRegion("core", (4, 9), 9))
    plan = plan_of(fingerprint, replace(dataset, regions=regions))
    assert (plan.label_values, plan.label_names) == ((1, 9), ("whole", "core"))
    assert plan.regions == ((1, 4, 9), (4, 9))
    assert plan.mask_values == (1, 4, 9)
    assert plan.label_regions == ((1, 2, 3), (2, 3))
    assert plan.lesion_labels == {1: "lesion"}
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(ConfigError, match="regions overlap"):
        plan_of(fingerprint, replace(dataset, regions=regions), activation="softmax")


def test_the_same_fingerprint_gives_the_same_plan(fingerprint: Fingerprint, dataset: Dataset):
    again = Fingerprint.from_json(fingerprint.to_json())
    plan = plan_of(fingerprint, dataset)
    assert plan_of(again, dataset) == plan
    assert Plan.from_json(plan.to_json()) == plan


def step_gb(plan: Plan) -> float:
    """What a step of a plan takes, made up."""
    return 3 + 34e-9 * plan.architecture.features[0] * plan.batch_size * prod(plan.tile_shape)


def test_a_detector_has_large_heads_on_a_gpu_alone(fingerprint: Fingerprint, dataset: Dataset):
    chosen = ModelConfig.of(architecture="retinanet")
    gpu = make_plan(
        fingerprint, dataset, memory_gb=12, device="cuda", overrides=chosen, step_memory=step_gb
    )
    cpu = plan_of(fingerprint, dataset, architecture="retinanet")
    assert gpu.anchors is not None
    assert cpu.anchors is not None
    assert (gpu.anchors.width, gpu.anchors.depth) == (128, 4)
    assert (cpu.anchors.width, cpu.anchors.depth) == (32, 1)


def test_overrides_win_and_are_said(fingerprint: Fingerprint, dataset: Dataset):
    plan = plan_of(
        fingerprint, dataset, spacing_mm=[2, 1, 1], tile_shape=[32, 48, 48], batch_size=3,
        base_features=8, activation="softmax", architecture="mine",
    )  # fmt: skip
    assert plan.spacing_mm == (2.0, 1.0, 1.0)
    assert plan.tile_shape == (32, 48, 48)
    assert (plan.batch_size, plan.activation) == (3, "softmax")
    assert plan.architecture.name == "mine"
    assert plan.architecture.features == (8, 16, 32, 64, 64)  # z, the coarse axis, halves last
    by_hand = [name for name, reason in plan.reasons.items() if reason == "chosen by hand"]
    assert by_hand == ["spacing_mm", "tile_shape", "batch_size"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"tile_shape": [64, 64]}, "wrong number of axes"),
        ({"spacing_mm": [1.0, 1.0]}, "wrong number of axes"),
        ({"tile_shape": [63, 63, 63]}, "cannot be halved"),
    ],
)
def test_refuses_what_does_not_fit(
    fingerprint: Fingerprint, dataset: Dataset, overrides: dict, words: str
):
    with pytest.raises(ConfigError, match=words):
        plan_of(fingerprint, dataset, **overrides)


def test_a_plan_follows_the_one_whose_weights_training_starts_from(
    fingerprint: Fingerprint, dataset: Dataset
):
    before = plan_of(fingerprint, dataset, spacing_mm=(2.0, 1.0, 1.0), tile_shape=(32, 64, 64))
    after = make_plan(
        fingerprint, dataset, memory_gb=24, device="cuda", before=before, step_memory=step_gb
    )
    for name in ("spacing_mm", "normalisation", "tile_shape", "architecture"):
        assert getattr(after, name) == getattr(before, name)
        assert "that training starts from" in after.reasons[name]
    detector = make_plan(
        fingerprint,
        dataset,
        memory_gb=24,
        device="cuda",
        overrides=ModelConfig.of(architecture="retina_unet", tile_shape=(64, 64, 64)),
        before=before,
        step_memory=step_gb,
    )
    assert detector.architecture == replace(before.architecture, name="retina_unet")
    assert detector.tile_shape == (64, 64, 64)
    assert detector.anchors is not None


def test_nnunets_layout_supervises_all_but_the_two_coarsest_stages(
    fingerprint: Fingerprint, dataset: Dataset
):
    ours, theirs = (
        plan_of(fingerprint, dataset, layout=layout, tile_shape=(128, 128, 128)).architecture
        for layout in (None, "nnunet")
    )
    assert (len(ours.features), ours.n_supervised, theirs.n_supervised) == (6, 3, 4)
    assert replace(theirs, layout="lesionseg", n_supervised=3) == ours


@pytest.mark.parametrize(
    ("change", "overrides", "says"),
    [
        ({"dims": 2}, {}, "another number of axes"),
        ({"modality": "ct"}, {}, r"another modality: ct, here mri"),
        ({"channel_names": ("a", "b", "c")}, {}, "another number of channels"),
        ({}, {"architecture": "mine"}, "another kind of backbone"),
        ({}, {"spacing_mm": (3.0, 3.0, 3.0)}, r"model\.spacing_mm="),
        ({}, {"base_features": 99}, r"model\.base_features=99"),
        ({}, {"layout": "nnunet"}, r"model\.layout=nnunet"),
        ({}, {"tile_shape": (20, 20, 20)}, "multiples of"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(
    fingerprint: Fingerprint, dataset: Dataset, change: dict, overrides: dict, says: str
):
    before = plan_of(fingerprint, dataset).with_(**change)
    with pytest.raises(ConfigError, match=says):
        make_plan(
            fingerprint,
            dataset,
            memory_gb=16,
            device="cpu",
            overrides=ModelConfig.of(**overrides),
            before=before,
        )


@pytest.mark.parametrize(
    ("before", "here", "refused", "warned"),
    [
        (("T1", "FLAIR"), ("FLAIR", "T1"), True, False),
        (("T1", "FLAIR"), ("flair", "T2"), True, False),
        (("T1", "FLAIR"), ("t1 ", "Flair"), False, False),
        (("T1", "FLAIR"), ("T1", "T2"), False, True),
    ],
)
def test_channels_go_over_by_their_place(
    fingerprint: Fingerprint, dataset: Dataset, caplog, before, here, refused: bool, warned: bool
):
    theirs = plan_of(fingerprint, dataset).with_(channel_names=before)
    data = replace(dataset, channel_names=here)
    with pytest.raises(ConfigError, match="another order") if refused else nullcontext():
        make_plan(fingerprint, data, memory_gb=16, device="cpu", before=theirs)
    assert ("T1, FLAIR in the bundle, T1, T2 here" in caplog.text) == warned
