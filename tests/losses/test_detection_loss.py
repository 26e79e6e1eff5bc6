"""The detector's loss by hand, without lesions, and in all its kinds."""

import pytest
import torch
from torch import Tensor

from lesionseg.errors import ConfigError
from lesionseg.losses import sigmoid_focal_loss
from lesionseg.losses.detection_loss import (
    AnchorTargets,
    DetectionLoss,
    offset_loss,
    overlap_loss,
)
from lesionseg.ops.anchors import BACKGROUND, IGNORED, AnchorLevel, assign_atss
from lesionseg.ops.boxes import encode_boxes, is_degenerate

ANCHORS = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]])
KINDS = ("focal", "varifocal", "quality", "hard_negatives")


def _targets(labels: list[list[int]], boxes: Tensor) -> AnchorTargets:
    table = torch.tensor(labels)
    return AnchorTargets(table.clamp(min=0), table >= 0, boxes)


def test_focal_runs_over_all_valid_anchors_and_is_divided_by_the_positives() -> None:
    logits = torch.randn(1, 4, 1, generator=torch.Generator().manual_seed(0))
    targets = _targets([[1, 0, -1, 1]], ANCHORS[[0, 3]])
    terms = DetectionLoss()(logits, torch.zeros(1, 4, 4), ANCHORS, targets)
    expected = sigmoid_focal_loss(
        logits[0, [0, 1, 3]], torch.tensor([[1], [0], [1]]), reduction="sum"
    )
    assert terms["anchors"].item() == pytest.approx(expected.item() / 2, rel=1e-6)
    assert terms["boxes"].item() == pytest.approx(0.0, abs=1e-6)  # anchors equal their lesions


def test_box_terms_by_hand() -> None:
    lesion = torch.tensor([[0.0, 2.0, 4.0, 6.0]])
    targets = _targets([[1, 0, 0, 0]], lesion)
    loss = DetectionLoss(overlap_weight=2.0, offset_weight=3.0)
    terms = loss(torch.zeros(1, 4, 1), torch.zeros(1, 4, 4), ANCHORS, targets, normaliser=5.0)
    giou = 8 / 24  # half shared, and nothing of the hull is uncovered
    offset = 0.5 - 0.5 / 9  # |delta| = 0.5, beta = 1/9
    assert terms["boxes"].item() == pytest.approx((2 * (1 - giou) + 3 * offset) / 5, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_find_is_finite_and_reaches_every_output(kind: str) -> None:
    logits = torch.randn(2, 4, 1, requires_grad=True)
    deltas = torch.randn(2, 4, 4, requires_grad=True)
    targets = _targets([[0, 0, 0, 0], [0, 0, -1, 0]], torch.zeros((0, 4)))
    terms = DetectionLoss(kind)(logits, deltas, ANCHORS, targets, normaliser=8.0)  # type: ignore[arg-type]
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad[1, 2].abs()) == 0.0  # ignored
    assert deltas.grad is not None
    assert float(deltas.grad.abs().max()) == 0.0
    assert terms["boxes"].item() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_against_the_gradient_raises_the_lesions_score(kind: str) -> None:
    logits = torch.full((1, 4, 1), -2.0, requires_grad=True)
    targets = _targets([[0, 1, 0, 0]], ANCHORS[[1]])
    DetectionLoss(kind)(logits, torch.zeros(1, 4, 4), ANCHORS, targets)["anchors"].backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    assert logits.grad[0, 1, 0] < 0
    assert bool((logits.grad[0, [0, 2, 3], 0] >= 0).all())


def test_mining_keeps_the_worst_background_only() -> None:
    logits = torch.tensor([[[0.0], [3.0], [-1.0], [-2.0]]], requires_grad=True)
    targets = _targets([[1, 0, 0, 0]], ANCHORS[[0]])
    loss = DetectionLoss("hard_negatives", negatives=1)
    loss(logits, torch.zeros(1, 4, 4), ANCHORS, targets)["anchors"].backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, 0] != 0).tolist() == [True, True, False, False]


def test_labels_have_logits_of_their_own() -> None:
    logits = torch.zeros(1, 4, 2, requires_grad=True)
    targets = _targets([[2, 0, 0, 0]], ANCHORS[[0]])
    DetectionLoss()(logits, torch.zeros(1, 4, 4), ANCHORS, targets)["anchors"].backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 1] < 0 < logits.grad[0, 0, 0]


def test_only_focal_can_be_undone() -> None:
    assert DetectionLoss(alpha=0.3, gamma=1.0).link == (0.3, 1.0)
    assert DetectionLoss("varifocal").link is None


def test_unknown_names_and_negative_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="classification"):
        DetectionLoss("focall")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="overlap"):
        DetectionLoss(overlap="iou")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="negative"):
        DetectionLoss(offset_weight=-1.0)
    with pytest.raises(ConfigError, match="assignment of anchors"):
        DetectionLoss(assign="simota")  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [(0.4, 0.5), (0.5, 0.0), (1.5, 0.4)])
def test_limits_of_the_iou_out_of_order_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="out of order"):
        DetectionLoss(assign="iou", positive_iou=limits[0], negative_iou=limits[1])


def test_anchors_are_assigned_by_the_limits_given() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    anchors = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 4, 3], [0.0, 0, 4, 2], [0.0, 0, 4, 1]])
    levels = (AnchorLevel((1, 1), (4, 4), ((4.0, 4.0),) * 4),)
    loss = DetectionLoss(assign="iou", positive_iou=0.7, negative_iou=0.4)
    assert loss.assigner(levels, anchors, boxes).tolist() == [0, 0, IGNORED, BACKGROUND]
    assert DetectionLoss().assigner is assign_atss


def test_overlap_losses_of_equal_and_of_distant_boxes() -> None:
    box = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0, 2.0]], requires_grad=True)
    for kind in ("giou", "diou"):
        assert overlap_loss(box, box.detach(), kind).item() == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
        far = overlap_loss(box, box.detach() + 9, kind)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(far, box)
        assert far.item() > 1
        assert gradient.abs().sum() > 0  # it knows where to go


def test_offsets_are_those_of_the_coder_and_degenerate_boxes_are_found() -> None:
    wanted = encode_boxes(ANCHORS[[0]] + 0.02, ANCHORS[[0]])
    assert offset_loss(wanted, wanted).item() == 0
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 1, 1, 3], [0, 0, torch.nan, 1], [3, 3, 2, 2]])
    assert is_degenerate(boxes).tolist() == [False, True, True, True]
