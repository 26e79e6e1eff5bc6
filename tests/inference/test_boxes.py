"""Boxes of tiles put together, brought to the file's grid and fused with candidates of voxels."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.data.tiling import TileGrid
from lesionseg.inference.boxes import BoxCollector, Boxes, box_candidates, fuse, restore_boxes
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import box_iou, encode_boxes
from lesionseg.plan.plan import AnchorPlan, CandidateRule, Plan
from tests.models.plans import plan_of

STRIDES = ((1, 1), (2, 2))


def _plan(**changes: Any) -> Plan:
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0),),), width=8, depth=1)
    return plan_of(
        "retinanet", strides=STRIDES, labels=("a", "b"), **{"anchors": anchors, **changes}
    )


def _seen(plan: Plan, boxes: list[tuple[list[float], float, int]]) -> DetectorOutput:
    """What a network would say that sees these (box, probability, label) in its tile."""
    anchors = grid_anchors(planned_anchors(plan).levels(STRIDES, plan.tile_shape))
    logits, deltas = torch.full((1, len(anchors), 2), -20.0), torch.zeros(1, len(anchors), 4)
    for box, p, label in boxes:
        wanted = torch.tensor([box])
        best = int(box_iou(wanted, anchors).argmax())
        logits[0, best, label - 1] = math.log(p) - math.log1p(-p)
        deltas[0, best] = encode_boxes(wanted, anchors[[best]])[0]
    return DetectorOutput(logits, deltas)


def test_a_lesion_seen_in_every_tile_comes_out_once_with_its_score() -> None:
    plan = _plan()
    grid = TileGrid((16, 24), plan.tile_shape, 0.5)
    collector = BoxCollector(grid, plan)
    lesion = [6.0, 10.0, 9.0, 13.0]
    for i, start in enumerate(grid.starts):
        here = [v - start[a % 2] for a, v in enumerate(lesion)]
        collector.add(_seen(plan, [(here, 0.8, 1)]), [i], ())
    found = collector.finish()
    assert len(found) == 1
    torch.testing.assert_close(found.boxes, torch.tensor([lesion]), atol=1e-3, rtol=0)
    assert found.scores.item() == pytest.approx(0.8, abs=1e-3)


def test_a_box_cut_by_a_tiles_inner_edge_is_damped_and_at_the_volumes_edge_is_not() -> None:
    plan = _plan()
    grid = TileGrid((16, 32), plan.tile_shape, 0.0)
    inner, outer = [6.0, 13, 10, 17], [6.0, -1, 10, 3]
    collector = BoxCollector(grid, plan)
    collector.add(_seen(plan, [(inner, 0.9, 1), (outer, 0.9, 1)]), [0], ())
    found = collector.finish()
    assert found.boxes[0].tolist() == pytest.approx([6, 0, 10, 3], abs=1e-3)  # cut at the border
    assert found.scores[0].item() == pytest.approx(0.9, abs=1e-4)
    assert len(found) == 1 or found.scores[1] < 0.2


def _found(plan: Plan, *views: tuple[DetectorOutput, tuple[int, ...]], width: int = 16) -> Boxes:
    """What one tile's views make of a volume."""
    collector = BoxCollector(TileGrid((16, width), plan.tile_shape), plan)
    for output, flipped in views:
        collector.add(output, [0], flipped)
    return collector.finish()


def test_labels_never_merge_and_come_by_score() -> None:
    box = [4.0, 4.0, 8.0, 8.0]
    found = _found(_plan(), (_seen(_plan(), [(box, 0.6, 2), (box, 0.7, 1)]), ()))
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([0.7, 0.6], abs=1e-3)


def test_mirrored_views_agree_with_the_plain_one() -> None:
    plain, mirrored = ([2.0, 4, 6, 8], 0.8, 1), ([2.0, 8, 6, 12], 0.6, 1)
    found = _found(_plan(), (_seen(_plan(), [plain]), ()), (_seen(_plan(), [mirrored]), (1,)))
    torch.testing.assert_close(found.boxes, torch.tensor([[2.0, 4, 6, 8]]), atol=1e-3, rtol=0)
    assert found.scores.item() == pytest.approx(0.8, abs=1e-3)


def test_a_volume_smaller_than_the_tile_loses_its_padding() -> None:
    found = _found(_plan(), (_seen(_plan(), [([4.0, 6, 8, 10], 0.8, 1)]), ()), width=8)
    torch.testing.assert_close(found.boxes, torch.tensor([[4.0, 2, 8, 6]]), atol=1e-3, rtol=0)


def test_nothing_above_the_floor_gives_nothing_and_wild_boxes_are_dropped() -> None:
    assert len(_found(_plan())) == 0
    output = _seen(_plan(), [([4.0, 4, 8, 8], 0.9, 1)])
    output.box_deltas[output.box_deltas != 0] = torch.nan
    output.box_deltas[0, :, 0] = torch.nan
    assert len(_found(_plan(), (output, ()))) == 0


