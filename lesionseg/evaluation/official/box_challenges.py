"""COCO and nnDetection: average precision of boxes over IoU thresholds, matched from the top score.

Boxes are matched at each IoU threshold on its own. COCO also splits by area (of the mask, where
the reference has one), in two dimensions alone; lesions outside the range are ignored, and so are
the boxes that find them and unmatched boxes outside the range. Boxes in what the reference says to
ignore (COCO's crowd regions) are neither true nor false.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Lesions
from lesionseg.evaluation.case.match_case import MOSTLY, CaseMatch
from lesionseg.evaluation.case.overlap_table import box_ious
from lesionseg.evaluation.official.curves import Values, froc_curve, froc_values
from lesionseg.evaluation.results import BoxMatches

MAX_BOXES = 100
RECALLS = np.linspace(0.0, 1.0, 101)
COCO_IOUS = np.linspace(0.5, 0.95, 10)
COCO_AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
NNDETECTION_IOUS = np.union1d((0.1, 0.5, 0.75), np.linspace(0.1, 0.5, 9))
NNDETECTION_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def coco_case(judged: CaseMatch) -> tuple[BoxMatches, ...]:
    """The matches of a case at IoU 0.5 to 0.95."""
    areas = COCO_AREAS if judged.lesions.geometry.dims == 2 else {"": (0.0, np.inf)}
    return tuple(
        _matches(judged, label, area, limits, COCO_IOUS)
        for label in _labels(judged)
        for area, limits in areas.items()
    )


def nndetection_case(judged: CaseMatch) -> tuple[BoxMatches, ...]:
    """The matches of a case at IoU 0.1 to 0.5 and 0.75."""
    everything = (0.0, np.inf)
    return tuple(
        _matches(judged, label, "", everything, NNDETECTION_IOUS) for label in _labels(judged)
    )


def coco_scores(cases: Sequence[Sequence[BoxMatches]]) -> Values:
    """AP and AR as COCOeval sums them up for boxes; None where there is nothing to find."""
    precision = {a: _precisions(cases, a, MAX_BOXES, np.float64) for a in COCO_AREAS}
    found: Values = {"ap": _mean(precision[""])}
    for i, name in ((0, "ap50"), (5, "ap75")):
        found[name] = _mean([p[i] for p in precision[""]])
    found |= {f"ap_{a}": _mean(precision[a]) for a in COCO_AREAS if a}
    found |= {f"ar{n}": _mean(_recalls(cases, "", n)) for n in (1, 10, MAX_BOXES)}
    return found | {f"ar_{a}": _mean(_recalls(cases, a, MAX_BOXES)) for a in COCO_AREAS if a}


def nndetection_scores(cases: Sequence[Sequence[BoxMatches]]) -> Values:
    """The mAP over IoU 0.1 to 0.5, the AP at 0.1 and 0.5, and the FROC of all labels pooled.

    Sensitivities are compared with the recall grid in single precision, as nnDetection does.
    """
    precision = _precisions(cases, "", MAX_BOXES, np.float32)
    mean_over = NNDETECTION_IOUS <= 0.5 + 1e-9
    found: Values = {"map": _mean([p[mean_over] for p in precision])}
    for iou in (0.1, 0.5):
        row = int(np.argmin(np.abs(NNDETECTION_IOUS - iou)))
        found[f"ap_{iou:g}"] = _mean([p[row] for p in precision])
        found |= {f"{k}_{iou:g}": v for k, v in _pooled_froc(cases, row).items()}
    return found


def _pooled_froc(cases: Sequence[Sequence[BoxMatches]], row: int) -> Values:
    matches = [m for case in cases for m in case]
    n_lesions = sum(m.n_lesions for m in matches)
    judged = [~m.ignored[row] for m in matches]
    pairs = list(zip(matches, judged, strict=True))
    scores = np.concatenate([np.zeros(0), *(m.scores[kept] for m, kept in pairs)])
    true = np.concatenate(
        [np.zeros(0, dtype=np.bool_), *(m.matched[row][kept] for m, kept in pairs)]
    )
    curve = froc_curve(scores, true, n_lesions, len(cases))
    return froc_values(curve, NNDETECTION_RATES, "froc")


def _labels(judged: CaseMatch) -> list[int]:
    return sorted({*judged.lesions.labels.tolist(), *judged.candidates.labels.tolist()})


def _matches(
    judged: CaseMatch, label: int, area: str, limits: tuple[float, float], ious: NDArray[np.float64]
) -> BoxMatches:
    lesions, candidates = judged.lesions, judged.candidates
    own = np.flatnonzero(lesions.labels == label)
    areas = np.where(lesions.masked, lesions.n_voxels, _box_areas(lesions))
    outside = _outside(areas, limits)[own]
    own, outside = own[np.argsort(outside, kind="stable")], np.sort(outside)
    given = np.array([c.score for c in judged.prediction.candidates], dtype=np.float64)
    boxes = np.flatnonzero(candidates.labels == label)
    boxes = boxes[np.argsort(-given[boxes], kind="stable")][:MAX_BOXES]
    overlap = box_ious(candidates.boxes[boxes], lesions.boxes[own])
    found = [_greedy(overlap, outside, iou) for iou in ious]
    matched = np.array([f >= 0 for f in found]).reshape(len(ious), len(boxes))
    of_ignored = [np.append(outside, False)[f] for f in found]
    ignored = np.array(of_ignored).reshape(len(ious), len(boxes))
    ignored |= ~matched & _outside(_box_areas(candidates), limits)[boxes]
    # as COCO's crowd regions: by the share of the box that lies in what is not judged
    share = judged.set_aside.of_box[boxes]
    ignored |= ~matched & (share >= np.maximum(ious, MOSTLY)[:, np.newaxis])
    return BoxMatches(label, area, given[boxes], matched, ignored, int((~outside).sum()))


def _greedy(
    overlap: NDArray[np.float64], ignored: NDArray[np.bool_], iou: float
) -> NDArray[np.int64]:
    """The lesion `[boxes]` that each box finds, -1 for none; ignored lesions stand last."""
    free = np.ones(overlap.shape[1], dtype=np.bool_)
    found = np.full(len(overlap), -1, dtype=np.int64)
    for box, row in enumerate(overlap):
        for part in (~ignored, ignored):
            open_ = np.flatnonzero(free & part & (row >= min(iou, 1 - 1e-10)))
            if len(open_):
                best = open_[row[open_] == row[open_].max()][-1]
                found[box], free[best] = best, False
                break
    return found


def _outside(areas: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.bool_]:
    return (areas < limits[0]) | (areas > limits[1])


def _box_areas(instances: Lesions) -> NDArray[np.float64]:
    dims = instances.geometry.dims
    sides = instances.boxes[:, dims:] - instances.boxes[:, :dims]
    return np.asarray(np.prod(sides, axis=1), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _Pooled:
    """All cases of one label and range: `true` and `false` `[ious, boxes]`, running sums."""

    n_lesions: int
    true: NDArray[np.floating[Any]]
    false: NDArray[np.floating[Any]]


def _pooled(
    cases: Sequence[Sequence[BoxMatches]], area: str, most: int, dtype: type[np.floating[Any]]
) -> list[_Pooled]:
    """One entry a label that has lesions."""
    chosen = [m for case in cases for m in case if m.area == area]
    return [
        _pool([m for m in chosen if m.label == label], most, dtype)
        for label in sorted({m.label for m in chosen if m.n_lesions})
    ]


def _pool(matches: Sequence[BoxMatches], most: int, dtype: type[np.floating[Any]]) -> _Pooled:
    order = np.argsort(-np.concatenate([m.scores[:most] for m in matches]), kind="stable")
    matched = np.concatenate([m.matched[:, :most] for m in matches], axis=1)[:, order]
    ignored = np.concatenate([m.ignored[:, :most] for m in matches], axis=1)[:, order]
    return _Pooled(
        sum(m.n_lesions for m in matches),
        np.cumsum(matched & ~ignored, axis=1).astype(dtype),
        np.cumsum(~matched & ~ignored, axis=1).astype(dtype),
    )


def _precisions(
    cases: Sequence[Sequence[BoxMatches]], area: str, most: int, dtype: type[np.floating[Any]]
) -> list[NDArray[np.float64]]:
    """Precision `[ious, recalls]` of each label: the best at that recall or beyond."""
    return [
        np.array([_envelope(t, f, p.n_lesions) for t, f in zip(p.true, p.false, strict=True)])
        for p in _pooled(cases, area, most, dtype)
    ]


def _envelope(
    true: NDArray[np.floating[Any]], false: NDArray[np.floating[Any]], n_lesions: int
) -> NDArray[np.float64]:
    precision = true / (true + false + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(true / n_lesions, RECALLS, side="left")
    return np.append(best, 0.0)[place].astype(np.float64)


def _recalls(
    cases: Sequence[Sequence[BoxMatches]], area: str, most: int
) -> list[NDArray[np.float64]]:
    """Recall `[ious]` of each label with all its boxes."""
    return [
        np.append(np.zeros((len(p.true), 1)), p.true, axis=1)[:, -1] / p.n_lesions
        for p in _pooled(cases, area, most, np.float64)
    ]


def _mean(values: Sequence[NDArray[np.float64]]) -> float | None:
    return float(np.mean(values)) if len(values) else None
