"""Further numbers of scores.json: quality of what is found, recall along size, calibration."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import EdgeCase
from lesionseg.evaluation.presets import Preset
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.statistics import detection
from lesionseg.evaluation.statistics.calibration_curve import describe_calibration, judgements
from lesionseg.evaluation.statistics.case_accuracy import case_table, load_numbers
from lesionseg.evaluation.statistics.estimates import Estimate, proportion
from lesionseg.evaluation.statistics.logistic import SizeCurve, fit_size_curve, size_statistic
from lesionseg.evaluation.statistics.pooled import PooledResults
from lesionseg.evaluation.statistics.score_parts import HALF_MM, ContrastCell, SizeCurveScores
from lesionseg.evaluation.statistics.size_bins import (
    Selection,
    bins_between,
    of_diameter,
    within_mm,
)

N_QUANTILE_BINS = 4
N_CURVE_POINTS = 25
_COMPARED = ("brier", "slope", "intercept", "observed_expected", "ece", "ece_if_perfect", "ci95")
_OF_READER = ("n_cases", "n_groups", "n_lesions", "n_true_positive", "n_false_positive")


def detail_numbers(summary: PooledResults) -> dict[str, Any]:
    """All of them, by their keys in scores.json; every null has a reason beside it."""
    return {
        "iou": summary.overlap("iou"),
        "volume_error_ml": volume_error(summary),
        **panoptic_quality(summary),
        "quality_by_size": quality_by_size(summary),
        "recall_by_half": summary.recall_between([0.0, HALF_MM]),
        "recall_by_size_quantile": recall_by_quantile(summary),
        "recall_by_long_axis": recall_by_long_axis(summary),
        "recall_by_size_and_contrast": recall_by_size_and_contrast(summary),
        **case_numbers(summary),
        "size_curve": size_curve(summary),
        "calibration": calibration(summary),
        **case_table(summary),
        **load_numbers(summary),
    }


def volume_error(summary: PooledResults) -> dict[str, Any]:
    """Mean error (with sign) and mean absolute error of the volume by case, all cases."""
    errors = [r.volume_error_ml for r in summary.results]
    sizes = [None if e is None else abs(e) for e in errors]
    absolute = summary.average(sizes)
    return {**summary.average(errors), "absolute": absolute}


def panoptic_quality(
    summary: PooledResults, from_mm: float = 0.0, to_mm: float | None = None
) -> dict[str, Any]:
    """SQ: mean IoU of pairs; RQ: their F1; PQ = SQ·RQ (Kirillov et al. 2019); their mean Dice.

    Of one size: lesions, found or missed, by their own diameter, false positives by theirs, so that
    the counts of all sizes add up. Bare boxes have no IoU, and with them there is no PQ.
    """
    inside = within_mm(from_mm, to_mm)
    pairs = [r.pairs for r in summary.results]
    ious = [[iou for mm, iou in zip(p.found_mm, p.ious, strict=True) if inside(mm)] for p in pairs]
    drawn = [[iou for iou in of_case if iou is not None] for of_case in ious]
    lesions = summary.sums([sum(inside(x.diameter_mm) for x in r.lesions) for r in summary.results])
    false = summary.sums([sum(map(inside, p.false_mm)) for p in pairs])
    found, counted = (summary.sums(list(map(len, part))) for part in (ious, drawn))
    iou = summary.sums(list(map(sum, drawn)))
    dice = summary.sums([sum(2 * iou / (1 + iou) for iou in of_case) for of_case in drawn])
    all_, none = found + lesions + false, edge_cases.NO_LESION
    quality = summary.one(detection.ratio(2 * iou, all_), lesions, none)
    if counted.sum() < found.sum():
        quality = Estimate(None, None, edge_cases.BOXES_WITHOUT_IOU.reason)
    numbers = {
        "panoptic_quality": quality,
        "recognition_quality": summary.one(detection.ratio(2 * found, all_), lesions, none),
        **{
            name: summary.one(detection.ratio(total, counted), counted, edge_cases.NOTHING_MATCHED)
            for name, total in (("segmentation_quality", iou), ("matched_lesion_dice", dice))
        },
    }
    return {name: number.to_json() for name, number in numbers.items()}


def quality_by_size(summary: PooledResults) -> list[dict[str, Any]]:
    """`panoptic_quality` in groups of equivalent diameter, `[from, to)`."""
    bins = bins_between(summary.preset.size_edges_mm)
    return [
        {"from_mm": low, "to_mm": high, **panoptic_quality(summary, low, high)}
        for low, high in bins
    ]


def second_reader_numbers(results: Sequence[CaseResult], preset: Preset) -> dict[str, Any]:
    """What another reader's lesions, judged as predictions are, find of the reference's."""
    summary = PooledResults.of(results, preset, replicates=0, seed=0)
    return {
        **{name: n for name, n in summary.counts().items() if name in _OF_READER},
        "lesion_recall": summary.recall().to_json(),
        "false_positives_per_case": summary.false_positives_per_case().to_json(),
        "recall_by_size": summary.recall_by_size(),
        "recall_by_half": summary.recall_between([0.0, HALF_MM]),
    }


def recall_by_quantile(summary: PooledResults) -> list[dict[str, Any]]:
    """Recall in four groups of about as many lesions; fewer when diameters repeat."""
    diameters = [x.diameter_mm for r in summary.results for x in r.lesions]
    if len(diameters) < N_QUANTILE_BINS:
        return []
    cuts = np.unique(np.quantile(diameters, np.linspace(0, 1, N_QUANTILE_BINS + 1)[1:-1]))
    return summary.recall_between([0.0, *(cuts[cuts > 0]).tolist()])


def recall_by_long_axis(summary: PooledResults) -> list[dict[str, Any]]:
    """Recall in groups of the long axis, `[from, to)`; empty where no lesion has one.

    Bare boxes have none and are in no group.
    """
    if not any(x.long_axis_mm is not None for r in summary.results for x in r.lesions):
        return []
    return summary.recall_between(summary.preset.size_edges_mm, _of_long_axis)


def _of_long_axis(low: float | None, high: float | None) -> Selection:
    inside = within_mm(low, high)
    return lambda lesion: lesion.long_axis_mm is not None and inside(lesion.long_axis_mm)


def recall_by_size_and_contrast(summary: PooledResults) -> list[dict[str, Any]]:
    """Recall in cells of equivalent diameter and contrast without its sign, `[from, to)`.

    Lesions whose contrast is not known are in no cell; empty when none is known.
    """
    if not any(x.contrast is not None for r in summary.results for x in r.lesions):
        return []
    preset = summary.preset
    bins = bins_between(preset.size_edges_mm), bins_between(preset.contrast_edges)
    cells = [(*size, *contrast) for size, contrast in itertools.product(*bins)]
    counts = summary.recalls([_of_cell(*cell) for cell in cells])
    return [
        ContrastCell(*cell, *of_cell).to_json() for cell, of_cell in zip(cells, counts, strict=True)
    ]


def _of_cell(
    from_mm: float | None, to_mm: float | None, low: float | None, high: float | None
) -> Selection:
    """Lesions of a diameter and a contrast (without its sign) within both."""
    of_size, of_contrast = of_diameter(from_mm, to_mm), within_mm(low, high)
    return lambda lesion: (
        lesion.contrast is not None and of_size(lesion) and of_contrast(abs(lesion.contrast))
    )


def case_numbers(summary: PooledResults) -> dict[str, dict[str, Any]]:
    """Sensitivity and specificity of calling a case positive when a candidate is accepted."""
    called = np.array([r.is_called for r in summary.results], dtype=np.bool_)
    ill = np.array([r.is_ill for r in summary.results], dtype=np.bool_)
    well = np.array([r.is_lesion_free for r in summary.results], dtype=np.bool_)
    return {
        "case_sensitivity": _share(summary, called & ill, ill, edge_cases.NO_CASE_WITH_LESION),
        "case_specificity": _share(summary, ~called & well, well, edge_cases.NO_LESION_FREE_CASE),
    }


def _share(
    summary: PooledResults, hits: NDArray[np.bool_], of: NDArray[np.bool_], undefined: EdgeCase
) -> dict[str, Any]:
    share = proportion(summary.sums(hits.tolist()), summary.sums(of.tolist()), undefined)
    return {**share.to_json(), "n": int(of.sum())}


def size_curve(summary: PooledResults) -> dict[str, Any]:
    """The logistic curve of recall over ln diameter and where it passes 50 and 90 %."""
    lesions = [x for r in summary.results for x in r.lesions]
    diameters = np.array([x.diameter_mm for x in lesions], dtype=np.float64)
    found = np.array([x.detected for x in lesions], dtype=np.bool_)
    curve = fit_size_curve(diameters, found)
    if curve is None:
        few, none = edge_cases.TOO_FEW_FOR_CURVE.reason, Estimate(None)
        return SizeCurveScores(None, None, none, none, reason=few).to_json()
    along = np.geomspace(curve.smallest_mm, curve.largest_mm, N_CURVE_POINTS)
    statistic = size_statistic(
        diameters, found, summary.pool.lesion_group, len(summary.pool.groups), along
    )
    support = summary.sums([len(r.lesions) for r in summary.results])
    numbers = summary.estimator.bootstrapped(
        statistic, support, edge_cases.NO_LESION, 4 * len(lesions)
    )
    *points, d50, d90 = numbers
    return SizeCurveScores(
        curve.intercept,
        curve.slope,
        _inside(curve, curve.d50_mm, d50),
        _inside(curve, curve.d90_mm, d90),
        (curve.smallest_mm, curve.largest_mm),
        tuple(along.tolist()),
        tuple(curve.recall(along).tolist()),
        tuple(point.ci95 for point in points),
        next((one.reason for one in (points[0], d50, d90) if one.reason), None),
        _outside(curve, curve.d50_mm),
        _outside(curve, curve.d90_mm),
    ).to_json()


def _outside(curve: SizeCurve, diameter: float) -> str | None:
    if curve.smallest_mm <= diameter <= curve.largest_mm:
        return None
    return "above" if diameter > curve.largest_mm else "below"


def _inside(curve: SizeCurve, diameter: float, bootstrapped: Estimate) -> Estimate:
    """The fitted diameter, None where it was not observed, with its interval."""
    value = None if _outside(curve, diameter) else diameter
    return Estimate(value, bootstrapped.ci95, bootstrapped.reason)


def calibration(summary: PooledResults) -> dict[str, Any]:
    """How well the candidates' probabilities (else: their scores) say what is a lesion.

    Beside probabilities, `of_score` has the same numbers of the scores, to compare with.
    """
    if not summary.scored:
        return {"of": None, "reason": edge_cases.UNSCORED.reason}
    candidates = [c for r in summary.results for c in r.candidates]
    calibrated = bool(candidates) and all(c.probability is not None for c in candidates)
    found = describe_calibration(
        judgements(summary.results, calibrated=calibrated), summary.estimator
    )
    if found is None:
        return {"of": None, "reason": edge_cases.TOO_FEW_FOR_CURVE.reason}
    if not calibrated:
        return {"of": "score", **found}
    raw = describe_calibration(judgements(summary.results), summary.estimator) or {}
    return {"of": "probability", **found, "of_score": {k: raw.get(k) for k in _COMPARED}}