def test_what_the_focal_loss_did_to_scores_is_undone() -> None:
    anchors = planned_anchors(_plan())
    taught = _plan(anchors=AnchorPlan(anchors.stages, anchors.sizes, alpha=0.25, gamma=2.0))
    plain, undone = (
        _found(plan, (_seen(plan, [([4.0, 4, 8, 8], 0.6, 1)]), ())).scores.item()
        for plan in (_plan(), taught)
    )
    assert undone > plain + 0.1


# --- on the file's grid, and fused with candidates of voxels ------------------------------------

PLAN = Geometry.from_spacing((20, 20, 20), (2.0, 1.0, 1.0))


def test_the_same_grid_changes_nothing_and_spacing_scales() -> None:
    boxes = np.array([[2, 3, 4, 5, 6, 7]], dtype=np.float32)
    np.testing.assert_allclose(restore_boxes(boxes, PLAN, PLAN), boxes, atol=1e-4)
    fine = Geometry.from_spacing((40, 20, 20), (1.0, 1.0, 1.0))
    # voxel centres of the first slices coincide: index z of the plan is 2 z of the file
    np.testing.assert_allclose(
        restore_boxes(boxes, PLAN, fine), [[3.5, 3, 4, 9.5, 6, 7]], atol=1e-4
    )


def test_flips_and_axis_order_are_exact_as_for_a_mask() -> None:
    affine = np.array(PLAN.affine)[:, [2, 0, 1, 3]]  # file axes: x, z, y of the plan
    affine[:3, 3] += affine[:3, 0] * 19
    affine[:3, 0] *= -1  # the first axis turned round
    file = Geometry((20, 20, 20), affine)
    mask = np.zeros(PLAN.shape, dtype=bool)
    mask[2:5, 3:6, 4:9] = True
    turned = np.flip(mask.transpose(2, 0, 1), axis=0)
    where = np.argwhere(turned)
    expected = [*where.min(0), *(where.max(0) + 1)]
    found = restore_boxes(np.array([[2, 3, 4, 5, 6, 9]], np.float32), PLAN, file)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_no_box_gives_none() -> None:
    assert restore_boxes(np.zeros((0, 6), np.float32), PLAN, PLAN).shape == (0, 6)


def test_boxes_become_candidates_without_masks() -> None:
    boxes = torch.tensor([[2.0, 3, 4, 4, 7, 8], [0, 0, 0, 0.1, 0.1, 0.1]])
    found = Boxes(boxes, torch.tensor([0.9, 0.8]), torch.tensor([2, 1]))
    (candidate,) = box_candidates(found, PLAN, PLAN, CandidateRule(), (5, 7))
    assert (candidate.id, candidate.label, candidate.has_mask) == (1, 7, False)
    assert candidate.score == pytest.approx(0.9)
    assert candidate.centre_mm == pytest.approx((5.5, 4.5, 5.0))
    assert candidate.diameter_mm == pytest.approx((2 * 4 * 4 * 2.0) ** (1 / 3))


def _candidate(
    number: int, box: list[float], score: float, *, mask: bool, label: int = 1
) -> Candidate:
    return Candidate(
        number, label, score, tuple(box[:2]), tuple(box[2:]), (0.0, 0.0), 1.0, None, has_mask=mask
    )


def test_what_both_heads_found_comes_first_and_keeps_its_mask() -> None:
    instances = np.array([[1, 1, 0, 2], [1, 1, 0, 0]], dtype=np.int32)
    voxels = Prediction(
        "a",
        Geometry.from_spacing((2, 4), (1.0, 1.0)),
        (
            _candidate(1, [0.0, 0, 2, 2], 0.6, mask=True),
            _candidate(2, [0.0, 3, 1, 4], 0.5, mask=True),
        ),
        instances,
    )
    boxes = [
        _candidate(1, [0.0, 2, 1, 4], 0.9, mask=False),
        _candidate(2, [5.0, 5, 9, 9], 0.8, mask=False),
        _candidate(3, [0.0, 0, 2, 2], 0.7, mask=False, label=2),
    ]
    found = fuse(voxels, boxes)
    assert [(c.id, c.has_mask) for c in found.candidates] == [
        (1, True),
        (2, False),
        (3, False),
        (4, True),
    ]
    assert [c.score for c in found.candidates] == pytest.approx([0.7, 0.4, 0.35, 0.3])
    assert found.instances.tolist() == [[4, 4, 0, 1], [4, 4, 0, 0]]


def test_one_head_alone_and_none_at_all() -> None:
    empty = Prediction("a", PLAN, (), np.zeros((3, 3), np.int32))
    assert fuse(empty, []).candidates == ()
    (only,) = fuse(empty, [_candidate(1, [0.0, 0, 1, 1], 0.8, mask=False)]).candidates
    assert only.score == pytest.approx(0.4)
