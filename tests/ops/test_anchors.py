"""Anchors on grids of any number of axes."""

import pytest
import torch

from lesionseg.ops.anchors import AnchorLevel, grid_anchors, nearest_cells
from lesionseg.ops.boxes import split_box

LEVELS = [
    AnchorLevel((3, 4), (2, 4), ((3.0, 3.0), (2.0, 5.0))),
    AnchorLevel((1, 2), (6, 8), ((9.0, 9.0), (4.0, 12.0))),
]


def test_anchors_come_level_by_level_cell_by_cell_and_shape_by_shape() -> None:
    anchors = grid_anchors(LEVELS)
    assert anchors.shape == (3 * 4 * 2 + 2 * 2, 4)
    centre, side = split_box(anchors)
    assert centre[:4].tolist() == [[1, 2], [1, 2], [1, 6], [1, 6]]
    assert side[:2].tolist() == [[3, 3], [2, 5]]
    assert centre[24:].tolist() == [[3, 4], [3, 4], [3, 12], [3, 12]]


@pytest.mark.parametrize("k", [1, 4, 9, 50])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [((7, 9), (2, 3)), ((2, 8, 8), (5, 1, 2)), ((3, 1), (1, 1))],
)
def test_nearest_cells_are_those_of_the_full_distance_matrix(
    k: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    level = AnchorLevel(shape, stride, (tuple(1.0 for _ in shape),))
    extent = torch.tensor([n * s for n, s in zip(shape, stride, strict=True)])
    generator = torch.Generator().manual_seed(k)
    points = torch.rand((20, len(shape)), generator=generator) * extent * 1.2 - 0.1 * extent
    cells = nearest_cells(level, points, k)
    centres = split_box(grid_anchors([level]))[0]
    everything = (points[:, None] - centres[None]).square().sum(-1)
    expected = everything.sort(1).values[:, :k]
    torch.testing.assert_close(everything.gather(1, cells), expected)
