"""The rule that fits anchors to the lesions of a dataset: no number is written by hand."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.ops.anchors import centred_iou
from lesionseg.plan.plan import AnchorPlan, Architecture, total_strides
from lesionseg.plan.rules import Decision

N_SHAPES = 3  # sizes a level has of its own; one more it shares with its neighbour
MOST_LEVELS = 4
SMALL_SHARE = 10  # percent: the smallest tenth counts as much as all lesions together
WELL_COVERED = 0.5  # IoU
_CELLS_ACROSS = 1.5  # cells of the finest level across the smallest tenth
_MOST_LESIONS = 1000  # looked at; more change nothing
_STEPS = (1.5, 1.25, 1.25, 1.12, 1.12, 1.12, 1.05, 1.05, 1.05)

Extents = NDArray[np.float64]


def fit_anchors(
    extents: Sequence[Sequence[float]], architecture: Architecture
) -> Decision[AnchorPlan | None]:
    """Levels and sizes of anchors for lesions of these side lengths `[n, dims]` in plan voxels.

    The finest level has at most ⅔ of the smallest tenth's sides between its cells, but never full
    resolution, so that a lesion 3 voxels across is looked at from every second voxel; the coarsest
    is at most half as coarse as the largest lesion is long. Three sizes a level are the centres of
    clusters under 1 − IoU (after Redmon & Farhadi 2017, arXiv 1612.08242), where the smallest
    tenth of lesions weighs as much as all together, smallest sizes to the finest level. A level
    shares the smallest size of the next coarser one, the coarsest the largest of the next finer
    one, so that no lesion falls between two levels. No lesion: cubes twice the stride and its
    thirds of an octave (Lin et al. 2017, arXiv 1708.02002).
    """
    sides = np.maximum(np.asarray(extents, dtype=float), 1.0)
    strides = np.asarray(total_strides(architecture.strides), dtype=float)
    finest = min(int(strides[0].max() == 1), len(strides) - 1)  # coarser than the image if any is
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
    iou, recall = float(best.mean()), float((best[small] >= WELL_COVERED).mean())
    found = _anchors(stages, shapes, architecture, mean_iou=iou, small_recall=recall)
    step = strides[stages[0]]
    reason = (
        f"{len(stages)} levels from a stride of {' × '.join(f'{s:g}' for s in step)}, "
        f"{found.n_shapes} sizes each; mean IoU of a lesion with its best anchor size {iou:.2f}, "
        f"{100 * recall:.0f} % of the smallest tenth at {WELL_COVERED:g} or more"
    )
    if (_CELLS_ACROSS * step > np.percentile(sides, SMALL_SHARE, axis=0)).any():
        reason += "; the smallest tenth are under 1.5 cells across even so"
    return Decision(found, reason)


def _anchors(
    stages: tuple[int, ...], shapes: Extents, architecture: Architecture, **fit: float
) -> AnchorPlan:
    """The heads have the backbone's channels at their finest level: 16 to 128, in whole groups."""
    each = min(N_SHAPES + 1, len(shapes))
    ends = [min(N_SHAPES * level + each, len(shapes)) for level in range(len(stages))]
    sizes = [tuple(map(tuple, shapes[end - each : end].round(2).tolist())) for end in ends]
    width = min(max(-(-architecture.features[stages[0]] // 8) * 8, 16), 128)  # a norm has 8 groups
    rounded = {name: round(value, 4) for name, value in fit.items()}
    return AnchorPlan(stages, tuple(sizes), width=width, **rounded)  # type: ignore[arg-type]


def _levels(sides: Extents, strides: Extents, finest: int) -> tuple[int, ...]:
    """Stages from the finest that is fine enough for the smallest to one that suits the largest."""
    n, smallest = len(strides), np.percentile(sides, SMALL_SHARE, axis=0)
    fine = [i for i in range(finest, n) if (_CELLS_ACROSS * strides[i] <= smallest).all()]
    first = max(fine, default=finest)
    coarse = [i for i in range(first, n) if (2 * strides[i] <= sides.max(axis=0)).any()]
    return tuple(range(first, min(max(coarse, default=first), first + MOST_LEVELS - 1) + 1))


def _clusters(sides: Extents, weights: NDArray[np.float64], k: int) -> Extents:
    """`k` box sizes, by volume, that maximise the weighted mean IoU with the best of them.

    They start evenly spaced in the logarithm of volume; then one side at a time is stretched or
    shrunk by smaller and smaller steps, and what helps stays.
    """
    logs = np.log(sides.prod(axis=1))
    edges = np.interp(np.linspace(0.02, 0.98, k), np.linspace(0, 1, len(logs)), np.sort(logs))
    wanted = (edges + np.linspace(edges[0], edges[-1], k)) / 2  # by rank and by size in equal parts
    shapes = sides[np.abs(logs[:, None] - wanted).argmin(axis=0)]
    for step in _STEPS:
        score = weights @ _best_iou(sides, shapes)
        for row, axis in np.ndindex(*shapes.shape):
            for factor in (step, 1 / step):
                candidate = shapes.copy()
                candidate[row, axis] *= factor
                if (better := weights @ _best_iou(sides, candidate)) > score:
                    shapes, score = candidate, better
    return np.asarray(shapes[np.argsort(shapes.prod(axis=1), kind="stable")])


def _best_iou(sides: Extents, shapes: Extents) -> NDArray[np.float64]:
    """IoU of each lesion with the best of the sizes, at one centre."""
    iou = centred_iou(torch.from_numpy(sides), torch.from_numpy(shapes))
    return np.asarray(iou.numpy().max(axis=1))
