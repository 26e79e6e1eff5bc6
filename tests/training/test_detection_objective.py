"""What a detector is taught: positives, ignored anchors, parts, and boxes after cutting."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lesionseg.config import TrainConfig
from lesionseg.losses import FocalLoss
from lesionseg.models.build import build_network
from lesionseg.pipeline.train import with_focal_correction
from lesionseg.plan.plan import AnchorPlan, Architecture, Normalisation, Plan
from lesionseg.training.objective import Objective, make_objective


def _plan(name: str, dims: int = 2) -> Plan:
    strides = ((1,) * dims, (2,) * dims)
    return Plan(
        dims=dims,
        modality="mri",
        channel_names=("a",),
        label_values=(1, 2),
        label_names=("a", "b"),
        spacing_mm=(1.0,) * dims,
        normalisation=(Normalisation("zscore"),),
        tile_shape=(16,) * dims,
        batch_size=2,
        architecture=Architecture(name, (4, 8), strides, ((3,) * dims,) * 2, n_supervised=1),
        lesion_fraction=0.01,
        anchors=AnchorPlan(stages=(1,), sizes=(((4.0,) * dims, (6.0,) * dims),), width=8, depth=1),
    )


def _batch(dims: int = 2, n: int = 2) -> dict[str, Tensor]:
    shape = (n, *(16,) * dims)
    instances = torch.zeros(shape, dtype=torch.int32)
    instances[0][(slice(4, 8),) * dims] = 7
    instances[0][(slice(10, 14),) * dims] = 3
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[instances == 7], labels[instances == 3] = 2, 1
    return {
        "image": torch.randn((n, 1, *shape[1:])),
        "labels": labels,
        "instances": instances,
        "valid": torch.ones(shape, dtype=torch.bool),
    }


def _objective(name: str = "retinanet") -> Objective:
    return make_objective(_plan(name), TrainConfig.of(), FocalLoss())


def test_every_lesion_has_positive_anchors_with_its_label_and_box() -> None:
    targets = _objective().targets(_batch())
    anchors = targets.anchors
    assert set(anchors.labels[0].tolist()) == {0, 1, 2}
    assert set(anchors.labels[1].tolist()) == {0}
    positive = anchors.labels[0] > 0
    assert len(anchors.boxes) == int(positive.sum())
    of_seven = anchors.boxes[anchors.labels[0][positive] == 2]
    assert of_seven.unique(dim=0).tolist() == [[4, 4, 8, 8]]
    assert targets.counts()[0] == positive.sum()


def test_invalid_background_teaches_nothing_and_an_invalid_lesion_is_none() -> None:
    batch = _batch()
    batch["valid"][:, :, 8:] = False  # hides lesion 3
    targets = _objective().targets(batch).anchors
    assert set(targets.labels[0].tolist()) == {0, 2}
    assert not bool(targets.valid[1].all())
    assert bool(targets.valid[0][targets.labels[0] > 0].all())
    # two anchors a cell, 8 x 8 cells: those of the right half are out
    assert int(targets.valid[1].sum()) == 64


@pytest.mark.parametrize("name", ["retinanet", "retina_unet"])
@pytest.mark.parametrize("dims", [2, 3])
def test_terms_are_finite_and_every_weight_learns_with_and_without_lesions(
    name: str, dims: int
) -> None:
    plan = _plan(name, dims)
    network, objective = build_network(plan), make_objective(plan, TrainConfig.of(), FocalLoss())
    for free in (False, True):
        batch = _batch(dims)
        if free:
            batch["labels"].zero_()
            batch["instances"].zero_()
        targets = objective.targets(batch)
        normalisers = torch.tensor(objective.expected(2))
        terms = objective.terms(network(batch["image"]), targets, normalisers)
        assert {"anchors", "boxes"} <= terms.keys()
        assert (len(terms) > 2) == (name == "retina_unet")
        network.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        gradients = [p.grad for p in network.parameters()]
        assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_observers_see_voxels_where_there_are_some_and_anchors_elsewhere() -> None:
    for name, n_axes in (("retinanet", 3), ("retina_unet", 4)):
        objective, plan = _objective(name), _plan(name)
        targets = objective.targets(_batch())
        output = build_network(plan)(_batch()["image"])
        logits, axis, labels, valid = objective.observed(output, targets)
        assert logits.ndim == n_axes
        assert logits.movedim(axis, 1).shape[2:] == labels.shape[1:] == valid.shape[1:]


def test_the_plan_remembers_what_inference_must_undo() -> None:
    cfg = TrainConfig.of(detection={"alpha": 0.3, "gamma": 1.5})
    plan = with_focal_correction(_plan("retinanet"), cfg)
    assert plan.anchors is not None
    assert (plan.anchors.alpha, plan.anchors.gamma) == (0.3, 1.5)
    assert type(plan).from_json(plan.to_json()) == plan


def test_a_label_that_a_tile_does_not_annotate_teaches_no_anchor() -> None:
    plan = _plan("retina_unet")
    objective = make_objective(plan, TrainConfig.of(), FocalLoss())
    batch, network = _batch(), build_network(plan)
    batch["labels"][batch["labels"] == 2], batch["instances"][batch["instances"] == 7] = 0, 0
    output = network(batch["image"])
    for tensor in (output.class_logits, *output.segmentation):
        tensor.retain_grad()
    known = objective.known(output, torch.tensor([[False, True], [False, False]]))
    normalisers = torch.tensor(objective.expected(2))
    terms = objective.terms(known, objective.targets(batch), normalisers)
    torch.stack(list(terms.values())).sum().backward()
    of_anchors = output.class_logits.grad.any(1)
    assert of_anchors.tolist()[0] == [True, False]
    assert bool(of_anchors[1].any())
    assert output.segmentation[0].grad.flatten(2).any(2).tolist()[0] == [True, False]


class _Empty:
    """Tiles of noise without any lesion."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        labels = torch.zeros((16, 16), dtype=torch.uint8)
        noise = torch.randn((1, 16, 16), generator=torch.Generator().manual_seed(number))
        valid = torch.ones_like(labels, dtype=torch.bool)
        return {"image": noise, "labels": labels, "instances": labels.int(), "valid": valid}


@pytest.mark.parametrize("name", ["retinanet", "retina_unet"])
def test_tiles_without_any_lesion_train_without_nan(name: str, train: Any) -> None:
    """No step is skipped, no weight is lost."""
    plan = _plan(name)
    result = train(plan=plan, tiles=_Empty(), max_steps=8)
    assert (result.steps, result.skipped) == (8, 0)
    assert all(bool(torch.isfinite(p).all()) for p in result.network.parameters())
