"""Detectors on the backbone: shapes, order of anchors, prior, and refusals."""

import math

import pytest
import torch

from lesionseg.models.build import build_network
from lesionseg.ops.anchors import grid_anchors
from lesionseg.plan.plan import AnchorPlan
from tests.models.plans import plan_of


def _make_plan(dims=2, name="retinanet", labels=("a",)):
    sizes = (((3.0,) * dims, (4.0,) * dims), ((8.0,) * dims, (9.0,) * dims))
    anchors = AnchorPlan(stages=(1, 2), sizes=sizes, width=8, depth=1)
    return plan_of(name, dims, labels=labels, table={"n_supervised": 2}, anchors=anchors)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "n_levels"), [("retinanet", 0), ("retina_unet", 2)])
def test_every_anchor_has_scores_and_a_box(dims, name, n_levels):
    plan = _make_plan(dims, name, ("a", "b"))
    network = build_network(plan)
    tiles = torch.randn(2, 1, *plan.tile_shape)
    output = network(tiles)
    n = len(grid_anchors(plan.anchor_levels))
    assert output.class_logits.shape == (2, n, 2)
    assert output.box_deltas.shape == (2, n, 2 * dims)
    assert len(output.segmentation) == n_levels
    assert len(network.eval()(tiles).segmentation) == min(n_levels, 1)


def test_first_scores_equal_the_prior_and_first_boxes_the_anchors():
    output = build_network(_make_plan())(torch.zeros(1, 1, 16, 16))
    assert output.class_logits.mean().item() == pytest.approx(-math.log(99), abs=0.2)
    assert output.box_deltas.abs().max() < 0.3


def test_outputs_are_located_at_their_anchors():
    """The gradient of an anchor's score by the image has its maximum near the anchor."""
    plan = _make_plan()
    draw = torch.Generator().manual_seed(0)
    image = torch.randn((64, 1, 16, 16), generator=draw).requires_grad_()
    number = 2 * (5 * 8 + 3) + 1  # second shape of cell (5, 3) of the finest level
    assert grid_anchors(plan.anchor_levels)[number].tolist() == [9.0, 5.0, 13.0, 9.0]
    build_network(plan).eval()(image).class_logits[:, number, 0].sum().backward()
    y, x = divmod(int(image.grad.abs().mean((0, 1)).argmax()), 16)
    assert max(abs(y + 0.5 - 11), abs(x + 0.5 - 7)) < 3
