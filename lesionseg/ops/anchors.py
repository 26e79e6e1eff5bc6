"""Anchors on a feature pyramid: their boxes, assignment to lesions (ATSS), ignored anchors."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lesionseg.ops.boxes import box_volume, paired_iou, split_box


@dataclass(frozen=True)
class AnchorLevel:
    """One pyramid level: its grid and the anchors at each of its cells.

    `shape` is the number of cells along each axis, and `stride` the number of voxels from one cell
    to the next. `sizes` contains the side lengths of each anchor in voxels. The centre of cell i is
    at (i + ½) · stride.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]

    @property
    def n_anchors(self) -> int:
        """The number of anchors of the level: sizes times cells."""
        return len(self.sizes) * prod(self.shape)


def grid_anchors(
    levels: Sequence[AnchorLevel], *, device: torch.device | None = None
) -> Float[Tensor, "n two_d"]:
    """Return the anchors of all levels `[n, 2·dims]` float32 in voxels: starts, then stops.

    Anchors have the order of a head's outputs: level by level, cells in C order, and the anchors of
    a cell in the order of `sizes`. They may extend beyond the tile. Without levels the shape is
    `[0, 0]`.

    >>> grid_anchors([AnchorLevel((1, 2), (4, 4), ((2.0, 6.0),))]).tolist()
    [[1.0, -1.0, 3.0, 5.0], [1.0, 3.0, 3.0, 9.0]]
    """
    if not levels:
        return torch.zeros((0, 0), device=device)
    anchors = []
    for level in levels:
        axes = [
            (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * stride
            for n, stride in zip(level.shape, level.stride, strict=True)
        ]
        centres = torch.cartesian_prod(*axes).reshape(-1, 1, len(axes))
        half = torch.tensor(level.sizes, device=device, dtype=torch.float32)[None] / 2
        anchors.append(torch.cat([centres - half, centres + half], dim=-1).flatten(0, 1))
    return torch.cat(anchors)


def nearest_cells(
    level: AnchorLevel, points: Float[Tensor, "m d"], k: int
) -> Int64[Tensor, "m near"]:
    """Find the `k` cells of a level whose centres are nearest to each point.

    Only combinations of the `k` nearest cells along each axis are compared, so that the distances
    to all other cells need not be computed.

    Args:
        level: The pyramid level.
        points: Positions in voxels of the tile, `[m, dims]`.
        k: How many cells to find for each point.

    Returns:
        Flat indices of cells (C order) `[m, k']`, nearest first; of equal distances, the lower
        index first. k' is smaller than `k` if the level has fewer cells.
    """
    dims = len(level.shape)
    # For each axis: the k nearest cells of each point, and their squared distances from the point.
    cells_along = []
    squares_along = []
    for axis, (n, stride) in enumerate(zip(level.shape, level.stride, strict=True)):
        n_near = min(k, n)
        position = points[:, axis] / stride - 0.5  # in cells
        first = (position - (n_near - 1) / 2).round().clamp(0, n - n_near)
        cells = first[:, None].long() + torch.arange(n_near, device=points.device)
        cells_along.append(cells)
        squares_along.append(((cells - position[:, None]) * stride).square())
    # Combine the axes by broadcasting: `[m, k, k, …]`, with at most k cells along each axis.
    flat_index = torch.zeros((len(points),) + (1,) * dims, dtype=torch.int64, device=points.device)
    squared_distance = torch.zeros(flat_index.shape, dtype=points.dtype, device=points.device)
    for axis, n in enumerate(level.shape):
        shape = [len(points)] + [-1 if a == axis else 1 for a in range(dims)]
        flat_index = flat_index * n + cells_along[axis].view(shape)
        squared_distance = squared_distance + squares_along[axis].view(shape)
    order = torch.argsort(squared_distance.flatten(1), dim=1, stable=True)[:, :k]
    return flat_index.flatten(1).gather(1, order)


def centred_iou(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Compute the IoU of each pair of two sets of boxes, as if all boxes had the same centre.

    `a` and `b` contain the side lengths of the boxes. The IoU thus compares only their shapes.

    >>> centred_iou(torch.tensor([[2.0, 2.0]]), torch.tensor([[2.0, 4.0]])).tolist()
    [[0.5]]
    """
    shared = torch.minimum(a[:, None], b[None]).prod(-1)
    return shared / (a.prod(-1)[:, None] + b.prod(-1)[None] - shared)


# cells of each level whose anchors are candidates of a lesion (nnDetection uses 4)
N_NEAREST = 9
BACKGROUND = -1
IGNORED = -2


def _nearest_anchors(levels: Sequence[AnchorLevel], centres: Tensor) -> Tensor:
    """Return the candidate anchors of each lesion: all anchors at its nearest cells of each level.

    Args:
        levels: The pyramid levels.
        centres: Centres of the lesions `[m, dims]` in voxels. Each level contributes the anchors
            at the `N_NEAREST` cells that are nearest to a centre.

    Returns:
        Rows in the result of `grid_anchors`, `[m, k]`.
    """
    first_row = 0  # the row of the level's first anchor
    rows = []
    for level in levels:
        cells = nearest_cells(level, centres, N_NEAREST)
        size_index = torch.arange(len(level.sizes), device=centres.device)
        rows.append((cells[..., None] * len(size_index) + size_index).flatten(1) + first_row)
        first_row += level.n_anchors
    return torch.cat(rows, dim=1)


def assign_atss(
    levels: Sequence[AnchorLevel],
    anchors: Float[Tensor, "n two_d"],
    boxes: Float[Tensor, "m two_d"],
) -> Int64[Tensor, " n"]:
    """Assign anchors to lesions by adaptive training sample selection (ATSS).

    Candidates of a lesion are the anchors at the `N_NEAREST` cells of each level around its centre.
    A candidate is positive if its IoU is above 0 and reaches the mean plus the standard deviation
    of the candidates' IoUs. Unlike in the paper, its centre may be outside of the lesion: a lesion
    of two voxels would have no anchor otherwise. An anchor that is positive for several lesions
    belongs to the lesion with the highest IoU. A lesion without an anchor receives the best of its
    candidates that are not the only anchor of another lesion. Temporary memory grows with
    `m · N_NEAREST^dims`, not with `m · n`.

    Args:
        levels: The pyramid levels, as given to `grid_anchors`.
        anchors: The result of `grid_anchors`.
        boxes: The lesions; rows of zeros are ignored.

    Returns:
        The row of the assigned lesion for each anchor, or `BACKGROUND`. Without lesions all anchors
        are background.

    Source: Zhang et al. 2020, arXiv 1912.02424, algorithm 1.
    """
    if len(boxes) == 0 or len(anchors) == 0:
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    candidates = _nearest_anchors(levels, split_box(boxes.float())[0])
    # the lesion of each candidate, `[m, k]` as `candidates`
    owner = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(candidates)
    overlap = paired_iou(anchors[candidates.flatten()], boxes[owner.flatten()]).view_as(candidates)
    # the deviation without Bessel's correction, which would divide by 0 for a single candidate
    threshold = overlap.mean(1) + overlap.std(1, correction=0)
    # an anchor belongs to the lesion with the highest overlap; if several are equal, to the first
    positive_overlap = torch.where((overlap >= threshold[:, None]) & (overlap > 0), overlap, 0)
    flat_candidates = candidates.flatten()
    no_lesion = len(boxes)  # above all rows, so that `amin` prefers a lesion
    best = torch.zeros(len(anchors), device=overlap.device).scatter_reduce_(
        0, flat_candidates, positive_overlap.flatten(), "amax"
    )
    is_best = (positive_overlap > 0) & (positive_overlap == best[candidates])
    lesion = torch.full((len(anchors),), no_lesion, device=owner.device)
    lesion.scatter_reduce_(
        0, flat_candidates, torch.where(is_best, owner, no_lesion).flatten(), "amin"
    )
    assigned = torch.where(lesion < no_lesion, lesion, BACKGROUND)
    _assign_missed_lesions(assigned, candidates, overlap, exists=box_volume(boxes) > 0)
    return assigned


def _assign_missed_lesions(
    assigned: Tensor, candidates: Tensor, overlap: Tensor, exists: Tensor
) -> None:
    """Assign an anchor to every lesion that has none, in place.

    The lesion gets the free candidate with the highest IoU. A candidate is free if it is not the
    only anchor of another lesion. Lesions with the highest IoU come first. A lesion without a free
    candidate remains without an anchor.

    Args:
        assigned: The row of the lesion of each anchor `[n]`, or `BACKGROUND`.
        candidates: Rows of anchors `[m, k]` for each lesion.
        overlap: IoU of the candidates `[m, k]`.
        exists: False for rows of zeros, which are no lesions `[m]`.
    """
    # The number of anchors of each lesion: + 1, because the background (−1) is counted first.
    # `clamp` would also count ignored anchors (−2) as background.
    n_anchors = torch.bincount(assigned.clamp(min=-1) + 1, minlength=len(candidates) + 1)[1:]
    missed = (exists & (n_anchors == 0)).nonzero()[:, 0]
    for lesion in missed[torch.argsort(overlap.amax(1)[missed], descending=True, stable=True)]:
        anchors = candidates[lesion]
        lesion_of_anchor = assigned[anchors]
        # `clamp` only avoids negative indices: background is free by the first condition
        is_free = (lesion_of_anchor < 0) | (n_anchors[lesion_of_anchor.clamp(min=0)] > 1)
        best = torch.where(is_free, overlap[lesion], -1).argmax()
        if is_free[best]:
            if lesion_of_anchor[best] >= 0:
                n_anchors[lesion_of_anchor[best]] -= 1
            n_anchors[lesion] += 1
            assigned[anchors[best]] = lesion
