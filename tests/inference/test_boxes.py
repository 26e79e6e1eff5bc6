"""Boxes of tiles put together: damping, merging, mirroring, empties."""

import math

import pytest
import torch

from lesionseg.data.tiling import TileGrid
from lesionseg.inference.boxes import BoxCollector
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import box_iou, encode_boxes
from lesionseg.plan.plan import AnchorPlan, Architecture, Normalisation, Plan

STRIDES = ((1, 1), (2, 2))


def _plan(**changes: object) -> Plan:
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0),),), width=8, depth=1)
    plan = Plan(
        dims=2,
        modality="mri",
        channel_names=("a",),
        label_values=(1, 2),
        label_names=("a", "b"),
        spacing_mm=(1.0, 1.0),
        normalisation=(Normalisation("zscore"),),
        tile_shape=(16, 16),
        batch_size=1,
        architecture=Architecture("retinanet", (4, 4), STRIDES, ((3, 3),) * 2),
        lesion_fraction=0.01,
        anchors=anchors,
    )
    return plan.with_(**changes)


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


def test_labels_never_merge_and_come_by_score() -> None:
    plan = _plan()
    collector = BoxCollector(TileGrid((16, 16), plan.tile_shape), plan)
    box = [4.0, 4.0, 8.0, 8.0]
    collector.add(_seen(plan, [(box, 0.6, 2), (box, 0.7, 1)]), [0], ())
    found = collector.finish()
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([0.7, 0.6], abs=1e-3)


def test_mirrored_looks_agree_with_the_plain_one() -> None:
    plan = _plan()
    collector = BoxCollector(TileGrid((16, 16), plan.tile_shape), plan)
    collector.add(_seen(plan, [([2.0, 4, 6, 8], 0.8, 1)]), [0], ())
    collector.add(_seen(plan, [([2.0, 8, 6, 12], 0.6, 1)]), [0], (1,))
    found = collector.finish()
    assert len(found) == 1
    torch.testing.assert_close(found.boxes, torch.tensor([[2.0, 4, 6, 8]]), atol=1e-3, rtol=0)
    assert found.scores.item() == pytest.approx(0.8, abs=1e-3)


def test_a_volume_smaller_than_the_tile_loses_its_padding() -> None:
    plan = _plan()
    collector = BoxCollector(TileGrid((16, 8), plan.tile_shape), plan)
    collector.add(_seen(plan, [([4.0, 6, 8, 10], 0.8, 1)]), [0], ())
    torch.testing.assert_close(
        collector.finish().boxes, torch.tensor([[4.0, 2, 8, 6]]), atol=1e-3, rtol=0
    )


def test_nothing_above_the_floor_gives_nothing_and_wild_boxes_are_dropped() -> None:
    plan = _plan()
    collector = BoxCollector(TileGrid((16, 16), plan.tile_shape), plan)
    assert len(collector.finish()) == 0
    output = _seen(plan, [([4.0, 4, 8, 8], 0.9, 1)])
    output.box_deltas[output.box_deltas != 0] = torch.nan
    output.box_deltas[0, :, 0] = torch.nan
    collector.add(output, [0], ())
    assert len(collector.finish()) == 0


def test_what_the_focal_loss_did_to_scores_is_undone() -> None:
    anchors = planned_anchors(_plan())
    plain, taught = (
        _plan(),
        _plan(anchors=AnchorPlan(anchors.stages, anchors.sizes, alpha=0.25, gamma=2.0)),
    )
    scores = []
    for plan in (plain, taught):
        collector = BoxCollector(TileGrid((16, 16), plan.tile_shape), plan)
        collector.add(_seen(plan, [([4.0, 4, 8, 8], 0.6, 1)]), [0], ())
        scores.append(collector.finish().scores.item())
    assert scores[1] > scores[0] + 0.1
