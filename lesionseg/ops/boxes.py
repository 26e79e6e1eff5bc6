"""Box arithmetic: IoU, GIoU, volume, offsets from anchors, boxes of the lesions in a tile.

Boxes `[n, 2·dims]` have any number of axes: all starts, then all stops, half-open, in voxels.
"""

import itertools
from math import log

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from numpy.typing import ArrayLike
from torch import Tensor

from lesionseg.core import Geometry
from lesionseg.core.arrays import Integers, Numbers

_MAX_PAIRS = 1_000_000  # pairs that are compared at once, which bounds the memory
MAX_LOG_RATIO = log(1000 / 16)  # limits the logarithm of a side ratio, as in Fast R-CNN


def box_volume(boxes: Float[Tensor, "*n two_d"]) -> Float[Tensor, "*n"]:
    """Compute the volume (2-D: area) of each box.

    Args:
        boxes: `[n, 2·dims]`, starts then stops, in voxels.

    Returns:
        Volumes `[n]` in voxels; 0 if a stop is below its start. Without boxes the result is empty.
    """
    start, stop = boxes.chunk(2, dim=-1)
    return _product((stop - start).clamp(min=0))


def is_degenerate(boxes: Float[Tensor, "n two_d"]) -> Tensor:
    """Return a boolean tensor `[n]`: True for boxes with a NaN or infinity, or without volume."""
    # `nan_to_num` only keeps NaN out of the volumes
    return ~torch.isfinite(boxes).all(-1) | (box_volume(boxes.nan_to_num()) <= 0)


def split_box(boxes: Float[Tensor, "*n two_d"]) -> tuple[Tensor, Tensor]:
    """Return the centres and side lengths, each `[…, dims]`, of boxes `[…, 2·dims]`."""
    start, stop = boxes.chunk(2, dim=-1)
    return (start + stop) / 2, stop - start


def move_boxes(boxes: ArrayLike, source: Geometry, target: Geometry) -> Numbers:
    """Convert boxes `[n, 2·dims]` in voxels of the grid `source` to voxels of the grid `target`.

    The corners of a box are transformed through millimetres, and the result is the smallest box
    that contains them. It is exact if the grids differ by spacing, flips, axis order and shifts,
    and larger than the input if they are oblique to each other. Boxes are not clipped at the border
    of `target`. Without boxes the result is `[0, 2·dims]`.

    >>> coarse = Geometry.from_spacing((4, 4), (2.0, 2.0))
    >>> move_boxes([[0, 1, 2, 3]], coarse, Geometry.from_spacing((8, 8), (1.0, 1.0))).tolist()
    [[-0.5, 1.5, 3.5, 5.5]]
    """
    dims = source.dims
    sides = np.asarray(boxes, float).reshape(-1, 2, dims)
    # whether a corner is at the start (0) or the stop (1) along each axis, `[2^dims, dims]`
    picks = np.array(list(itertools.product((0, 1), repeat=dims)))
    corners = sides[:, picks, np.arange(dims)] - 0.5  # faces are half a voxel before centres
    points = source.to_mm(corners.reshape(-1, dims))
    index = target.to_index(points).reshape(-1, len(picks), dims) + 0.5
    return np.concatenate([index.min(axis=1), index.max(axis=1)], axis=1)


def box_iou(a: Float[Tensor, "n two_d"], b: Float[Tensor, "m two_d"]) -> Float[Tensor, "n m"]:
    """Compute the intersection over union of each box in `a` with each box in `b`.

    Half precision is converted to float32, because volumes would overflow.

    Args:
        a: Boxes `[n, 2·dims]`, starts then stops, half-open, in voxels.
        b: Boxes `[m, 2·dims]`.

    Returns:
        IoU `[n, m]` in [0, 1]; 0 for boxes without volume. Without boxes the matrix is empty.

    >>> a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> box_iou(a, torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 6.0, 6.0]])).tolist()
    [[0.3333333432674408, 0.0]]
    """
    return paired_iou(a[:, None], b[None])


