"""Boxes: overlap, offsets from anchors, and the boxes of the lesions in tiles."""

import numpy as np
import pytest
import torch

from lesionseg.ops.boxes import (
    box_iou,
    decode_boxes,
    encode_boxes,
    is_degenerate,
    paired_giou,
    tile_boxes,
)


def draw_boxes(rng, n, dims, minimum=0):
    start = rng.integers(0, 10, (n, dims))
    return torch.tensor(np.hstack([start, start + rng.integers(minimum, 8, (n, dims))])).float()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_iou_equals_the_share_of_counted_voxels(rng, dims):
    boxes = draw_boxes(rng, 11, dims)
    grids = np.zeros((11, *(20,) * dims), bool)
    for grid, box in zip(grids, boxes.int().tolist(), strict=True):
        grid[tuple(map(slice, box[:dims], box[dims:]))] = True
    found = box_iou(boxes[:6], boxes[6:])
    for i, j in np.ndindex(6, 5):
        a = grids[i]
        b = grids[6 + j]
        expected = (a & b).sum() / max((a | b).sum(), 1)
        assert found[i, j].item() == pytest.approx(expected)


def test_giou_has_the_values_computed_by_hand():
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor([[0.0, 0, 2, 2], [2, 2, 4, 4], [0, 1, 2, 3]])
    # equal: 1; corner to corner: 0 - 8/16; half shared: 2/6 - 0
    expected = torch.tensor([1.0, -0.5, 1 / 3])
    torch.testing.assert_close(paired_giou(box.repeat(3, 1), others), expected)
    assert paired_giou(torch.zeros((0, 4)), torch.zeros((0, 4))).shape == (0,)


@pytest.mark.parametrize("dims", [2, 3])
def test_decoding_undoes_encoding(rng, dims):
    boxes = draw_boxes(rng, 50, dims, minimum=1)
    anchors = draw_boxes(rng, 50, dims, minimum=1)
    back = decode_boxes(encode_boxes(boxes, anchors), anchors)
    torch.testing.assert_close(back, boxes, rtol=1e-5, atol=1e-4)


def test_zero_offset_gives_the_anchor_and_log_two_doubles_a_side():
    anchor = torch.tensor([[2.0, 2.0, 6.0, 4.0]])
    assert decode_boxes(torch.zeros((1, 4)), anchor).tolist() == anchor.tolist()
    wide = decode_boxes(torch.tensor([[0.0, 0.0, 0.0, 0.6931472]]), anchor)
    torch.testing.assert_close(wide, torch.tensor([[2.0, 1.0, 6.0, 5.0]]))


def test_boxes_of_tiles_equal_those_of_a_naive_search(rng):
    instances = rng.choice([0, 0, 0, 5, 9, 2], size=(3, 4, 5, 6))
    instances[1] = 0
    instances[2][instances[2] == 2] = 0
    labels = instances % 4
    found, found_labels = tile_boxes(torch.from_numpy(instances), torch.from_numpy(labels))
    assert found_labels.shape == (3, 3)
    for tile, (boxes, labels_of) in enumerate(zip(found, found_labels, strict=True)):
        present = sorted(set(np.unique(instances[tile])) - {0})
        for row, number in enumerate(present):
            voxels = np.argwhere(instances[tile] == number)
            assert labels_of[row] == number % 4
            assert boxes[row].tolist() == [*voxels.min(0), *(voxels.max(0) + 1)]
        assert labels_of[len(present) :].sum() == boxes[len(present) :].sum() == 0


def test_tile_without_lesions_has_an_empty_row():
    nothing = torch.zeros((1, 3, 3), dtype=torch.int32)
    boxes, labels = tile_boxes(nothing, nothing)
    assert boxes.shape == (1, 1, 4)
    assert labels.sum() == boxes.sum() == 0


def test_iou_of_large_boxes_is_exact_in_half_precision():
    huge = torch.tensor([[0.0, 0, 0, 500, 500, 500]], dtype=torch.float16)
    assert box_iou(huge, huge).item() == 1.0


def test_giou_of_empty_boxes_and_its_gradient_are_finite():
    empty = torch.zeros((1, 4), requires_grad=True)
    overlap = paired_giou(empty, torch.zeros((1, 4)))
    overlap.sum().backward()
    assert torch.isfinite(overlap).all()
    assert torch.isfinite(empty.grad).all()


def test_offsets_of_extreme_size_stay_finite():
    anchor = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert torch.isfinite(decode_boxes(torch.full((1, 4), 1e4), anchor)).all()
    assert torch.isfinite(encode_boxes(torch.zeros((1, 4)), anchor)).all()


def test_box_without_extent_or_with_nan_is_degenerate():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 2, 1, 1], [0, 0, 1, torch.nan]])
    assert is_degenerate(boxes).tolist() == [False, True, True, True]
