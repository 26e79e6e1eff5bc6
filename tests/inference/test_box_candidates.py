"""Boxes: merging over tiles, resampling to the file's grid, and fusion with voxel candidates."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.core import Candidate, Geometry
from lesionseg.data.tiling import TileGrid
from lesionseg.errors import ContentError
from lesionseg.inference import box_candidates as boxes_module
from lesionseg.inference.box_candidates import (
    BoxCollector,
    Boxes,
    _partners,
    box_candidates,
    fuse,
    restore_boxes,
)
from lesionseg.models.heads import DetectorOutput
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import box_iou, encode_boxes
from lesionseg.plan.plan import AnchorPlan
from tests.evaluation.hand_cases import prediction_of
from tests.grids import unit_grid
from tests.models.plans import plan_of

STRIDES = ((1, 1), (2, 2))


def make_plan(**settings):
    """Make the plan of a detector. `settings` are those of its anchors."""
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0),),), width=8, depth=1, **settings)
    return plan_of("retinanet", strides=STRIDES, labels=("a", "b"), anchors=anchors)


PLAN = make_plan()


def make_output(*boxes):
    """Make the output of a network that finds these (box, probability, label) in its tile."""
    anchors = grid_anchors(PLAN.anchor_levels)
    logits = torch.full((1, len(anchors), 2), -20.0)
    deltas = torch.zeros(1, len(anchors), 4)
    for box, p, label in boxes:
        wanted = torch.tensor([box])
        best = int(box_iou(wanted, anchors).argmax())
        logits[0, best, label - 1] = math.log(p) - math.log1p(-p)
        deltas[0, best] = encode_boxes(wanted, anchors[[best]])[0]
    return DetectorOutput(logits, deltas)


def collect(*outputs, shape=(16, 16), plan=PLAN):
    """Collect the boxes of the first tile of a volume from outputs without flips."""
    collector = BoxCollector(TileGrid(shape, plan.tile_shape, 0.0), plan)
    for output in outputs:
        collector.add(output, [0], ())
    return collector.finish()


def assert_close(boxes, expected):
    torch.testing.assert_close(boxes, torch.tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("n_networks", "score"), [(1, 0.8), (2, 0.4)])
def test_lesion_found_in_every_tile_is_one_box_with_the_mean_of_networks(n_networks, score):
    """The first network finds the lesion in both tiles, the second one in none."""
    grid = TileGrid((16, 24), PLAN.tile_shape, 0.5)
    collector = BoxCollector(grid, PLAN, n_readings=n_networks)
    for i, (y, x) in enumerate(grid.starts):
        in_tile = [6.0 - y, 10.0 - x, 9.0 - y, 13.0 - x]
        collector.add(make_output((in_tile, 0.8, 1)), [i], (), 0)
        for network in range(1, n_networks):
            collector.add(make_output(), [i], (), network)
    found = collector.finish()
    assert_close(found.boxes, [[6.0, 10.0, 9.0, 13.0]])
    assert_close(found.scores, [score])


@pytest.mark.parametrize("end", [17, 15.7])  # a network may draw a cut box slightly too short
def test_score_is_reduced_for_a_box_cut_by_a_tile_but_not_by_the_volume(end):
    inner = [6.0, 12, 10, end]
    outer = [6.0, -1, 10, 3]
    found = collect(make_output((inner, 0.9, 1), (outer, 0.9, 1)), shape=(16, 32))
    assert_close(found.boxes[0], [6.0, 0, 10, 3])  # clipped to the volume
    assert found.scores[0].item() == pytest.approx(0.9, abs=1e-4)
    assert len(found) == 1 or found.scores[1] < 0.2


def test_equal_boxes_of_different_labels_are_not_merged():
    box = [4.0, 4.0, 8.0, 8.0]
    found = collect(make_output((box, 0.6, 2), (box, 0.7, 1)))
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([0.7, 0.6], abs=1e-3)


def test_mirrored_view_gives_the_same_box():
    collector = BoxCollector(TileGrid((16, 16), PLAN.tile_shape), PLAN)
    collector.add(make_output(([2.0, 4, 6, 8], 0.8, 1)), [0], ())
    collector.add(make_output(([2.0, 8, 6, 12], 0.6, 1)), [0], (1,))
    found = collector.finish()
    assert_close(found.boxes, [[2.0, 4, 6, 8]])
    assert found.scores.item() == pytest.approx(0.8, abs=1e-3)


def test_padding_is_subtracted_from_boxes():
    found = collect(make_output(([4.0, 6, 8, 10], 0.8, 1)), shape=(16, 8))
    assert_close(found.boxes, [[4.0, 2, 8, 6]])


def test_boxes_with_nan_are_dropped_and_a_score_that_is_nan_is_an_error():
    assert len(collect()) == 0
    output = make_output(([4.0, 4, 8, 8], 0.9, 1))
    output.box_deltas[0, :, 0] = torch.nan
    assert len(collect(output)) == 0
    output.class_logits[0, 0, 0] = torch.nan
    with pytest.raises(ContentError, match="contain NaN"):
        collect(output)


def test_scores_are_corrected_for_the_focal_loss():
    output = make_output(([4.0, 4, 8, 8], 0.6, 1))
    plain = collect(output)
    corrected = collect(output, plan=make_plan(alpha=0.25, gamma=2.0))
    assert corrected.scores.item() > plain.scores.item() + 0.1


# --- boxes on the file's grid, and their fusion with voxel candidates ---------------------------

GRID = Geometry.from_spacing((20, 20, 20), (2.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("n", "mm", "expected"),
    [
        (20, 2.0, [[2, 3, 4, 5, 6, 7]]),
        # voxel centres of the first slices coincide: index z of the plan is 2 z of the file
        (40, 1.0, [[3.5, 3, 4, 9.5, 6, 7]]),
    ],
)
def test_boxes_are_scaled_to_the_spacing_of_the_file(n, mm, expected):
    boxes = np.array([[2, 3, 4, 5, 6, 7]], dtype=np.float32)
    file = Geometry.from_spacing((n, 20, 20), (mm, 1.0, 1.0))
    np.testing.assert_allclose(restore_boxes(boxes, GRID, file), expected, atol=1e-4)
    assert restore_boxes(boxes[:0], GRID, file).shape == (0, 6)


def test_flips_and_axis_order_are_as_exact_as_for_a_mask():
    affine = np.array(GRID.affine)[:, [2, 0, 1, 3]]  # file axes: x, z, y of the plan
    affine[:3, 3] += affine[:3, 0] * 19
    affine[:3, 0] *= -1  # the first axis is flipped
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[2:5, 3:6, 4:9] = True
    where = np.argwhere(np.flip(mask.transpose(2, 0, 1), axis=0))
    box = np.array([[2, 3, 4, 5, 6, 9]], np.float32)
    found = restore_boxes(box, GRID, Geometry((20, 20, 20), affine))
    np.testing.assert_allclose(found[0], [*where.min(0), *(where.max(0) + 1)], atol=1e-4)


def test_boxes_become_candidates_without_masks():
    boxes = torch.tensor([[2.0, 3, 4, 4, 7, 8], [0, 0, 0, 0.1, 0.1, 0.1]])
    found = Boxes(boxes, torch.tensor([0.9, 0.8]), torch.tensor([2, 1]))
    (candidate,) = box_candidates(found, GRID, GRID, (5, 7))
    assert (candidate.id, candidate.label, candidate.has_mask) == (1, 7, False)
    assert candidate.score == pytest.approx(0.9)
    assert (candidate.start_vox, candidate.stop_vox) == ((2, 3, 4), (4, 7, 8))


def make_candidate(number, box, score, label=1):
    return Candidate.from_box(number, label, score, box, unit_grid(9, 9))


def test_candidates_of_both_heads_come_first_and_keep_their_mask():
    instances = np.array([[1, 1, 0, 2], [1, 1, 0, 0]], dtype=np.int32)
    masks = prediction_of(instances, (0.6, 0.5), unit_grid(2, 4))
    boxes = [
        make_candidate(1, [0, 2, 1, 4], 0.9),
        make_candidate(2, [5, 5, 9, 9], 0.8),
        make_candidate(3, [0, 0, 2, 2], 0.7, label=2),
    ]
    found = fuse(masks, boxes)
    masked = [(c.id, c.has_mask) for c in found.candidates]
    assert masked == [(1, True), (2, False), (3, False), (4, True)]
    assert [c.score for c in found.candidates] == pytest.approx([0.7, 0.4, 0.35, 0.3])
    assert found.instances.tolist() == [[4, 4, 0, 1], [4, 4, 0, 0]]


def test_boxes_of_a_case_without_voxel_candidates_are_kept():
    empty = prediction_of(np.zeros((2, 4), np.int32), (), unit_grid(2, 4))
    assert fuse(empty, []).candidates == ()
    (only,) = fuse(empty, [make_candidate(1, [0, 0, 1, 1], 0.8)]).candidates
    assert only.score == pytest.approx(0.4)


def test_tile_with_many_lesions_gives_a_box_for_each():
    plan = PLAN.with_(tile_shape=(128, 128))
    anchors = grid_anchors(plan.anchor_levels)
    logits = torch.full((1, len(anchors), 2), -20.0)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    logits[0, (centres % 8 == 5).all(dim=1), 0] = 2.0  # every 8 pixels, with boxes of 4
    output = DetectorOutput(logits, torch.zeros(1, len(anchors), 4))
    found = collect(output, shape=(128, 128), plan=plan)
    assert (len(found), found.n_left_out) == (16 * 16, 0)


def test_score_of_an_ensemble_is_the_mean_over_its_networks():
    both = [3.0, 3.0, 7.0, 7.0]
    moved = [3.0, 3.0, 7.0, 8.0]  # the same lesion: IoU 0.8
    only_second = [10.0, 10.0, 14.0, 14.0]
    collector = BoxCollector(TileGrid((16, 16), PLAN.tile_shape), PLAN, n_readings=2)
    collector.add(make_output((both, 0.4, 1)), [0], (), 0)
    collector.add(make_output((moved, 0.6, 1), (only_second, 0.9, 2)), [0], (), 1)
    found = collector.finish()
    assert_close(found.scores, [(0.4 + 0.6) / 2, 0.9 / 2])
    assert_close(found.boxes, [moved, only_second])
    assert found.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("limit", "n_found", "n_left_out"),
    [(3, 4, 4), (5, 8, 0), (100, 8, 0)],  # 4 boxes at first, then 16
)
def test_lowest_boxes_are_not_merged_if_the_case_has_enough(
    monkeypatch, limit, n_found, n_left_out
):
    monkeypatch.setattr(boxes_module, "MERGED_AT_FIRST", 4)
    plan = PLAN.with_(candidate_rule=replace(PLAN.candidate_rule, candidate_limit=limit))
    corners = itertools.product((1.0, 9.0), (1.0, 5.0, 9.0, 12.0))
    boxes = [([y, x, y + 3, x + 3], 0.9 - 0.1 * i, 1) for i, (y, x) in enumerate(corners)]
    found = collect(make_output(*boxes), plan=plan)
    assert (len(found), found.n_left_out) == (n_found, n_left_out)
    assert_close(found.boxes, [box for box, *_ in boxes[:n_found]])


def test_box_is_kept_if_its_score_reaches_the_floor_of_the_anchors(monkeypatch):
    output = make_output(([1.0, 1, 4, 4], 0.02, 1), ([9.0, 9, 12, 12], 0.004, 1))
    assert len(collect(output)) == 0  # without it, the floor of the candidate rule is used
    monkeypatch.setattr(boxes_module, "MAX_ANCHORS", 1)  # others are too low to be left out
    found = collect(output, plan=make_plan(floor=0.01))
    assert found.scores.tolist() == pytest.approx([0.02], abs=1e-4)
    assert found.n_left_out == 0


def test_anchors_beyond_the_limit_of_nms_are_counted_as_left_out(monkeypatch):
    monkeypatch.setattr(boxes_module, "MAX_ANCHORS", 2)
    boxes = [([1.0, 1, 4, 4], 0.9, 1), ([9.0, 9, 12, 12], 0.8, 1), ([1.0, 9, 4, 12], 0.7, 1)]
    found = collect(make_output(*boxes))
    assert (len(found), found.n_left_out) == (2, 1)


def test_partners_equal_those_of_a_search_in_the_whole_table(monkeypatch, rng):
    monkeypatch.setattr("lesionseg.ops.boxes._MAX_PAIRS", 30)
    starts = rng.uniform(0, 30, (45, 2))
    corners = np.hstack([starts, starts + rng.uniform(2, 9, (45, 2))])
    labels = rng.integers(1, 3, 45)
    drawn = [make_candidate(i, corners[i].tolist(), 0.5, int(labels[i])) for i in range(45)]
    table = torch.from_numpy(corners)
    overlap = box_iou(table[:20], table[20:]).numpy() * (labels[:20, None] == labels[20:])
    expected = {}
    while overlap.max() >= 0.1:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        expected[int(i)] = int(j)
        overlap[i] = 0
        overlap[:, j] = 0
    assert len(expected) > 5
    assert _partners(drawn[:20], drawn[20:]) == expected
