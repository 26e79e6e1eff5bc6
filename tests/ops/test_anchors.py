"""Anchors on grids of any number of axes, and their assignment to lesions."""

import pytest
import torch

from lesionseg.ops.anchors import (
    BACKGROUND,
    N_NEAREST,
    AnchorLevel,
    assign_atss,
    grid_anchors,
    nearest_cells,
)
from lesionseg.ops.boxes import box_iou, split_box
from tests.boxes import draw_boxes

LEVELS = {
    2: [
        AnchorLevel((16, 16), (2, 2), ((3.0, 3.0), (4.0, 6.0))),
        AnchorLevel((8, 8), (4, 4), ((6.0, 6.0), (8.0, 12.0))),
    ],
    3: [
        AnchorLevel((4, 8, 8), (4, 2, 2), ((4.0, 3.0, 3.0),)),
        AnchorLevel((4, 4, 4), (4, 4, 4), ((6.0, 8.0, 8.0),)),
    ],
}


def test_anchors_are_ordered_by_level_then_cell_then_size():
    fine = AnchorLevel((3, 4), (2, 4), ((3.0, 3.0), (2.0, 5.0)))
    coarse = AnchorLevel((1, 2), (6, 8), ((9.0, 9.0), (4.0, 12.0)))
    anchors = grid_anchors([fine, coarse])
    assert anchors.shape == (3 * 4 * 2 + 2 * 2, 4)
    centre, side = split_box(anchors)
    assert centre[:4].tolist() == [[1, 2], [1, 2], [1, 6], [1, 6]]
    assert side[:2].tolist() == [[3, 3], [2, 5]]
    assert centre[24:].tolist() == [[3, 4], [3, 4], [3, 12], [3, 12]]
    assert grid_anchors([]).shape == (0, 0)


@pytest.mark.parametrize("k", [1, 4, 9, 50])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [((7, 9), (2, 3)), ((2, 8, 8), (5, 1, 2)), ((3, 1), (1, 1))],
)
def test_nearest_cells_are_those_of_the_full_distance_matrix(k, shape, stride):
    level = AnchorLevel(shape, stride, (tuple(1.0 for _ in shape),))
    extent = torch.tensor([n * s for n, s in zip(shape, stride, strict=True)])
    generator = torch.Generator().manual_seed(k)
    points = torch.rand((20, len(shape)), generator=generator) * extent * 1.2 - 0.1 * extent
    cells = nearest_cells(level, points, k)
    centres = split_box(grid_anchors([level]))[0]
    distances = (points[:, None] - centres[None]).square().sum(-1)
    expected = distances.sort(1).values[:, :k]
    torch.testing.assert_close(distances.gather(1, cells), expected)


def assign_by_naive_atss(levels, boxes):
    """Assign anchors to lesions by the paper's algorithm, with loops and all distances."""
    anchors = grid_anchors(levels)
    overlap = box_iou(boxes, anchors)
    best = {}
    for lesion in range(len(boxes)):
        candidates = []
        offset = 0
        for level in levels:
            centres = split_box(anchors[offset : offset + level.n_anchors])[0]
            distance = (centres - split_box(boxes[lesion : lesion + 1])[0]).square().sum(1)
            n = min(N_NEAREST * len(level.sizes), len(distance))
            candidates += (torch.argsort(distance, stable=True)[:n] + offset).tolist()
            offset += level.n_anchors
        values = overlap[lesion, candidates]
        threshold = values.mean() + values.std(correction=0)
        for anchor, value in zip(candidates, values.tolist(), strict=True):
            if value >= threshold and value > best.get(anchor, (0.0, 0))[0]:
                best[anchor] = (value, lesion)
    return {anchor: lesion for anchor, (_, lesion) in best.items()}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_atss_agrees_with_the_papers_algorithm(dims, seed):
    limit = 32.0 if dims == 2 else 16.0
    boxes = draw_boxes(seed, (4, dims), limit - 6, minimum=1, maximum=9)
    found = assign_atss(LEVELS[dims], grid_anchors(LEVELS[dims]), boxes)
    naive = assign_by_naive_atss(LEVELS[dims], boxes)
    with_anchors = set(naive.values())  # remaining lesions get their best candidate
    positive = {a: n for a, n in enumerate(found.tolist()) if n >= 0 and n in with_anchors}
    assert positive == naive


def test_missed_lesions_get_their_best_anchor_but_not_the_only_one_of_another_lesion():
    level = AnchorLevel((2, 3), (4, 4), ((4.0, 4.0),))  # every anchor is a candidate of each lesion
    anchors = grid_anchors([level])
    n_rescued = 0
    for seed in range(600):
        boxes = draw_boxes(seed, (5, 2), torch.tensor([7.0, 11.0]), minimum=0.5, maximum=9.5)
        owner = assign_by_naive_atss([level], boxes)
        overlap = box_iou(boxes, anchors)
        for lesion in sorted({*range(5)} - {*owner.values()}, key=lambda i: -overlap[i].max()):
            owners = [*owner.values()]
            free = [a for a in range(6) if owners.count(owner.get(a, -1)) != 1]
            if free and overlap[lesion, free].max() > 0:  # otherwise the nearest of equal ones
                owner[max(free, key=lambda a: overlap[lesion, a])] = lesion
                n_rescued += 1
            else:
                break
        else:
            found = assign_atss([level], anchors, boxes).tolist()
            assert {a: n for a, n in enumerate(found) if n >= 0} == owner, seed
    assert n_rescued > 50


@pytest.mark.parametrize("side", [0.5, 1.0, 2.0, 3.0])
def test_lesion_of_any_size_and_position_has_an_anchor(side):
    boxes = draw_boxes(int(side * 2), (40, 2), 32 - side, minimum=side, maximum=side)
    found = assign_atss(LEVELS[2], grid_anchors(LEVELS[2]), boxes)
    assert set(found[found >= 0].tolist()) == set(range(40))


def test_all_anchors_are_background_without_lesions():
    found = assign_atss(LEVELS[2], grid_anchors(LEVELS[2]), torch.zeros((0, 4)))
    assert set(found.tolist()) == {BACKGROUND}
    assert assign_atss([], torch.zeros((0, 4)), torch.zeros((1, 4))).shape == (0,)
