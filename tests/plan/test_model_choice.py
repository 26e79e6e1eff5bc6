"""The model follows from the kind of the references."""

from dataclasses import replace

import pytest

from lesionseg.config import ModelConfig
from lesionseg.plan import make_plan
from lesionseg.plan.model_choice import ReferenceKinds, choose_model
from tests.plan.conftest import take_fingerprint


@pytest.mark.parametrize(
    ("kinds", "model", "words"),
    [
        (ReferenceKinds(2, 9, n_boxed=9), "retinanet", "9 of 9 cases"),
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


@pytest.mark.parametrize(
    ("n_boxed", "asked", "model"), [(0, "", "unet"), (1, "", "retinanet"), (1, "unet", "unet")]
)
def test_a_plan_states_the_model_and_the_reason(dataset, cases, n_boxed, asked, model):
    statistics = replace(take_fingerprint(dataset, cases), n_boxed=n_boxed)
    overrides = ModelConfig.of(architecture=asked) if asked else None
    plan = make_plan(statistics, dataset, overrides=overrides, memory_gb=24, device="cpu")
    assert plan.architecture.name == model
    assert (plan.anchors is not None) == (model == "retinanet")
    assert ("model" in plan.reasons) == (not asked)
