"""Anchors: boxes laid out on the grid of each pyramid level, for any number of axes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AnchorLevel:
    """One pyramid level: its grid and the anchors at each of its cells.

    `shape`: cells along each axis; `stride`: voxels from one to the next; `sizes`: side lengths of
    each anchor in voxels. The centre of cell i lies at (i + ½) · stride.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]

    @property
    def n_anchors(self) -> int:
        """Anchors of the whole level."""
        n = len(self.sizes)
        for cells in self.shape:
            n *= cells
        return n


def grid_anchors(
    levels: Sequence[AnchorLevel], *, device: torch.device | None = None
) -> Float[Tensor, "n two_d"]:
    """All anchors `[n, 2·dims]` float32 in voxels of the tile: starts, then stops.

    In the order in which heads give their outputs: level by level, cells in C order, the anchors of
    a cell in that of `sizes`. Anchors may reach beyond the tile. No level gives `[0, 0]`.

    >>> grid_anchors([AnchorLevel((1, 2), (4, 4), ((2.0, 6.0),))]).tolist()
    [[1.0, -1.0, 3.0, 5.0], [1.0, 3.0, 3.0, 9.0]]
    """
    if not levels:
        return torch.zeros((0, 0), device=device)
    return torch.cat([_level_anchors(level, device) for level in levels])


def _level_anchors(level: AnchorLevel, device: torch.device | None) -> Tensor:
    axes = [
        (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * s
        for n, s in zip(level.shape, level.stride, strict=True)
    ]
    centres = torch.cartesian_prod(*axes).reshape(-1, 1, len(axes))
    half = torch.tensor(level.sizes, device=device, dtype=torch.float32)[None] / 2
    return torch.cat([centres - half, centres + half], dim=-1).flatten(0, 1)


def nearest_cells(
    level: AnchorLevel, points: Float[Tensor, "m d"], k: int
) -> tuple[Tensor, Tensor]:
    """The `k` cells of a level whose centres lie nearest to each point, ties by index.

    Returns cell numbers in C order `[m, k']` int64 and squared distances `[m, k']`, nearest first;
    k' is smaller than `k` where the level has fewer cells. They lie among the `k` nearest cells
    along every axis, so that no distance to all cells is ever taken.
    """
    dims = len(level.shape)
    columns, offsets = [], []
    for axis, (n, stride) in enumerate(zip(level.shape, level.stride, strict=True)):
        width = min(k, n)
        place = points[:, axis] / stride - 0.5
        first = (place - (width - 1) / 2).round().clamp(0, n - width)
        cells = first[:, None].long() + torch.arange(width, device=points.device)
        columns.append(cells)
        offsets.append(((cells - place[:, None]) * stride).square())
    number = torch.zeros((len(points),) + (1,) * dims, dtype=torch.int64, device=points.device)
    distance = torch.zeros(number.shape, dtype=points.dtype, device=points.device)
    for axis, n in enumerate(level.shape):
        view = [len(points)] + [-1 if a == axis else 1 for a in range(dims)]
        number = number * n + columns[axis].view(view)
        distance = distance + offsets[axis].view(view)
    number, distance = number.flatten(1), distance.flatten(1)
    order = torch.argsort(distance, dim=1, stable=True)[:, :k]
    return number.gather(1, order), distance.gather(1, order)


def centred_iou(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """IoU of boxes of these side lengths `[n, dims]`, `[m, dims]` that share their centre.

    >>> centred_iou(torch.tensor([[2.0, 2.0]]), torch.tensor([[2.0, 4.0]])).tolist()
    [[0.5]]
    """
    shared = torch.minimum(a[:, None], b[None]).prod(-1)
    return shared / (a.prod(-1)[:, None] + b.prod(-1)[None] - shared)


def cell_anchors(cells: Tensor, n_shapes: int) -> Tensor:
    """Anchor numbers within a level `[m, k · n_shapes]` of cells `[m, k]`."""
    shapes = torch.arange(n_shapes, device=cells.device)
    return (cells[..., None] * n_shapes + shapes).flatten(-2)


def level_offsets(levels: Sequence[AnchorLevel]) -> tuple[int, ...]:
    """Number of the first anchor of each level."""
    counts = [level.n_anchors for level in levels]
    return tuple(sum(counts[:i]) for i in range(len(counts)))
