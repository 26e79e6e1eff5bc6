"""Assignment of anchors to lesions against a naive reference, and its guarantees."""

import pytest
import torch
from torch import Tensor

from lesionseg.ops.anchors import (
    BACKGROUND,
    AnchorLevel,
    assign_atss,
    grid_anchors,
)
from lesionseg.ops.boxes import box_iou, split_box

LEVELS_2D = [
    AnchorLevel((16, 16), (2, 2), ((3.0, 3.0), (4.0, 6.0))),
    AnchorLevel((8, 8), (4, 4), ((6.0, 6.0), (8.0, 12.0))),
]
LEVELS_3D = [
    AnchorLevel((4, 8, 8), (4, 2, 2), ((4.0, 3.0, 3.0),)),
    AnchorLevel((4, 4, 4), (4, 4, 4), ((6.0, 8.0, 8.0),)),
]


def _lesions(dims: int, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    limit = 32.0 if dims == 2 else 16.0
    start = torch.rand((n, dims), generator=generator) * (limit - 6)
    return torch.cat([start, start + 1 + torch.rand((n, dims), generator=generator) * 8], dim=1)


def _naive_atss(levels: list[AnchorLevel], boxes: Tensor, k: int) -> dict[int, int]:
    """Anchor -> lesion by the paper's algorithm, with loops and the whole distance matrix."""
    anchors = grid_anchors(levels)
    overlap = box_iou(boxes, anchors)
    wanted: dict[int, tuple[float, int]] = {}
    for lesion in range(len(boxes)):
        candidates, offset = [], 0
        for level in levels:
            here = split_box(anchors[offset : offset + level.n_anchors])[0]
            distance = (here - split_box(boxes[lesion : lesion + 1])[0]).square().sum(1)
            n = min(k * len(level.sizes), len(distance))
            candidates += (torch.argsort(distance, stable=True)[:n] + offset).tolist()
            offset += level.n_anchors
        values = overlap[lesion, candidates]
        threshold = values.mean() + values.std(correction=0)
        for anchor, value in zip(candidates, values.tolist(), strict=True):
            if value >= threshold and value > wanted.get(anchor, (0.0, 0))[0]:
                wanted[anchor] = (value, lesion)
    return {anchor: lesion for anchor, (_, lesion) in wanted.items()}


@pytest.mark.parametrize(("levels", "dims"), [(LEVELS_2D, 2), (LEVELS_3D, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_atss_agrees_with_the_papers_algorithm(
    levels: list[AnchorLevel], dims: int, seed: int
) -> None:
    boxes = _lesions(dims, 4, seed)
    found = assign_atss(levels, grid_anchors(levels), boxes, n_nearest=5)
    naive = _naive_atss(levels, boxes, 5)
    positive = {int(a): int(found[a]) for a in torch.nonzero(found >= 0)[:, 0]}
    served = set(naive.values())
    forced = {a for a, lesion in positive.items() if lesion not in served}
    assert {a: n for a, n in positive.items() if a not in forced} == naive


@pytest.mark.parametrize("side", [0.5, 1.0, 2.0, 3.0])
def test_a_lesion_of_any_size_and_place_has_an_anchor(side: float) -> None:
    generator = torch.Generator().manual_seed(int(side * 2))
    start = torch.rand((40, 2), generator=generator) * (32 - side)
    boxes = torch.cat([start, start + side], dim=1)
    found = assign_atss(LEVELS_2D, grid_anchors(LEVELS_2D), boxes)
    assert set(found[found >= 0].tolist()) == set(range(40))


def test_no_lesion_is_background_and_no_anchor_gives_an_empty_assignment() -> None:
    found = assign_atss(LEVELS_2D, grid_anchors(LEVELS_2D), torch.zeros((0, 4)))
    assert set(found.tolist()) == {BACKGROUND}
    assert assign_atss([], torch.zeros((0, 4)), torch.zeros((1, 4))).shape == (0,)
