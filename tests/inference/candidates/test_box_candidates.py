"""Boxes of tiles put together: damping, merging, mirroring, empties."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from lesionseg.data.tiling import TileGrid
from lesionseg.inference.candidates.box_candidates import BoxCollector
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops import suppression
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import box_iou, encode_boxes
from lesionseg.plan.anchor_plan import AnchorPlan, Merge
from lesionseg.plan.plan import Architecture, Normalisation, Plan

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


def _merging(merge: Merge) -> Plan:
    return _plan(anchors=replace(planned_anchors(_plan()), merge=merge))


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


@pytest.mark.parametrize("merge", ["wbc", "nms"])
def test_a_lesion_seen_in_every_tile_comes_out_once_with_its_score(merge: Merge) -> None:
    plan = _merging(merge)
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


def test_a_tile_that_saw_nothing_lowers_the_score_by_its_weight() -> None:
    plan = _plan()
    grid = TileGrid((16, 24), plan.tile_shape, 0.5)
    assert grid.starts == ((0, 0), (0, 8))
    collector = BoxCollector(grid, plan)
    collector.add(_seen(plan, [([6.0, 6, 10, 10], 0.8, 1)]), [0], ())  # in the middle of tile 0
    collector.add(_seen(plan, []), [1], ())  # at the very edge of tile 1
    near = collector.finish().scores.item()
    assert 0.7 < near < 0.8
    collector = BoxCollector(grid, plan)
    collector.add(_seen(plan, [([6.0, 10, 10, 14], 0.8, 1)]), [0], ())  # equally far from both
    collector.add(_seen(plan, []), [1], ())
    assert 0.15 < collector.finish().scores.item() < 0.65  # 0.4, but for half a voxel


def test_nms_keeps_the_highest_look_as_it_is() -> None:
    looks = {0: 0.8, 1: 0.6}  # by tile; the lesion lies well within both
    scores = {}
    for merge in get_args(Merge):
        plan = _merging(merge)
        grid = TileGrid((16, 24), plan.tile_shape, 0.5)
        collector = BoxCollector(grid, plan)
        for tile, p in looks.items():
            here = [6.0, 10.0 - grid.starts[tile][1], 10.0, 14.0 - grid.starts[tile][1]]
            collector.add(_seen(plan, [(here, p, 1)]), [tile], ())
        (scores[merge],) = collector.finish().scores.tolist()
    assert scores["nms"] == pytest.approx(0.8, abs=1e-3)
    assert 0.6 < scores["wbc"] < 0.79


def test_a_box_cut_by_a_tiles_inner_edge_is_damped_and_at_the_volumes_edge_is_not() -> None:
    plan = _merging("nms")
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
    collector = BoxCollector(TileGrid((16, 16), plan.tile_shape), plan, n_views=2)
    collector.add(_seen(plan, [([2.0, 4, 6, 8], 0.8, 1)]), [0], ())
    collector.add(_seen(plan, [([2.0, 8, 6, 12], 0.6, 1)]), [0], (1,))
    found = collector.finish()
    assert len(found) == 1
    torch.testing.assert_close(found.boxes, torch.tensor([[2.0, 4, 6, 8]]), atol=1e-3, rtol=0)
    assert found.scores.item() == pytest.approx(0.7, abs=1e-3)


def test_a_volume_smaller_than_the_tile_loses_its_padding() -> None:
    plan = _plan()
    collector = BoxCollector(TileGrid((16, 8), plan.tile_shape), plan)
    collector.add(_seen(plan, [([4.0, 6, 8, 10], 0.8, 1)]), [0], ())
    torch.testing.assert_close(
        collector.finish().boxes, torch.tensor([[4.0, 2, 8, 6]]), atol=1e-3, rtol=0
    )


def test_nothing_above_the_floor_gives_nothing_and_wild_boxes_are_counted() -> None:
    plan = _plan()
    collector = BoxCollector(TileGrid((16, 16), plan.tile_shape), plan)
    assert len(collector.finish()) == 0
    output = _seen(plan, [([4.0, 4, 8, 8], 0.9, 1)])
    output.box_deltas[output.box_deltas != 0] = torch.nan
    output.box_deltas[0, :, 0] = torch.nan
    collector.add(output, [0], ())
    assert len(collector.finish()) == 0
    assert collector.n_degenerate == 1


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


@pytest.mark.gpu
@pytest.mark.parametrize("merge", ["wbc", "nms"])
def test_a_gpu_merges_boxes_by_its_own_kernel(
    merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    plan, found = _merging(merge), []
    grid = TileGrid((16, 24), plan.tile_shape, 0.5)
    for device in ("cpu", "cuda"):
        if device == "cuda":  # not even where the kernel is missing
            monkeypatch.setattr(suppression, "kept_on_cpu", None)
        collector = BoxCollector(grid, plan)
        for i in range(len(grid)):
            seen = _seen(plan, [([6.0, 2.0 + i, 9.0, 6.0 + i], 0.8, 1), ([1.0, 1, 4, 4], 0.4, 2)])
            logits, deltas = seen.class_logits.to(device), seen.box_deltas.to(device)
            collector.add(DetectorOutput(logits, deltas), [i], ())
        found.append(collector.finish())
    for ours, theirs in zip(vars(found[1]).values(), vars(found[0]).values(), strict=True):
        torch.testing.assert_close(ours, theirs)
