import numpy as np
import pytest
import torch

from lesionseg.ops import box_iou, box_volume
from lesionseg.ops.boxes import paired_giou, paired_iou


def random_boxes(rng, n, dims):
    start = rng.integers(0, 10, (n, dims))
    return np.concatenate([start, start + rng.integers(0, 8, (n, dims))], axis=1)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_iou_equals_counting_voxels(dims):
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 6, dims), random_boxes(rng, 5, dims)
    found = box_iou(torch.tensor(a).float(), torch.tensor(b).float())
    for i, j in np.ndindex(6, 5):
        grids = []
        for box in (a[i], b[j]):
            grid = np.zeros((20,) * dims, dtype=bool)
            grid[tuple(slice(s, e) for s, e in zip(box[:dims], box[dims:], strict=True))] = True
            grids.append(grid)
        union = (grids[0] | grids[1]).sum()
        expected = (grids[0] & grids[1]).sum() / union if union else 0.0
        assert found[i, j].item() == pytest.approx(expected)


def test_volume_and_inverted_boxes():
    boxes = torch.tensor([[0.0, 0, 0, 2, 3, 4], [5.0, 5, 5, 4, 6, 6]])
    assert box_volume(boxes).tolist() == [24.0, 0.0]


def test_no_boxes_give_an_empty_matrix():
    assert box_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_half_precision_does_not_overflow():
    box = torch.tensor([[0.0, 0, 0, 500, 500, 500]], dtype=torch.float16)
    assert box_iou(box, box).item() == 1.0


def test_iou_does_not_depend_on_the_order_of_axes():
    rng = np.random.default_rng(3)
    boxes = torch.tensor(random_boxes(rng, 8, 3)).float()
    swapped = boxes[:, [2, 0, 1, 5, 3, 4]]
    assert torch.equal(box_iou(boxes, boxes), box_iou(swapped, swapped))


def test_giou_by_hand() -> None:
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor([[0.0, 0, 2, 2], [2, 2, 4, 4], [0, 1, 2, 3]])
    # equal: 1; corner to corner: 0 - 8/16; half shared: 2/6 - 0
    expected = torch.tensor([1.0, -0.5, 1 / 3])
    torch.testing.assert_close(paired_giou(box.repeat(3, 1), others), expected)


def test_giou_of_boxes_without_volume_is_finite_and_no_boxes_give_none() -> None:
    point = torch.zeros((1, 6), requires_grad=True)
    value = paired_giou(point, torch.zeros((1, 6)))
    value.sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert bool(torch.isfinite(value).all())
    assert point.grad is not None
    assert bool(torch.isfinite(point.grad).all())
    assert paired_giou(torch.zeros((0, 4)), torch.zeros((0, 4))).shape == (0,)


def test_paired_iou_is_the_diagonal_of_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.rand((30, 3), generator=generator) * 4
    boxes = torch.cat([start, start + 2], dim=1)
    torch.testing.assert_close(
        paired_iou(boxes, boxes.flip(0)), box_iou(boxes, boxes.flip(0)).diagonal()
    )
