"""Weighted box clustering by hand and against loops."""

import pytest
import torch

from lesionseg.errors import ContentError
from lesionseg.ops.boxes import box_iou
from lesionseg.ops.clustering import weighted_box_clustering


def test_missing_predictions_damp_the_score() -> None:
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(2, 1)
    scores = torch.tensor([0.8, 0.4])
    found = weighted_box_clustering(box, scores, 0.5, expected=torch.tensor([4.0, 4.0]))
    assert found.scores.tolist() == pytest.approx([1.2 / 4])
    assert found.size.tolist() == [2]


def test_boxes_are_averaged_by_weight_overlap_and_score() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 2.0, 4.0, 6.0]])  # IoU 1/3
    found = weighted_box_clustering(
        boxes, torch.tensor([0.9, 0.6]), 0.2, weights=torch.tensor([1.0, 0.5])
    )
    near, far = 1.0 * 0.9, 0.5 / 3 * 0.6
    assert found.boxes[0, 1].item() == pytest.approx(far * 2 / (near + far))
    assert found.scores[0].item() == pytest.approx((near + far) / (1 + 0.5 / 3))


@pytest.mark.parametrize("dims", [2, 3])
def test_clusters_agree_with_a_plain_loop(dims: int) -> None:
    generator = torch.Generator().manual_seed(dims)
    start = torch.rand((80, dims), generator=generator) * 12
    boxes = torch.cat([start, start + 4], dim=1)
    scores = torch.rand(80, generator=generator)
    found = weighted_box_clustering(boxes, scores, 0.3)
    overlap, left, expected = box_iou(boxes, boxes), set(range(80)), []
    for i in torch.argsort(scores, descending=True).tolist():
        if i not in left:
            continue
        members = [j for j in sorted(left) if j == i or overlap[i, j] > 0.3]
        left -= set(members)
        factor = overlap[i, members]
        expected.append(float((factor * scores[members]).sum() / factor.sum()))
    assert found.scores.tolist() == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert int(found.size.sum()) == 80


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ContentError, match="do not fit"):
        weighted_box_clustering(torch.zeros((2, 4)), torch.zeros(3), 0.5)
