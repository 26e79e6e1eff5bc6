"""Challenges that score masks: ISLES'22, autoPET, MSSEG, BraTS 2023 and the panoptica package.

Each looks at all lesions and all accepted candidates as one mask and finds components by its own
rules. A number that its script leaves undefined is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.evaluation.case.match_case import CaseMatch
from lesionseg.evaluation.case.surface import surface_distances
from lesionseg.evaluation.official.curves import Values

Mask = NDArray[np.bool_]
Labels = NDArray[np.integer]

BRATS_DISTANCE_MM = 374.0  # what a lesion counts that is missed or made up
ANIMA_ALPHA, ANIMA_BETA, ANIMA_GAMMA = 0.1, 0.7, 0.65
ANIMA_MIN_MM3 = 3.0
PANOPTICA_IOU = 0.5
_MARGIN = 5  # beyond what any dilation below reaches


@dataclass(frozen=True, eq=False)
class MaskPair:
    """Reference and prediction, cut to what is around them; never beyond the image's edge."""

    reference: Mask
    prediction: Mask
    spacing_mm: tuple[float, ...]
    voxel_size: float

    @property
    def dice(self) -> float | None:
        """Dice; None when both are empty."""
        total = int(self.reference.sum()) + int(self.prediction.sum())
        shared = int((self.reference & self.prediction).sum())
        return 2 * shared / total if total else None


def mask_pair(judged: CaseMatch) -> MaskPair | None:
    """The masks of a case; None where there are boxes without masks."""
    if not judged.has_masks:
        return None
    geometry = judged.lesions.geometry
    voxels = (judged.lesions.voxels, judged.candidates.voxels_where(judged.accepted))
    both = np.concatenate(voxels)
    shape: NDArray[np.int64] = np.asarray(geometry.shape, dtype=np.int64)
    low, high = np.zeros_like(shape), np.ones_like(shape)
    if len(both):
        low = np.maximum(both.min(axis=0) - _MARGIN, 0)
        high = np.minimum(both.max(axis=0) + 1 + _MARGIN, shape)
    masks = [np.zeros(high - low, dtype=np.bool_) for _ in voxels]
    for mask, inside in zip(masks, voxels, strict=True):
        mask[tuple((inside - low).T)] = True
    return MaskPair(masks[0], masks[1], geometry.spacing_mm, geometry.voxel_size)


def isles22_case(pair: MaskPair) -> Values:
    """Dice, F1 of components, difference in volume (ml) and in the number of components.

    A component of either mask counts as hit when it shares a voxel with the other mask. All empty:
    Dice and F1 are 1.
    """
    reference, prediction = (_components(m) for m in (pair.reference, pair.prediction))
    found = len(_touched(reference, pair.prediction))
    missed = int(reference.max(initial=0)) - found
    n_predicted = int(prediction.max(initial=0))
    false = n_predicted - len(_touched(prediction, pair.reference))
    total = found + missed + false
    voxels = abs(int(pair.reference.sum()) - int(pair.prediction.sum()))
    return {
        "dice": 1.0 if pair.dice is None else pair.dice,
        "lesion_f1": found / (found + (false + missed) / 2) if total else 1.0,
        "volume_difference_ml": voxels * pair.voxel_size / 1000,
        "lesion_count_difference": float(abs(found + missed - n_predicted)),
    }


def autopet_case(pair: MaskPair) -> Values:
    """Dice, and the volume in ml of each mask's components that share no voxel with the other mask.

    Components by faces and edges (18 neighbours). Without a lesion only the false positive volume
    is defined, as in autoPET I.
    """
    reference, prediction = (_components(m, 18) for m in (pair.reference, pair.prediction))
    lesions = bool(pair.reference.any())
    return {
        "dice": pair.dice if lesions else None,
        "false_positive_volume_ml": _untouched_ml(prediction, pair.reference, pair),
        "false_negative_volume_ml": _untouched_ml(reference, pair.prediction, pair)
        if lesions
        else None,
    }


