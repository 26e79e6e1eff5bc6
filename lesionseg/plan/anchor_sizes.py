"""Rule for anchors: pyramid levels and box sizes fitted to the lesions, number of shapes."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import torch

from lesionseg.core import describe_sides
from lesionseg.core.arrays import Numbers
from lesionseg.ops.anchors import centred_iou
from lesionseg.plan.plan import AnchorPlan, Architecture, total_strides
from lesionseg.plan.rules import Decision

N_SHAPES = 3  # sizes of each level. One further size is shared with a neighbouring level.
MAX_LEVELS = 4
SMALL_PERCENT = 10  # the smallest 10 % of lesions decide the finest level
GOOD_IOU = 0.5  # an anchor with this IoU or more covers a lesion well
_CELLS_ACROSS = 1.5  # a small lesion should extend over so many cells of the finest level
# Lowest score of a box. Scores are probabilities. After a short training, or if lesions are faint,
# the best box of a radiograph has a score of 0.02 to 0.1. The floor of voxels, 0.05, would leave no
# box.
BOX_FLOOR = 0.01
_MAX_LESIONS = 1000  # used for the fit; more do not change the result
# factors by which `_cluster_sizes` stretches and shrinks a side, one pass each
_STEPS = (1.5, 1.25, 1.25, 1.12, 1.12, 1.12, 1.05, 1.05, 1.05)
_MIN_GAIN = 1e-9  # of the fit, by which a change of a size must improve it

Extents = Numbers


def fit_anchors(
    extents: Sequence[Sequence[float]], architecture: Architecture
) -> Decision[AnchorPlan]:
    """Choose the pyramid levels and the anchor sizes for the lesions of a dataset.

    Levels:

    - The finest level is the coarsest stage whose stride is at most ⅔ of the sides of the smallest
      tenth of lesions. Only axes that the stage has halved count. If no stage is fine enough, it is
      the finest allowed stage. A stage at full resolution is not allowed, unless the backbone has
      no coarser stage.
    - The coarsest level is the coarsest stage whose stride is at most half the largest lesion along
      at least one axis.
    - There is at least one level, and there are at most four.

    Sizes:

    - Lesions are clustered by the distance 1 − IoU, into three clusters per level (after Redmon &
      Farhadi 2017, arXiv 1612.08242). The centres of the clusters are the anchor sizes.
    - The smallest tenth of lesions has an additional weight, which equals the weight of all
      lesions.
    - The finest level has the smallest three sizes, and so on. Each level also has one size of its
      neighbour, so that no lesion is between two levels.

    Without lesions, the finest levels have sizes of twice the stride along each axis, times 1, 2^⅓
    and 2^⅔ (Lin et al. 2017, arXiv 1708.02002).

    Args:
        extents: Side lengths `[n, dims]` of the lesions in plan voxels. Sides below 1 count as 1.
            At most `_MAX_LESIONS` lesions are used, evenly spaced in the order of volume.
        architecture: The backbone.

    Returns:
        The anchors, with the reason.
    """
    sides = np.maximum(np.asarray(extents, float), 1.0)  # at least one voxel along each axis
    strides = np.asarray(total_strides(architecture.strides), float)
    # no anchors at full resolution, unless the backbone has no coarser stage
    is_first_full_resolution = strides[0].max() == 1
    finest = 1 if is_first_full_resolution and len(strides) > 1 else 0  # index of a stage
    if sides.size == 0:
        return _default_anchors(strides, finest, architecture)
    sides = _sample_by_volume(sides)
    volume = sides.prod(axis=1)
    # the smallest tenth; True for at least one lesion
    is_small = volume <= np.percentile(volume, SMALL_PERCENT)
    stages = _choose_stages(sides, strides, finest)
    # all lesions together have the weight 1, and the small ones another 1
    weights = 1 / len(sides) + is_small / is_small.sum()
    shapes = _cluster_sizes(sides, weights, k=N_SHAPES * len(stages))
    best_iou = _best_iou(sides, shapes)
    mean_iou = float(best_iou.mean())
    small_recall = float((best_iou[is_small] >= GOOD_IOU).mean())
    anchors = replace(
        _make_anchors(stages, shapes, architecture),
        mean_iou=round(mean_iou, 4),
        small_recall=round(small_recall, 4),
    )
    finest_stride = strides[stages[0]]
    reason = _explain_fit(anchors, finest_stride, mean_iou, small_recall)
    if (np.percentile(sides, SMALL_PERCENT, axis=0) < _CELLS_ACROSS * finest_stride).any():
        reason += f"; the smallest tenth are less than {_CELLS_ACROSS:g} cells of the finest level"
        reason += " across"
    return Decision(anchors, reason)


def _default_anchors(
    strides: Extents, finest: int, architecture: Architecture
) -> Decision[AnchorPlan]:
    """Return the anchors for a dataset without lesions: multiples of the stride of each level.

    Args:
        strides: Stride from the input to each stage, `[stages, dims]`.
        finest: Index of the first stage with anchors. Up to `MAX_LEVELS` stages follow from it.
        architecture: The backbone.
    """
    stages = tuple(range(finest, min(len(strides), finest + MAX_LEVELS)))
    factors = 2 ** (np.arange(N_SHAPES) / N_SHAPES)  # 1, 2^⅓, 2^⅔: even steps up to the next level
    # twice the stride: the smallest size for which a level is used, see `_choose_stages`
    shapes = np.concatenate([2 * strides[stage] * factors[:, None] for stage in stages])
    return Decision(
        _make_anchors(stages, shapes, architecture),
        "default sizes, because there are no lesions",
    )


def _sample_by_volume(sides: Extents) -> Extents:
    """Return at most `_MAX_LESIONS` lesions, so that the fit is fast. They are sorted by volume.

    The lesions are evenly spaced in the ascending order of volume. `sides` `[n, dims]` are
    their side lengths.
    """
    ascending = sides[np.argsort(sides.prod(axis=1), kind="stable")]
    n_used = min(len(ascending), _MAX_LESIONS)
    result: Extents = ascending[np.linspace(0, len(ascending) - 1, n_used).astype(int)]
    return result


def _explain_fit(
    anchors: AnchorPlan, finest_stride: Numbers, mean_iou: float, small_recall: float
) -> str:
    """Return the reason of fitted anchors as text for the plan.

    The text contains the number of levels and sizes, and how well the sizes cover the lesions.
    """
    stride = describe_sides(finest_stride)
    return (
        f"{len(anchors.stages)} levels from a stride of {stride}, {anchors.n_shapes} sizes each; "
        f"lesions have a mean IoU of {mean_iou:.2f} with their best size; {100 * small_recall:.0f} "
        f"% of the smallest tenth of lesions have an IoU of {GOOD_IOU:g} or more"
    )


def _make_anchors(
    stages: tuple[int, ...], shapes: Extents, architecture: Architecture
) -> AnchorPlan:
    """Return the plan of the anchors: the sizes of each level, and the width of the heads.

    Each level has three sizes and, in addition, the next larger size. The last level has the next
    smaller size instead. For example, two levels get the sizes 0 to 3 and 2 to 5, and a single
    level gets the sizes 0 to 2.

    The heads have as many channels as the backbone at the finest level, rounded up to a multiple of
    8, at least 16 and at most 128.

    Args:
        stages: Index of the stage of each level, finest first.
        shapes: The anchor sizes of all levels in ascending order, `[3 · levels, dims]`.
        architecture: The backbone.
    """
    n_each = min(N_SHAPES + 1, len(shapes))  # sizes of a level
    sizes = []
    for level in range(len(stages)):
        # the last level ends with the largest size
        end = min(N_SHAPES * level + n_each, len(shapes))
        sizes.append(tuple(map(tuple, shapes[end - n_each : end].round(2).tolist())))
    width = ceil(architecture.features[stages[0]] / 8) * 8  # group norms have 8 groups
    return AnchorPlan(stages, tuple(sizes), width=min(max(width, 16), 128), floor=BOX_FLOOR)


def _choose_stages(sides: Extents, strides: Extents, finest: int) -> tuple[int, ...]:
    """Choose the consecutive stages of the backbone that have anchors, at most `MAX_LEVELS`.

    - The first one is the coarsest stage that resolves small lesions along every axis that it has
      halved. If no stage does, it is `finest`.
    - The last one is the coarsest stage whose stride is at most half the largest lesion along at
      least one axis. One axis is enough, so that long and flat lesions have anchors too.

    Args:
        sides: Side lengths of the lesions in voxels, `[n, dims]`.
        strides: Stride from the input to each stage, `[stages, dims]`.
        finest: Index of the finest stage that is allowed.
    """
    n_stages = len(strides)
    small_sides = np.percentile(sides, SMALL_PERCENT, axis=0)
    largest_sides = sides.max(axis=0)
    # Fine enough along each axis. An axis of stride 1 has all its voxels: no stage is finer along
    # it, also if the lesions are single slices.
    fine_enough = [
        i
        for i in range(finest, n_stages)
        if ((_CELLS_ACROSS * strides[i] <= small_sides) | (strides[i] == 1)).all()
    ]
    first = max(fine_enough, default=finest)
    coarse_enough = [i for i in range(first, n_stages) if (2 * strides[i] <= largest_sides).any()]
    return tuple(range(first, min(max(coarse_enough, default=first), first + MAX_LEVELS - 1) + 1))


def _cluster_sizes(sides: Extents, weights: Numbers, k: int) -> Extents:
    """Find the `k` box sizes that fit the lesions best, in ascending order of volume.

    The fit is the weighted mean IoU between each lesion and the box size most similar to it.

    1. The search begins with the sizes of `k` lesions; some may be repeated. Their volumes are the
       nearest ones to targets half-way between evenly spaced percentiles and evenly spaced
       logarithms.
    2. Then one side at a time is stretched or shrunk by smaller and smaller factors (`_STEPS`). A
       change is applied if it improves the fit by more than rounding, which differs between
       processors.

    Args:
        sides: Side lengths of the lesions in voxels, `[n, dims]`.
        weights: Weight of each lesion.
        k: Number of box sizes.
    """
    log_volumes = np.log(sides.prod(axis=1))
    ranks = np.linspace(0, 1, len(log_volumes))
    # The mean of both, because by rank only, nearly all would be the most common sizes. The
    # extreme 2 % of lesions at both ends are left out.
    even_by_rank = np.interp(np.linspace(0.02, 0.98, k), ranks, np.sort(log_volumes))
    targets = (even_by_rank + np.linspace(even_by_rank[0], even_by_rank[-1], k)) / 2
    # the lesion nearest to each target; rounding makes near ties equal on all processors
    shapes = sides[np.abs(log_volumes[:, None] - targets).round(9).argmin(axis=0)]
    for step in _STEPS:
        score = weights @ _best_iou(sides, shapes)
        for row, axis in np.ndindex(*shapes.shape):
            for factor in (step, 1 / step):
                candidate = shapes.copy()
                candidate[row, axis] *= factor
                score_of_candidate = weights @ _best_iou(sides, candidate)
                if score_of_candidate > score + _MIN_GAIN:
                    shapes = candidate
                    score = score_of_candidate
    result: Extents = shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
    return result


def _best_iou(sides: Extents, shapes: Extents) -> Numbers:
    """Return the IoU of each lesion with the anchor size that is most similar to it.

    For the IoU, the lesion and the anchor have the same centre.

    Args:
        sides: Side lengths of the lesions in voxels, `[n, dims]`.
        shapes: Side lengths of the anchors, `[k, dims]`.
    """
    result: Numbers = (
        centred_iou(torch.from_numpy(sides), torch.from_numpy(shapes)).numpy().max(axis=1)
    )
    return result
