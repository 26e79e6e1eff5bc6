"""Non-maximum suppression (NMS) of boxes: algorithm only, the IoU limit is an argument.

Boxes have any number of axes. Limits are in `inference.box_candidates` and the plan.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core.arrays import Integers
from lesionseg.errors import ContentError
from lesionseg.ops.compiled import compile_loops


def nms(
    boxes: Float[Tensor, "n two_d"], scores: Float[Tensor, " n"], iou_threshold: float
) -> Int64[Tensor, " kept"]:
    """Keep the box with the highest score among boxes that overlap (non-maximum suppression).

    A box is dropped if its IoU with a kept box of higher rank is above the threshold. The IoU is
    computed in float32 on the CPU.

    Args:
        boxes: `[n, 2·dims]`, starts then stops, half-open, on any device.
        scores: `[n]`; ties are ranked by index.
        iou_threshold: Highest IoU of two kept boxes.

    Returns:
        The kept indices by descending score. Without boxes the result is empty.

    Raises:
        ContentError: If the shapes do not fit together.

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 1, 4, 5], [9, 9, 10, 10]])
    >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
    [1, 2]
    """
    order, keeper_of_rank = _suppress(boxes, scores, iou_threshold)
    # a kept box has the rank of itself
    return order[keeper_of_rank == torch.arange(len(order), device=order.device)]


def _suppress(
    boxes: Tensor, scores: Tensor, iou_threshold: float
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Rank boxes by score, and find for each box the kept box that represents it.

    The arguments are the same as for `nms`. Raise `ContentError` if the shapes do not fit together.

    Returns:
        - The index of the box of each rank `[n]`; rank 0 has the highest score.
        - For each rank `[n]`, the rank of the box itself if it is kept, otherwise the rank of the
          kept box that suppresses it.
    """
    if boxes.ndim != 2 or boxes.shape[1] % 2 or scores.shape != boxes.shape[:1]:
        raise ContentError(
            f"Boxes {tuple(boxes.shape)} and scores {tuple(scores.shape)} do not fit together. "
            "Give boxes [n, 2·dims] and scores [n]."
        )
    order = torch.argsort(scores.detach(), descending=True, stable=True)
    ranked = boxes.detach()[order].float().cpu().numpy()
    n = len(ranked)
    dims = ranked.shape[1] // 2
    if n == 0:
        return order, order
    # Boxes are sorted by start along the axis on which they are spread most, compared with the
    # longest side. Only a short range of them can overlap a box: their starts are below its stop,
    # and above its start minus the longest side.
    longest = np.maximum((ranked[:, dims:] - ranked[:, :dims]).max(axis=0), 1e-6)
    axis = int(np.argmax(np.ptp(ranked[:, :dims], axis=0) / longest))  # `ptp`: max − min
    by_start = np.argsort(ranked[:, axis], kind="stable")
    # the inverse permutation: the position of each rank in the order of starts
    position = np.empty(n, np.int64)
    position[by_start] = np.arange(n)
    starts, stops = (np.ascontiguousarray(b[by_start].T) for b in np.hsplit(ranked, [dims]))
    keeper_of_rank = _suppress_sorted(
        starts, stops, position, axis, longest[axis], np.float32(iou_threshold)
    )
    return order, torch.from_numpy(keeper_of_rank).to(order.device)


def batched_nms(
    boxes: Float[Tensor, "n two_d"],
    scores: Float[Tensor, " n"],
    groups: Int64[Tensor, " n"],
    iou_threshold: float,
) -> Int64[Tensor, " kept"]:
    """Apply `nms` to each group of boxes separately. A group is, for example, a label or an image.

    Boxes of different groups do not suppress each other.

    Args:
        boxes: `[n, 2·dims]`, starts then stops, half-open, on any device.
        scores: `[n]`; ties are ranked by index.
        groups: `[n]` int64, any values.
        iou_threshold: Highest IoU of two kept boxes of the same group.

    Returns:
        The kept indices by descending score. Without boxes the result is empty.

    Raises:
        ContentError: If the shapes do not fit together.

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]])
    >>> batched_nms(boxes, torch.tensor([0.5, 0.9]), torch.tensor([0, 1]), 0.5).tolist()
    [1, 0]
    """
    keeper_of_box = cluster_boxes(boxes, scores, groups, iou_threshold)
    # a kept box has the index of itself
    unsuppressed = torch.nonzero(
        keeper_of_box == torch.arange(len(keeper_of_box), device=keeper_of_box.device)
    )[:, 0]
    return unsuppressed[torch.argsort(scores[unsuppressed], descending=True, stable=True)]


