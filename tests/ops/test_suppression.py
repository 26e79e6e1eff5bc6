"""Non-maximum suppression of boxes, compared with naive loops and hand-made values."""

import pytest
import torch

from lesionseg.errors import ContentError
from lesionseg.ops.boxes import box_iou
from lesionseg.ops.suppression import batched_nms, cluster_boxes, nms
from tests.boxes import draw_boxes
from tests.noise import noise


def suppress_by_naive_loop(boxes, scores, threshold):
    iou = box_iou(boxes, boxes)
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        if all(iou[i, j] <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_kept_boxes_equal_those_of_a_naive_loop(dims, threshold):
    boxes = draw_boxes(dims, (150, dims), limit=30, minimum=0, maximum=12)
    scores = noise(150)
    expected = suppress_by_naive_loop(boxes, scores, threshold)
    assert nms(boxes, scores, threshold).tolist() == expected


def test_boxes_of_different_groups_never_suppress_each_other():
    boxes = draw_boxes(3, (60, 3), limit=8, minimum=0, maximum=12)
    scores = noise(60)
    groups = torch.arange(60) * 7 % 3
    expected = []
    for group in range(3):
        index = torch.nonzero(groups == group)[:, 0]
        expected += index[nms(boxes[index], scores[index], 0.3)].tolist()
    kept = batched_nms(boxes, scores, groups, 0.3)
    assert sorted(kept.tolist()) == sorted(expected)
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "kept"),
    [
        # IoU of the first two is 3/5, the third touches neither
        ([[0.0, 0, 4, 4], [0, 1, 4, 5], [4, 5, 6, 6]], [0.5, 0.9, 0.1], 0.59, [1, 2]),
        ([[0.0, 0, 4, 4], [0, 1, 4, 5], [4, 5, 6, 6]], [0.5, 0.9, 0.1], 0.61, [1, 0, 2]),
        ([[0.0, 0, 2, 2], [0, 0, 2, 1]], [0.9, 0.8], 0.5, [0, 1]),  # equal is kept
        # ties are ordered by index; a suppressed box does not suppress
        ([[0.0, 0, 2, 4], [0, 0, 2, 6], [0, 0, 2, 9]], [0.5] * 3, 0.6, [0, 2]),
        ([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 3, 3]], [0.9, 0.8, 0.7], 0.0, [0, 1, 2]),  # empty
        (torch.zeros(0, 6), [], 0.5, []),
    ],
)
def test_kept_boxes_equal_those_found_by_hand(boxes, scores, threshold, kept):
    assert nms(torch.as_tensor(boxes), torch.tensor(scores), threshold).tolist() == kept


def test_tensors_that_do_not_fit_together_are_an_error():
    with pytest.raises(ContentError, match="do not fit together"):
        nms(torch.zeros(3, 4), torch.zeros(2), 0.5)


def test_each_dropped_box_belongs_to_the_highest_kept_box_that_overlaps_it():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 1, 4, 5], [0, 2, 4, 6], [9, 9, 10, 10], [0, 1, 4, 5]])
    scores = torch.tensor([0.9, 0.5, 0.8, 0.1, 0.7])
    groups = torch.tensor([1, 1, 1, 1, 2])
    # box 1 has an IoU of 0.6 with the kept boxes 0 and 2; box 4 is of another group
    assert cluster_boxes(boxes, scores, groups, 0.5).tolist() == [0, 0, 2, 3, 4]
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == [0, 2, 4, 3]