def overlapping_pairs(
    boxes: Tensor, labels: Integers, others: Tensor, other_labels: Integers
) -> tuple[Integers, Integers, Numbers]:
    """Find all pairs of a box in `boxes` and a box in `others` that overlap and share the label.

    Args:
        boxes: First set `[n, 2·dims]`, starts then stops, half-open.
        labels: Label of each box in `boxes`, `[n]`.
        others: Second set `[m, 2·dims]`.
        other_labels: Label of each box in `others`, `[m]`.

    Returns:
        Three arrays `[pairs]`: row in `boxes`, row in `others`, and IoU, which is above 0. Pairs
        are sorted by row in `boxes`, then by row in `others`.
    """
    columns = [np.zeros((3, 0))]
    step = max(1, _MAX_PAIRS // max(len(others), 1))  # the whole table may not fit into memory
    for first in range(0, len(boxes), step):
        chunk = slice(first, first + step)
        iou = box_iou(boxes[chunk], others).numpy()
        row, other = np.nonzero((labels[chunk, np.newaxis] == other_labels) & (iou > 0))
        columns.append(np.stack([first + row, other, iou[row, other]]))
    rows, other_rows, ious = np.concatenate(columns, axis=1)
    return rows.astype(np.int64), other_rows.astype(np.int64), ious


def paired_iou(a: Float[Tensor, "*n two_d"], b: Float[Tensor, "*m two_d"]) -> Float[Tensor, "..."]:
    """Compute the IoU of each box in `a` with the box in the same row of `b`.

    Half precision is converted to float32. Boxes without volume have an IoU of 0. Leading axes are
    broadcast against each other.
    """
    shared, union = _overlap(_at_least_float32(a), _at_least_float32(b))
    return torch.where(shared > 0, shared / union, torch.zeros_like(shared))


def paired_giou(a: Float[Tensor, "n two_d"], b: Float[Tensor, "n two_d"]) -> Float[Tensor, " n"]:
    """Compute the generalised IoU of each box in `a` with the box in the same row of `b`.

    The generalised IoU is the IoU minus the share of the smallest enclosing box that neither box
    covers, in [−1, 1] (Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1). An enclosing box
    without volume counts as covered.

    >>> a, b = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0, 3.0]])
    >>> paired_giou(a, b).tolist()
    [-0.3333333432674408]
    """
    a = _at_least_float32(a)
    b = _at_least_float32(b)
    shared, union = _overlap(a, b)
    start_a, stop_a = a.chunk(2, dim=-1)
    start_b, stop_b = b.chunk(2, dim=-1)
    hull = _product((torch.maximum(stop_a, stop_b) - torch.minimum(start_a, start_b)).clamp(min=0))
    return shared / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


_TINY = 1e-9  # smaller than any voxel; keeps quotients and their gradients finite


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the volumes `[*n]` of intersection and union of each box in `a` with that in `b`."""
    start_a, stop_a = a.chunk(2, dim=-1)
    start_b, stop_b = b.chunk(2, dim=-1)
    start = torch.maximum(start_a, start_b)
    shared = _product((torch.minimum(stop_a, stop_b) - start).clamp(min=0))
    return shared, box_volume(a) + box_volume(b) - shared


def _product(sides: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """Multiply the side lengths `[*n, dims]` of each box from left to right, to get its volume.

    The compiled loop of `nms` multiplies in the same order. The two functions therefore round
    alike, and agree on an IoU that is exactly at the threshold.
    """
    product = sides[..., 0]
    for axis in range(1, sides.shape[-1]):
        product = product * sides[..., axis]
    return product


def _at_least_float32(boxes: Tensor) -> Tensor:
    """Convert boxes in half precision or integers to float32. float64 stays float64."""
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def encode_boxes(
    boxes: Float[Tensor, "n two_d"], anchors: Float[Tensor, "n two_d"]
) -> Float[Tensor, "n two_d"]:
    """Compute the offsets of boxes from anchors, which a detector learns to predict.

    An offset contains the shifts of the centre along each axis, then the logarithms of the side
    ratios: shift = (centre − anchor's centre) / anchor's side, and ratio = log(side / anchor's
    side) (Girshick et al. 2014, appendix C). Box i belongs to anchor i. Sides below 10⁻³ voxels
    count as 10⁻³. Without boxes the result is empty.

    >>> anchor = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    >>> encode_boxes(torch.tensor([[0.0, 1.0, 4.0, 5.0]]), anchor).tolist()
    [[0.0, 0.25, 0.0, 0.0]]
    """
    centre, side = split_box(boxes)
    anchor_centre, anchor_side = split_box(anchors)
    ratio = side.clamp(min=1e-3) / anchor_side
    return torch.cat([(centre - anchor_centre) / anchor_side, ratio.log()], dim=-1)


def decode_boxes(
    deltas: Float[Tensor, "*n two_d"], anchors: Float[Tensor, "*m two_d"]
) -> Float[Tensor, "*n two_d"]:
    """Compute boxes in float32 from predicted offsets and anchors; the inverse of `encode_boxes`.

    Logarithms of ratios are at most log(1000/16), so that no side overflows; NaN stays NaN.
    """
    shift, ratio = deltas.float().chunk(2, dim=-1)
    anchor_centre, anchor_side = split_box(anchors)
    centre = anchor_centre + shift * anchor_side
    half = ratio.clamp(max=MAX_LOG_RATIO).exp() * anchor_side / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def tile_boxes(
    instances: Integer[Tensor, "b *tile"], labels: Integer[Tensor, "b *tile"]
) -> tuple[Float[Tensor, "b m two_d"], Int64[Tensor, "b m"]]:
    """Find the boxes and labels of the lesions in a batch of tiles, the targets of a detector.

    Args:
        instances: Lesion ids, 0 for background.
        labels: Label values of the same voxels.

    Returns:
        Boxes `[b, m, 2·dims]` in float32 (starts, then stops; half-open voxels), and the label of
        each lesion's first voxel `[b, m]`. The m rows of a tile are in the order of ids. There is
        at least one row, and the rows after the last lesion of a tile are 0.
    """
    n_tiles = len(instances)
    shape = instances.shape[1:]
    flat = instances.flatten()
    voxels = flat.nonzero()[:, 0]  # flat indices of all lesion voxels of the batch
    tile = voxels // shape.numel()
    ids = flat[voxels].long()
    n_ids = int(ids.max()) + 1 if len(ids) else 1
    # One key per lesion, ascending by tile, then id. `owner` is the index of each voxel's lesion.
    keys, owner = torch.unique(tile * n_ids + ids, return_inverse=True)
    row_of_lesion, m = _rows_of_lesions(keys // n_ids, n_tiles)
    rows = row_of_lesion[owner]  # the output row of each voxel

    def reduce_rows(values: Tensor, how: str) -> Tensor:
        """Combine `values` `[voxels]` of the voxels of each output row by `how`; 0 if none.

        `how` is `amin` (minimum) or `amax` (maximum).
        """
        empty = torch.zeros(n_tiles * m, dtype=torch.int64, device=flat.device)
        return empty.scatter_reduce_(0, rows, values, how, include_self=False)

    low = []
    high = []
    stride = shape.numel()  # voxels between neighbours along an axis, in a flat tile
    for n in shape:
        stride //= n
        coordinate = voxels // stride % n  # `% n` also removes the number of the tile
        low.append(reduce_rows(coordinate, "amin"))
        high.append(reduce_rows(coordinate + 1, "amax"))
    highest_id = reduce_rows(ids, "amax")  # 0 for a row without a lesion
    # the label of the first voxel of each row's lesion
    label = torch.where(highest_id > 0, labels.flatten()[reduce_rows(voxels, "amin")].long(), 0)
    return torch.stack([*low, *high], dim=1).float().view(n_tiles, m, -1), label.view(n_tiles, m)


def _rows_of_lesions(
    tile_of_lesion: Int64[Tensor, " n"], n_tiles: int
) -> tuple[Int64[Tensor, " n"], int]:
    """Return the output row of each lesion in a table with m rows per tile, and m.

    m is the largest number of lesions in a tile, at least 1. The row is m · tile + the rank of the
    lesion in its tile.

    Args:
        tile_of_lesion: The tile of each lesion, ascending.
        n_tiles: The number of tiles.
    """
    per_tile = torch.bincount(tile_of_lesion, minlength=n_tiles)
    m = max(int(per_tile.max()) if n_tiles else 0, 1)
    n_in_earlier_tiles = (per_tile.cumsum(0) - per_tile)[tile_of_lesion]
    rank = torch.arange(len(tile_of_lesion), device=tile_of_lesion.device) - n_in_earlier_tiles
    return m * tile_of_lesion + rank, m