def _untouched_ml(components: Labels, other: Mask, pair: MaskPair) -> float:
    alone = (components > 0) & ~np.isin(components, _touched(components, other))
    return int(alone.sum()) * pair.voxel_size / 1000


def msseg_case(pair: MaskPair) -> Values:
    """Sensitivity, positive predictive value and F1 of lesions, as Anima's SegPerfAnalyzer has it.

    Components by faces, of more than 3 mm³. A lesion counts when more than α = 0.1 of it is covered
    and its overlapping regions, in decreasing order of overlap until they make up γ = 0.65 of it,
    each lie outside by at most β = 0.7. The predictive value is the same test the other way round.
    None where a side has no component; F1 is 0 where lesions are there and none counts.
    """
    least = int(np.floor(ANIMA_MIN_MM3 / pair.voxel_size)) + 1
    reference, prediction = (
        _large(_components(m, 6), least) for m in (pair.reference, pair.prediction)
    )
    table = np.zeros((int(reference.max(initial=0)) + 1, int(prediction.max(initial=0)) + 1))
    np.add.at(table, (reference.reshape(-1), prediction.reshape(-1)), 1)
    n_reference, n_prediction = table.shape[0] - 1, table.shape[1] - 1
    sensitivity = _anima_hits(table) / n_reference if n_reference else None
    precision = _anima_hits(table.T) / n_prediction if n_prediction else None
    f1: float | None = None
    if n_reference and (sensitivity or 0) + (precision or 0) > 0:
        f1 = 2 * (sensitivity or 0) * (precision or 0) / ((sensitivity or 0) + (precision or 0))
    elif n_reference:
        f1 = 0.0
    return {"dice": pair.dice, "lesion_recall": sensitivity, "lesion_ppv": precision, "f1": f1}


def _anima_hits(table: NDArray[np.float64]) -> int:
    """Rows (from 1) that pass both tests; `table[i, j]` voxels of component i in component j."""
    sizes, covered = table.sum(axis=0), table[:, 1:].sum(axis=1)
    enough = covered[1:] > ANIMA_ALPHA * (covered + table[:, 0])[1:]
    return sum(
        _anima_inside(table, row, sizes, covered[row])
        for row in (np.flatnonzero(enough) + 1).tolist()
    )


def _anima_inside(
    table: NDArray[np.float64], row: int, sizes: NDArray[np.float64], covered: float
) -> bool:
    explained = 0.0
    order = np.argsort(-table[row, 1:], kind="stable") + 1
    for column in order[: len(table)]:  # Anima looks at no more regions than it has rows
        if explained >= ANIMA_GAMMA:
            break
        if table[0, column] / sizes[column] > ANIMA_BETA:
            return False
        explained += table[row, column] / covered
    return True


def brats_case(pair: MaskPair, dilations: int, min_mm3: float) -> Values:
    """Lesion-wise Dice and HD95 as BraTS 2023 has them.

    Lesions whose `dilations`-fold dilations touch are one; all predicted components that reach
    into the dilated lesion are compared with it as one. Lesions of at most `min_mm3` are left out;
    every other predicted component, of any size, counts Dice 0 and 374 mm.
    """
    shape = ndimage.generate_binary_structure(pair.reference.ndim, 2)
    grown = _grow(pair.reference, shape, dilations)
    lesions = np.where(pair.reference, _components(grown), 0)
    prediction = _components(pair.prediction)
    judged = [
        _brats_lesion(lesions == i, prediction, pair, shape, dilations) for i in _ids(lesions)
    ]
    reached = {c for lesion in judged for c in lesion.components}
    false = int(prediction.max(initial=0)) - len(reached)
    kept = [lesion for lesion in judged if lesion.mm3 > min_mm3]
    n = len(kept) + false
    return {
        "lesion_wise_dice": sum(x.dice for x in kept) / n if n else 1.0,
        "lesion_wise_hd95_mm": (sum(x.hd95_mm for x in kept) + false * BRATS_DISTANCE_MM) / n
        if n
        else 0.0,
        "n_true_positive": float(sum(bool(x.components) for x in kept)),
        "n_false_positive": float(false),
        "n_false_negative": float(sum(not x.components for x in kept)),
    }


