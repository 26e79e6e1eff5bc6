"""The loss of a detector: values by hand, lesion-free tiles, and hard-negative mining."""

import pytest
import torch

from lesionseg.losses import AnchorTargets, DetectionLoss, sigmoid_focal_loss
from tests.noise import noise

ANCHORS = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]])


def _make_targets(labels, boxes):
    table = torch.tensor(labels)
    places = (table > 0).flatten().nonzero()[:, 0]
    return AnchorTargets(table.clamp(min=0), table >= 0, boxes, places)


def test_focal_term_covers_all_valid_anchors_and_is_divided_by_the_positives():
    logits = noise(1, 4, 1)
    targets = _make_targets([[1, 0, -1, 1]], ANCHORS[[0, 3]])
    terms = DetectionLoss()(logits, torch.zeros(1, 4, 4), ANCHORS, targets)
    expected = sigmoid_focal_loss(
        logits[0, [0, 1, 3]], torch.tensor([[1], [0], [1]]), reduction="sum"
    )
    assert terms["anchors"].item() == pytest.approx(expected.item() / 2, rel=1e-6)
    assert terms["boxes"].item() == pytest.approx(0.0, abs=1e-6)  # the anchors equal their lesions


def test_box_term_has_the_value_computed_by_hand():
    lesion = torch.tensor([[0.0, 2.0, 4.0, 6.0]])
    targets = _make_targets([[1, 0, 0, 0]], lesion)
    loss = DetectionLoss()
    terms = loss(torch.zeros(1, 4, 1), torch.zeros(1, 4, 4), ANCHORS, targets, normaliser=5.0)
    giou = 8 / 24  # half shared, and nothing of the hull is uncovered
    offset = 0.5 - 0.5 / 9  # |delta| = 0.5, beta = 1/9
    assert terms["boxes"].item() == pytest.approx((1 - giou + 0.5 * offset) / 5, rel=1e-5)


def test_sum_without_positives_is_divided_by_one():
    logits = noise(1, 4, 1)
    targets = _make_targets([[0, 0, 0, 0]], torch.zeros((0, 4)))
    terms = DetectionLoss()(logits, torch.zeros(1, 4, 4), ANCHORS, targets)
    expected = sigmoid_focal_loss(logits[0], torch.zeros(4, 1), reduction="sum")
    assert terms["anchors"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("hard_negatives", [False, True])
def test_lesion_free_tiles_give_finite_gradients_for_every_output(hard_negatives):
    logits = torch.randn(2, 4, 1, requires_grad=True)
    deltas = torch.randn(2, 4, 4, requires_grad=True)
    targets = _make_targets([[0, 0, 0, 0], [0, 0, -1, 0]], torch.zeros((0, 4)))
    loss = DetectionLoss(hard_negatives=hard_negatives)
    terms = loss(logits, deltas, ANCHORS, targets, normaliser=8.0)
    of_logits, of_deltas = torch.autograd.grad(sum(terms.values()), (logits, deltas))
    assert bool(torch.isfinite(of_logits).all())
    assert float(of_logits[1, 2].abs()) == 0.0  # ignored
    assert float(of_deltas.abs().max()) == terms["boxes"].item() == 0.0


def test_hard_negative_mining_keeps_only_the_worst_background():
    logits = torch.tensor([[[0.0], [3.0], [-1.0], [-2.0], [-3.0]]], requires_grad=True)
    targets = _make_targets([[1, 0, 0, 0, 0]], ANCHORS[[0]])
    loss = DetectionLoss(hard_negatives=True)  # three per positive
    terms = loss(logits, torch.zeros(1, 5, 4), torch.cat([ANCHORS, ANCHORS[:1]]), targets)
    (gradient,) = torch.autograd.grad(terms["anchors"], logits)
    assert (gradient[0, :, 0] != 0).tolist() == [True, True, True, True, False]
