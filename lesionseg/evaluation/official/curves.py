"""PI-CAI and LUNA16: curves from one match of each candidate, whatever the threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.results import NEVER, CaseResult
from lesionseg.evaluation.statistics import detection
from lesionseg.evaluation.statistics.bootstrap import value_of
from lesionseg.evaluation.statistics.detection import Pool, pool_results

Values = dict[str, float | None]

PICAI_RATES = (0.1, 0.5, 1.0)
LUNA_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, eq=False)
class OfficialCurve:
    """Sensitivity over false positives per scan, from the highest threshold down."""

    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]

    def at(self, rates: Sequence[float]) -> NDArray[np.float64]:
        """Linear interpolation; flat beyond the ends."""
        return np.interp(rates, self.false_positives, self.sensitivity)


def picai_scores(results: Sequence[CaseResult]) -> Values:
    """AUROC, AP and their mean, and the sensitivity at false-positive rates, as picai_eval has it.

    The AP is the step integral with precision 0 at threshold 0. None where there are no lesions,
    and for the AUROC where all cases or none has one.
    """
    pool = pool_results(results)
    area = value_of(detection.average_precision(pool), len(pool.groups))[0]
    auroc = detection.case_auroc(pool).value
    both = None if area is None or auroc is None else (area + auroc) / 2
    at = {f"sensitivity_at_{r:g}_fp_per_case": _picai_sensitivity(pool, r) for r in PICAI_RATES}
    return {"auroc": auroc, "average_precision": area, "score": both, **at}


def _picai_sensitivity(pool: Pool, rate: float) -> float | None:
    """The last of the thresholds with at most `rate` false positives per case.

    picai_eval takes the lowest threshold for the 0 of the missed lesions and extends the curve
    there to infinity; when nothing is missed that costs the last real threshold, here as there.
    """
    n = len(pool.detected_at)
    if n == 0:
        return None
    found_at = np.where(pool.detected_at > NEVER, pool.detected_at, 0.0)
    thresholds = np.unique(np.concatenate([found_at, pool.false_score]))[::-1]
    true = np.array([(found_at >= t).sum() for t in thresholds])
    false = np.array([float((pool.false_score >= t).sum()) for t in thresholds])
    if len(thresholds) < 2:
        true, false = np.zeros(2), np.array([0.0, np.inf])
    true[-1], false[-1] = true[-2], np.inf
    allowed = false / pool.n_cases <= rate
    return float(true[allowed][-1] / n) if allowed.any() else 0.0


def luna_scores(results: Sequence[CaseResult]) -> Values:
    """The LUNA16 evaluation's FROC at 1/8 … 8 false positives per scan and their mean (CPM).

    None without lesions. Where the script divides 0 by 0 because no nodule was hit it is 0.
    """
    pool = pool_results(results)
    found = pool.detected_at > NEVER
    curve = froc_curve(
        np.concatenate([pool.detected_at[found], pool.false_score]),
        np.repeat([True, False], [int(found.sum()), len(pool.false_score)]),
        len(pool.detected_at),
        pool.n_cases,
    )
    return froc_values(curve, LUNA_RATES, "cpm")


def froc_curve(
    scores: NDArray[np.float64], true: NDArray[np.bool_], n_lesions: int, n_cases: float
) -> OfficialCurve | None:
    """One point for each distinct score and one at the origin; None without lesions."""
    if n_lesions == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.inf))
    hits = np.cumsum(true[order])[last]
    false = np.cumsum(~true[order])[last]
    return OfficialCurve(np.append(0.0, false / n_cases), np.append(0.0, hits / n_lesions))


def froc_values(curve: OfficialCurve | None, rates: Sequence[float], mean: str) -> Values:
    """The curve at the rates, and their mean under the name `mean`."""
    if curve is None:
        return {mean: None}
    at = curve.at(rates)
    points = {f"sensitivity_at_{r:g}_fp": float(v) for r, v in zip(rates, at, strict=True)}
    return {mean: float(at.mean()), **points}
