"""The rule that fits anchors to the lesions of a dataset: no number is written by hand."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.ops.anchors import centred_iou
from lesionseg.plan.plan import AnchorPlan, Architecture, total_strides
from lesionseg.plan.rules import Decision

N_SHAPES = 3  # anchors a cell and level
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
    tenth of lesions weighs as much as all together, smallest sizes to the finest level. No lesion:
    cubes twice the stride and its thirds of an octave (Lin et al. 2017, arXiv 1708.02002).
    """
    sides = np.maximum(np.asarray(extents, dtype=float), 1.0)
    strides = np.asarray(total_strides(architecture.strides), dtype=float)
    if sides.size == 0:
        return Decision(_without_lesions(architecture, strides), "no lesion to fit anchors to")
    sides = sides[np.argsort(sides.prod(axis=1), kind="stable")]
    sides = sides[np.linspace(0, len(sides) - 1, min(len(sides), _MOST_LESIONS)).astype(int)]
    stages = _levels(sides, strides)
    weights = _weights(sides)
    shapes = _clusters(sides, weights, N_SHAPES * len(stages))
    best = _centred_iou(sides, shapes).max(axis=1)
    small = best[_smallest(sides)]
    found = AnchorPlan(
        stages=stages,
        sizes=tuple(
            tuple(tuple(round(float(x), 2) for x in shape) for shape in level)
            for level in np.split(shapes, len(stages))
        ),
        width=_width(architecture, stages[0]),
        mean_iou=round(float(best.mean()), 4),
        small_recall=round(float((small >= WELL_COVERED).mean()), 4),
    )
    return Decision(found, _reason(found, sides, strides))


def _reason(found: AnchorPlan, sides: Extents, strides: Extents) -> str:
    finest = " × ".join(f"{s:g}" for s in strides[found.stages[0]])
    small = np.percentile(sides, SMALL_SHARE, axis=0)
    text = (
        f"{len(found.stages)} levels from a stride of {finest}, {found.n_shapes} sizes each; mean "
        f"IoU of a lesion with its best anchor size {found.mean_iou:.2f}, "
        f"{100 * (found.small_recall or 0):.0f} % of the smallest tenth at {WELL_COVERED:g} or more"
    )
    if (_CELLS_ACROSS * strides[found.stages[0]] > small).any():
        text += "; the smallest tenth are under 1.5 cells across even so"
    return text


def _width(architecture: Architecture, finest: int) -> int:
    """Channels of the heads: the backbone's own at their finest level, within 16 and 128."""
    return min(max(architecture.features[finest], 16), 128)


def _levels(sides: Extents, strides: Extents) -> tuple[int, ...]:
    """Stages from the finest that is fine enough for the smallest to one that suits the largest."""
    n, smallest = len(strides), np.percentile(sides, SMALL_SHARE, axis=0)
    allowed = _finest_allowed(strides)
    fine = [i for i in range(allowed, n) if (_CELLS_ACROSS * strides[i] <= smallest).all()]
    first = max(fine, default=allowed)
    coarse = [i for i in range(first, n) if (2 * strides[i] <= sides.max(axis=0)).any()]
    last = min(max(coarse, default=first), first + MOST_LEVELS - 1)
    return tuple(range(first, last + 1))


def _finest_allowed(strides: Extents) -> int:
    """The first stage coarser than the image, or the only one."""
    return min(int(strides[0].max() == 1), len(strides) - 1)


def _smallest(sides: Extents) -> NDArray[np.bool_]:
    """Which lesions are the smallest tenth by volume; at least one."""
    volume = sides.prod(axis=1)
    found: NDArray[np.bool_] = volume <= np.percentile(volume, SMALL_SHARE)
    return found


def _weights(sides: Extents) -> NDArray[np.float64]:
    small = _smallest(sides)
    found: NDArray[np.float64] = 1 / len(sides) + small / small.sum()
    return found


def _clusters(sides: Extents, weights: NDArray[np.float64], k: int) -> Extents:
    """`k` box sizes, by volume, that maximise the weighted mean IoU with the best of them.

    They start evenly spaced in the logarithm of volume; then one side at a time is stretched or
    shrunk by smaller and smaller steps, and what helps stays. Deterministic.
    """
    volume = np.sort(np.log(sides.prod(axis=1)))
    edges = np.interp(np.linspace(0.02, 0.98, k), np.linspace(0, 1, len(volume)), volume)
    wanted = (edges + np.linspace(edges[0], edges[-1], k)) / 2  # by rank and by size in equal parts
    nearest = np.abs(np.log(sides.prod(axis=1))[:, None] - wanted).argmin(axis=0)
    shapes = sides[nearest]
    for step in _STEPS:
        shapes = _refined(sides, weights, shapes, step)
    by_volume: Extents = shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
    return by_volume


def _refined(sides: Extents, weights: NDArray[np.float64], shapes: Extents, step: float) -> Extents:
    score = _objective(sides, weights, shapes)
    for row, axis in np.ndindex(*shapes.shape):
        for factor in (step, 1 / step):
            tried = shapes.copy()
            tried[row, axis] *= factor
            better = _objective(sides, weights, tried)
            if better > score:
                shapes, score = tried, better
    return shapes


def _objective(sides: Extents, weights: NDArray[np.float64], shapes: Extents) -> float:
    return float(weights @ _centred_iou(sides, shapes).max(axis=1))


def _centred_iou(a: Extents, b: Extents) -> NDArray[np.float64]:
    """`ops.anchors.centred_iou` of arrays."""
    found: NDArray[np.float64] = centred_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return found


def _without_lesions(architecture: Architecture, strides: Extents) -> AnchorPlan:
    first = _finest_allowed(strides)
    stages = tuple(range(first, min(len(strides), first + MOST_LEVELS)))
    octaves = 2 ** (np.arange(N_SHAPES) / N_SHAPES)
    sizes = tuple(
        tuple(tuple(float(round(2 * s * f, 2)) for s in strides[i]) for f in octaves)
        for i in stages
    )
    return AnchorPlan(stages, sizes, width=_width(architecture, stages[0]))
