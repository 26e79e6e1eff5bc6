"""Targets of a detector: positives, ignored anchors, loss terms, and cropped boxes."""

import math
from dataclasses import replace

import pytest
import torch

from lesionseg.config import DetectionConfig, LossConfig
from lesionseg.losses import FocalLoss
from lesionseg.models.build import build_network
from lesionseg.pipeline.planning import with_focal_correction
from lesionseg.plan.plan import AnchorPlan
from lesionseg.training.callbacks import P_NAME, FocalStatistics
from lesionseg.training.objective import make_objective
from tests.models.plans import plan_of


def make_detector_plan(name="retinanet", dims=2):
    sizes = (((4.0,) * dims, (6.0,) * dims),)
    anchors = AnchorPlan(stages=(1,), sizes=sizes, width=8, depth=1)
    strides = ((1,) * dims, (2,) * dims)
    table = {"n_supervised": 1}
    return plan_of(name, dims, strides=strides, labels=("a", "b"), table=table, anchors=anchors)


def objective_for(plan):
    return make_objective(plan, FocalLoss(), DetectionConfig.of())


def make_two_tiles(dims=2):
    """Make two tiles. The first has lesion 7 of label 2 and lesion 3 of label 1."""
    shape = (2, *(16,) * dims)
    instances = torch.zeros(shape, dtype=torch.int32)
    instances[0][(slice(4, 8),) * dims] = 7
    instances[0][(slice(10, 14),) * dims] = 3
    labels = (2 * (instances == 7) + (instances == 3)).to(torch.uint8)
    valid = torch.ones(shape, dtype=torch.bool)
    image = torch.randn(shape)[:, None]
    return {"image": image, "labels": labels, "instances": instances, "valid": valid}


def test_every_lesion_has_positive_anchors_with_its_label_and_box():
    targets = objective_for(make_detector_plan()).targets(make_two_tiles())
    anchors = targets.anchors
    assert [set(labels.tolist()) for labels in anchors.labels] == [{0, 1, 2}, {0}]
    positive = anchors.labels[0] > 0
    assert len(anchors.boxes) == positive.sum() == targets.counts()[0]
    of_seven = anchors.boxes[anchors.labels[0][positive] == 2]
    assert of_seven.unique(dim=0).tolist() == [[4, 4, 8, 8]]


def test_invalid_voxels_and_lesions_are_left_out_of_the_targets():
    batch = make_two_tiles()
    batch["valid"][:, :, 8:] = False  # hides lesion 3
    targets = objective_for(make_detector_plan()).targets(batch).anchors
    assert set(targets.labels[0].tolist()) == {0, 2}
    assert targets.valid[0][targets.labels[0] > 0].all()
    # two anchors per cell, 8 x 8 cells; the right half is invalid
    assert targets.valid[1].sum() == 64


@pytest.mark.parametrize("name", ["retinanet", "retina_unet"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("free", [False, True])
def test_terms_are_finite_and_every_weight_gets_a_gradient(name, dims, free):
    plan = make_detector_plan(name, dims)
    network = build_network(plan)
    objective = objective_for(plan)
    batch = make_two_tiles(dims)
    if free:
        batch["labels"].zero_()
        batch["instances"].zero_()
    normalisers = torch.tensor(objective.expected_positives(2))
    terms = objective.terms(network(batch["image"]), objective.targets(batch), normalisers)
    assert {"anchors", "boxes"} <= terms.keys()
    assert (len(terms) > 2) == (name == "retina_unet")
    torch.stack(list(terms.values())).sum().backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_plan_stores_the_focal_correction_for_inference():
    detection = DetectionConfig.of(alpha=0.3, gamma=1.5)
    plan = with_focal_correction(make_detector_plan(), LossConfig.of(), detection)
    assert (plan.anchors.alpha, plan.anchors.gamma) == (0.3, 1.5)
    assert type(plan).from_json(plan.to_json()) == plan


def test_unannotated_label_of_a_tile_gives_no_gradient():
    plan = make_detector_plan("retina_unet")
    batch = make_two_tiles()
    objective = objective_for(plan)
    batch["labels"][batch["labels"] == 2] = 0
    batch["instances"][batch["instances"] == 7] = 0
    output = build_network(plan)(batch["image"])
    for tensor in (output.class_logits, *output.segmentation):
        tensor.retain_grad()
    known = objective.mask_unannotated(output, torch.tensor([[False, True], [False, False]]))
    normalisers = torch.tensor(objective.expected_positives(2))
    terms = objective.terms(known, objective.targets(batch), normalisers)
    torch.stack(list(terms.values())).sum().backward()
    of_anchors = output.class_logits.grad.any(1)
    assert of_anchors.tolist()[0] == [True, False]
    assert of_anchors[1].any()
    assert output.segmentation[0].grad.flatten(2).any(2).tolist()[0] == [True, False]


@pytest.mark.parametrize(("name", "expected"), [("retinanet", 0.1), ("retina_unet", 0.5)])
def test_probability_in_lesions_of_anchors_is_independent_of_a_softmax_over_voxels(name, expected):
    """Anchors have p = 0.1 by a sigmoid. Voxels have p = (1 + 1) / (2 + 1 + 1) by a softmax."""
    plan = make_detector_plan(name).with_(activation="softmax")
    objective = make_objective(plan, FocalLoss(activation="softmax"), DetectionConfig.of())
    batch = make_two_tiles()
    output = build_network(plan)(batch["image"])
    voxels = []
    for logits in output.segmentation:
        equal = torch.zeros_like(logits)
        equal[:, 0] = math.log(2)
        voxels.append(equal)
    anchors = torch.full_like(output.class_logits, math.log(0.1 / 0.9))
    output = replace(output, class_logits=anchors, segmentation=tuple(voxels))
    statistics = FocalStatistics()
    statistics.observe(objective.finest_logits(output, objective.targets(batch)))
    assert statistics.latest()[P_NAME] == pytest.approx(expected)
