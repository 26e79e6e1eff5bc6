"""Boxes on the file's grid, and candidates of two heads as one list."""

import numpy as np
import pytest
import torch

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.inference.boxes import Boxes, box_candidates, fuse, restore_boxes
from lesionseg.plan.plan import CandidateRule

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