def cluster_boxes(
    boxes: Float[Tensor, "n two_d"],
    scores: Float[Tensor, " n"],
    groups: Int64[Tensor, " n"],
    iou_threshold: float,
) -> Int64[Tensor, " n"]:
    """Find for each box the box that `batched_nms` keeps in its place.

    Args:
        boxes: `[n, 2·dims]`, starts then stops. The rows may have any order.
        scores: `[n]`.
        groups: `[n]`, such as the label of each box. Only boxes of one group suppress each other.
        iou_threshold: A box is dropped if its IoU with a kept box is above this.

    Returns:
        For each box an index `[n]`. A kept box has the index of itself. A dropped box has the index
        of the kept box of the highest score whose IoU with the dropped box is above the threshold.

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 1, 4, 5], [9, 9, 10, 10]])
    >>> cluster_boxes(boxes, torch.tensor([0.5, 0.9, 0.1]), torch.zeros(3).long(), 0.5).tolist()
    [1, 1, 2]
    """
    keeper_of_box = torch.empty(len(groups), dtype=torch.int64, device=groups.device)
    for group in sorted(set(groups.tolist())):
        index = torch.nonzero(groups == group)[:, 0]
        order, keeper_of_rank = _suppress(boxes[index], scores[index], iou_threshold)
        # from ranks to positions in the group (`order`), and from these to rows of `boxes`
        keeper_of_box[index[order]] = index[order[keeper_of_rank]]
    return keeper_of_box


@compile_loops
def _suppress_sorted(
    starts: NDArray[np.float32],
    stops: NDArray[np.float32],
    position: Integers,
    axis: int,
    longest: np.float32,
    iou_threshold: np.float32,
) -> Integers:
    """Apply non-maximum suppression to boxes that are sorted by their start along an axis.

    The order limits the search: each box is compared only with the few boxes near it. 10 000 boxes
    in 3-D need 15 to 40 ms.

    Args:
        starts: `[dims, n]`, sorted by start along `axis`.
        stops: `[dims, n]`, in the order of `starts`.
        position: `[n]`, the column of the box of each rank. Rank 0 has the highest score.
        axis: The axis by whose starts the boxes are sorted.
        longest: The longest side along `axis`. A box that starts further below another box ends
            before that box starts.
        iou_threshold: Highest IoU of two kept boxes.

    Returns:
        `[n]`, for each rank the rank of the kept box that suppresses the box. A kept box has the
        rank of itself.
    """
    dims, n = starts.shape
    volume = np.ones(n, np.float32)
    for d in range(dims):
        for j in range(n):
            volume[j] *= max(stops[d, j] - starts[d, j], np.float32(0))
    keeper = np.full(n, -1, np.int64)  # by column
    buffer = np.empty(n, np.float32)
    for rank in range(n):
        i = position[rank]
        if keeper[i] >= 0:  # suppressed by a box of higher rank
            continue
        keeper[i] = rank
        # only the columns from `first` to `last` can overlap this box
        first = np.searchsorted(starts[axis], starts[axis, i] - longest)
        last = np.searchsorted(starts[axis], stops[axis, i])
        # slices that start at 0 and plain comparisons allow the compiler to vectorise
        shared = buffer[: last - first]  # volume of the intersection with each of these boxes
        shared[:] = 1
        for d in range(dims):
            low = starts[d, i]
            high = stops[d, i]
            others_start = starts[d, first:last]
            others_stop = stops[d, first:last]
            for j in range(last - first):
                start = others_start[j] if others_start[j] > low else low
                stop = others_stop[j] if others_stop[j] < high else high
                shared[j] *= stop - start if stop > start else np.float32(0)
        for j in range(last - first):
            union = volume[i] + volume[first + j] - shared[j]
            if shared[j] > 0 and shared[j] / union > iou_threshold and keeper[first + j] < 0:
                keeper[first + j] = rank
    return keeper[position]
