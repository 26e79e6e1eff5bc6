"""The model follows from the kind of the references."""

from dataclasses import replace

import pytest

from lesionseg.config import ModelConfig, settings_of
from lesionseg.plan import make_plan
from lesionseg.plan.model_choice import ReferenceKinds, choose_model
from tests.plan.conftest import take_fingerprint


@pytest.mark.parametrize(
    ("kinds", "model", "words"),
    [
        (ReferenceKinds(2, 9, n_boxed=9), "retinanet", "9 of 9 cases with lesions have boxes"),
        (ReferenceKinds(3, 9, n_boxed=9), "retinanet", "boxes and no mask"),
        (ReferenceKinds(2, 9, n_boxed=1), "retinanet", "1 of 9 cases"),
        (ReferenceKinds(2, 9, n_outlines=40, n_box_outlines=38), "retina_unet", "38 of 40 masks"),
        (ReferenceKinds(2, 9, n_outlines=40, n_box_outlines=37), "unet", "masks"),
        (ReferenceKinds(2, 2, n_outlines=2, n_box_outlines=2), "unet", "masks"),  # too few
        (ReferenceKinds(2, 9), "unet", "masks"),
        (ReferenceKinds(3, 9, n_outlines=40, n_box_outlines=40), "unet", "masks"),
    ],
)
def test_boxes_and_outlines_of_boxes_need_a_detector(kinds, model, words):
    found = choose_model(kinds)
    assert found.value == model
    assert words in found.reason


def test_a_plan_states_the_model_and_the_reason(dataset, cases):
    taken = take_fingerprint(dataset, cases)
    plan = make_plan(taken, dataset, memory_gb=24, device="cpu")
    assert plan.architecture.name == "unet"
    assert plan.reasons["model"] == "unet, because the references are masks"
    boxed = make_plan(replace(taken, n_boxed=1), dataset, memory_gb=24, device="cpu")
    assert boxed.architecture.name == "retinanet"
    assert boxed.anchors is not None
    named = make_plan(
        replace(taken, n_boxed=1),
        dataset,
        overrides=ModelConfig.of(architecture="unet"),
        memory_gb=24,
        device="cpu",
    )
    assert named.architecture.name == "unet"
    assert "model" not in named.reasons


def test_each_model_can_be_set_from_python():
    for name in ("auto", "unet", "residual_unet", "retinanet", "retina_unet"):
        cfg = settings_of("train", {"model": name, "data.root": "x", "model.batch_size": 3})
        assert cfg.model.architecture == name
        assert cfg.model.batch_size == 3
    assert settings_of("train", {"data.root": "x"}).model.architecture == "auto"
