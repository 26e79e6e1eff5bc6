"""Further numbers of scores.json: quality of what is found, recall along size, calibration."""

from typing import Any

import numpy as np

from lesionseg.evaluation import detection, edge_cases
from lesionseg.evaluation.calibration import describe_calibration, judgements
from lesionseg.evaluation.estimates import as_mapping
from lesionseg.evaluation.size import fit_size_curve
from lesionseg.evaluation.summary import Summary

N_QUANTILE_BINS = 4


def detail_numbers(summary: Summary) -> dict[str, Any]:
    """All of them, by their keys in scores.json; every null has a reason beside it."""
    return {
        "iou": summary.overlap("iou"),
        "volume_error_ml": volume_error(summary),
        **panoptic_quality(summary),
        "recall_by_size_quantile": recall_by_quantile(summary),
        "size_curve": size_curve(summary),
        "calibration": calibration(summary),
    }


def volume_error(summary: Summary) -> dict[str, Any]:
    """Mean error (with sign) and mean absolute error of the volume by case, all cases."""
    errors = [r.volume_error_ml for r in summary.results]
    sizes = [None if e is None else abs(e) for e in errors]
    absolute = summary.average(sizes)
    return {**summary.average(errors), "absolute": absolute}


def panoptic_quality(summary: Summary) -> dict[str, Any]:
    """SQ: mean IoU of found lesions; RQ is `lesion_f1`; PQ = SQ·RQ; and their mean Dice."""
    lesions = summary.sums([len(r.lesions) for r in summary.results])
    found = summary.sums([r.n_detected for r in summary.results])
    false = summary.n_outcome("false_positive")
    masked = [[x for x in r.lesions if x.dice is not None] for r in summary.results]
    iou = summary.sums([sum(x.iou or 0.0 for x in row) for row in masked])
    dice = summary.sums([sum(x.dice or 0.0 for x in row) for row in masked])
    counted = summary.sums([len(row) for row in masked])
    quality = detection.ratio(2 * iou, found + lesions + false)
    return {
        "panoptic_quality": as_mapping(summary.one(quality, lesions, edge_cases.NO_LESION)),
        "segmentation_quality": as_mapping(
            summary.one(detection.ratio(iou, counted), counted, edge_cases.NOTHING_MATCHED)
        ),
        "matched_lesion_dice": as_mapping(
            summary.one(detection.ratio(dice, counted), counted, edge_cases.NOTHING_MATCHED)
        ),
    }


def recall_by_quantile(summary: Summary) -> list[dict[str, Any]]:
    """Recall in four groups of about as many lesions; fewer when diameters repeat."""
    diameters = [x.diameter_mm for r in summary.results for x in r.lesions]
    if len(diameters) < N_QUANTILE_BINS:
        return []
    cuts = np.unique(np.quantile(diameters, np.linspace(0, 1, N_QUANTILE_BINS + 1)[1:-1]))
    return summary.recall_between([0.0, *(cuts[cuts > 0]).tolist(), None])


def size_curve(summary: Summary) -> dict[str, Any]:
    """The logistic curve of recall over ln diameter and where it passes 50 and 90 %."""
    lesions = [x for r in summary.results for x in r.lesions]
    curve = fit_size_curve(
        np.array([x.diameter_mm for x in lesions], dtype=np.float64),
        np.array([x.detected for x in lesions], dtype=np.bool_),
    )
    if curve is None:
        none = dict.fromkeys(("intercept", "slope", "d50_mm", "d90_mm"))
        return {**none, "reason": edge_cases.TOO_FEW_FOR_CURVE.reason}
    found: dict[str, Any] = {
        "intercept": curve.intercept,
        "slope": curve.slope,
        "d50_mm": curve.d50_mm,
        "d90_mm": curve.d90_mm,
        "observed_mm": [curve.smallest_mm, curve.largest_mm],
    }
    if None in (curve.d50_mm, curve.d90_mm):
        found["reason"] = edge_cases.OUTSIDE_SIZES.reason
    return found


def calibration(summary: Summary) -> dict[str, Any]:
    """How well the candidates' probabilities (else: their scores) say what is a lesion."""
    if not summary.scored:
        return {"of": None, "reason": edge_cases.UNSCORED.reason}
    candidates = [c for r in summary.results for c in r.candidates]
    calibrated = bool(candidates) and all(c.probability is not None for c in candidates)
    found = describe_calibration(judgements(summary.results, calibrated=calibrated))
    if found is None:
        return {"of": None, "reason": edge_cases.TOO_FEW_FOR_CURVE.reason}
    return {"of": "probability" if calibrated else "score", **found}
