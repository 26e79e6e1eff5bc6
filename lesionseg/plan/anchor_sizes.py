"""The rule that fits anchors to the lesions of a dataset."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.ops.anchors import centred_iou
from lesionseg.plan.plan import AnchorPlan, Architecture, total_strides
from lesionseg.plan.rules import Decision

N_SHAPES = 3  # sizes of a level, besides one that it shares with a neighbouring level
MOST_LEVELS = 4
SMALL_SHARE = 10  # percent: the smallest tenth has the weight of all lesions together
WELL_COVERED = 0.5  # IoU
_CELLS_ACROSS = 1.5  # cells of the finest level across a lesion of the smallest tenth
_MOST_LESIONS = 1000  # used for the fit; more do not change the result
_STEPS = (1.5, 1.25, 1.25, 1.12, 1.12, 1.12, 1.05, 1.05, 1.05)

Extents = NDArray[np.float64]


def fit_anchors(
    extents: Sequence[Sequence[float]], architecture: Architecture
) -> Decision[AnchorPlan | None]:
    """Choose the pyramid levels and the anchor sizes for the lesions of a dataset.

    Levels: the stride of the finest level is at most ⅔ of the sides of the smallest tenth of
    lesions. It is never full resolution, so a lesion of 3 voxels has an anchor at every second
    voxel. The stride of the coarsest level is at most half the sides of the largest lesion.

    Sizes: the three sizes of each level are the centres of clusters of lesions under the distance
    1 − IoU (after Redmon & Farhadi 2017, arXiv 1612.08242). The smallest tenth of lesions has the
    same weight as all lesions together. The finest level has the smallest sizes. So that no lesion
    is between two levels, each level also has the smallest size of the next coarser level. The
    coarsest level has the largest size of the next finer level instead.

    Without lesions, the sizes are cubes of twice the stride, times 1, 2^⅓ and 2^⅔ (Lin et al.
    2017, arXiv 1708.02002).

    Args:
        extents: side lengths `[n, dims]` of the lesions in plan voxels.
        architecture: the backbone.

    Returns:
        The anchors, with the reason.
    """
    sides = np.maximum(np.asarray(extents, dtype=float), 1.0)
    strides = np.asarray(total_strides(architecture.strides), dtype=float)
    # full resolution is used only if the backbone has no coarser stage
    finest = min(int(strides[0].max() == 1), len(strides) - 1)
    if sides.size == 0:
        stages = tuple(range(finest, min(len(strides), finest + MOST_LEVELS)))
        octaves = 2 ** (np.arange(N_SHAPES) / N_SHAPES)
        shapes = np.concatenate([2 * strides[i] * octaves[:, None] for i in stages])
        return Decision(_anchors(stages, shapes, architecture), "no lesion to fit anchors to")
    sides = sides[np.argsort(sides.prod(axis=1), kind="stable")]
    sides = sides[np.linspace(0, len(sides) - 1, min(len(sides), _MOST_LESIONS)).astype(int)]
    stages = _levels(sides, strides, finest)
    volume = sides.prod(axis=1)
    small = volume <= np.percentile(volume, SMALL_SHARE)  # at least one
    shapes = _clusters(sides, 1 / len(sides) + small / small.sum(), N_SHAPES * len(stages))
    best = _best_iou(sides, shapes)
    iou = float(best.mean())
    recall = float((best[small] >= WELL_COVERED).mean())
    found = replace(
        _anchors(stages, shapes, architecture),
        mean_iou=round(iou, 4),
        small_recall=round(recall, 4),
    )
    step = strides[stages[0]]
    reason = (
        f"{len(stages)} levels from a stride of {' × '.join(f'{s:g}' for s in step)}, "
        f"{found.n_shapes} sizes each; mean IoU of a lesion with its best anchor size {iou:.2f}, "
        f"{100 * recall:.0f} % of the smallest tenth at {WELL_COVERED:g} or more"
    )
    if (_CELLS_ACROSS * step > np.percentile(sides, SMALL_SHARE, axis=0)).any():
        reason += "; the smallest tenth are still less than 1.5 cells across"
    return Decision(found, reason)


def _anchors(stages: tuple[int, ...], shapes: Extents, architecture: Architecture) -> AnchorPlan:
    """Distribute anchor sizes, in ascending order, over the levels.

    The heads have as many channels as the backbone at the finest level, rounded up to a multiple
    of 8, within 16 and 128.
    """
    each = min(N_SHAPES + 1, len(shapes))
    sizes = []
    for level in range(len(stages)):
        end = min(N_SHAPES * level + each, len(shapes))
        sizes.append(tuple(map(tuple, shapes[end - each : end].round(2).tolist())))
    width = -(-architecture.features[stages[0]] // 8) * 8  # group norms have 8 groups
    return AnchorPlan(stages, tuple(sizes), width=min(max(width, 16), 128))


def _levels(sides: Extents, strides: Extents, finest: int) -> tuple[int, ...]:
    """Return the stages from one for the smallest lesions to one for the largest."""
    n = len(strides)
    smallest = np.percentile(sides, SMALL_SHARE, axis=0)
    fine = [i for i in range(finest, n) if (_CELLS_ACROSS * strides[i] <= smallest).all()]
    first = max(fine, default=finest)
    coarse = [i for i in range(first, n) if (2 * strides[i] <= sides.max(axis=0)).any()]
    return tuple(range(first, min(max(coarse, default=first), first + MOST_LEVELS - 1) + 1))


def _clusters(sides: Extents, weights: NDArray[np.float64], k: int) -> Extents:
    """Return `k` box sizes that maximise the weighted mean IoU of lesions with the best of them.

    The first sizes are evenly spaced in the logarithm of volume. Then one side at a time is
    stretched or shrunk by smaller and smaller factors, and a change is kept if it improves the
    IoU. The sizes are in ascending order of volume.
    """
    logs = np.log(sides.prod(axis=1))
    edges = np.interp(np.linspace(0.02, 0.98, k), np.linspace(0, 1, len(logs)), np.sort(logs))
    even = np.linspace(edges[0], edges[-1], k)
    wanted = (edges + even) / 2  # between even spacing by rank and even spacing by size
    shapes = sides[np.abs(logs[:, None] - wanted).argmin(axis=0)]
    for step in _STEPS:
        score = weights @ _best_iou(sides, shapes)
        for row, axis in np.ndindex(*shapes.shape):
            for factor in (step, 1 / step):
                candidate = shapes.copy()
                candidate[row, axis] *= factor
                if (better := weights @ _best_iou(sides, candidate)) > score:
                    shapes = candidate
                    score = better
    return np.asarray(shapes[np.argsort(shapes.prod(axis=1), kind="stable")])


def _best_iou(sides: Extents, shapes: Extents) -> NDArray[np.float64]:
    """Return the IoU of each lesion with the best of the sizes, both with the same centre."""
    iou = centred_iou(torch.from_numpy(sides), torch.from_numpy(shapes))
    return np.asarray(iou.numpy().max(axis=1))