@dataclass(frozen=True)
class _BratsLesion:
    components: tuple[int, ...]
    mm3: float
    dice: float
    hd95_mm: float


def _brats_lesion(
    lesion: Mask, prediction: Labels, pair: MaskPair, shape: Mask, dilations: int
) -> _BratsLesion:
    components = _touched(prediction, _grow(lesion, shape, dilations))
    found = np.isin(prediction, components) & (prediction > 0)
    shared = 2 * int((found & lesion).sum())
    distances = surface_distances(np.argwhere(lesion), np.argwhere(found), pair.spacing_mm)
    return _BratsLesion(
        tuple(components.tolist()),
        int(lesion.sum()) * pair.voxel_size,
        shared / (int(found.sum()) + int(lesion.sum())),
        BRATS_DISTANCE_MM if distances is None else distances.hd95_mm(),
    )


def _grow(mask: Mask, shape: Mask, times: int) -> Mask:
    grown: Mask = ndimage.binary_dilation(mask, shape, iterations=times)
    return grown


def panoptica_case(pair: MaskPair) -> Values:
    """RQ, SQ and PQ at IoU ≥ 0.5, and the same with Dice, as panoptica's default evaluator.

    Components by 26 neighbours in 3-D and by sides (4) in 2-D. Pairs are taken from the largest
    IoU down. Nothing matched: 0; nothing on either side: None.
    """
    around = 26 if pair.reference.ndim == 3 else 4
    reference, prediction = (_components(m, around) for m in (pair.reference, pair.prediction))
    n = int(reference.max(initial=0)) + int(prediction.max(initial=0))
    matched = _iou_pairs(reference, prediction)
    if n == 0:
        return dict.fromkeys(("pq", "sq", "rq", "pq_dice", "sq_dice"))
    rq = 2 * len(matched) / n
    sq = float(np.mean(matched)) if len(matched) else 0.0
    dice = float(np.mean(2 * matched / (1 + matched))) if len(matched) else 0.0
    return {"pq": rq * sq, "sq": sq, "rq": rq, "pq_dice": rq * dice, "sq_dice": dice}


def _iou_pairs(reference: Labels, prediction: Labels) -> NDArray[np.float64]:
    """IoU of the matched pairs."""
    both = (reference > 0) & (prediction > 0)
    pairs, shared = np.unique(
        np.stack([reference[both], prediction[both]], axis=1), axis=0, return_counts=True
    )
    sizes = [np.bincount(x.reshape(-1)) for x in (reference, prediction)]
    iou = shared / (sizes[0][pairs[:, 0]] + sizes[1][pairs[:, 1]] - shared)
    found: list[float] = []
    taken: set[tuple[int, int]] = set()
    for i in np.argsort(-iou, kind="stable"):
        ends = {(0, int(pairs[i, 0])), (1, int(pairs[i, 1]))}
        if iou[i] >= PANOPTICA_IOU and not ends & taken:
            taken |= ends
            found.append(float(iou[i]))
    return np.array(found)


def _components(mask: Mask, connectivity: int = 26) -> Labels:
    """Components, from 1; `connectivity` 26 stands for 8 and 18 and 6 for 4 in 2-D."""
    if mask.ndim == 2:
        connectivity = 8 if connectivity == 26 else 4
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    found: Labels = cc3d.connected_components(mask, connectivity=connectivity)
    return found.astype(np.int32)


def _large(components: Labels, least: int) -> Labels:
    """Only the components of at least so many voxels, numbered again."""
    keep = np.bincount(components.reshape(-1)) >= least
    keep[0] = False
    number = np.where(keep, np.cumsum(keep), 0)
    return number[components]


def _touched(components: Labels, other: Mask) -> Labels:
    """The components that share a voxel with the other mask."""
    found = np.unique(components[other])
    return found[found > 0]


def _ids(components: Labels) -> Sequence[int]:
    found: list[int] = np.unique(components[components > 0]).tolist()
    return found
