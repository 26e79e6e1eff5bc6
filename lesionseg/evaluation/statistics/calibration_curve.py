"""Is a candidate with probability p a true positive in a share p of cases?

Platt's fit (1999) with an intercept, on the logit of the score; isotonic only with 200 of each.
Probabilities are never used for ranking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from lesionseg.core import Calibration
from lesionseg.core.prediction import CalibrationKind, logit
from lesionseg.errors import ContentError
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.score_sections import CalibrationBin
from lesionseg.evaluation.statistics.logistic import fit_logistic

MIN_FOR_ISOTONIC = 200
MIN_FOR_PLATT = 10  # of each outcome, to fit
MIN_FOR_CALIBRATION = 5  # of each outcome, to describe
N_BINS = 10


@dataclass(frozen=True, eq=False)
class Judgements:
    """Scores (or probabilities) `[n]` of judged candidates and whether each found a lesion."""

    values: NDArray[np.float64]
    true: NDArray[np.bool_]


def judgements(results: Sequence[CaseResult], *, calibrated: bool = False) -> Judgements:
    """All retained candidates that are not ignored; with their probabilities if `calibrated`."""
    judged = [c for r in results for c in r.candidates if c.outcome_any != "ignored"]
    values = [c.probability if calibrated else c.score for c in judged]
    kept = [(v, c.outcome_any == "true_positive") for v, c in zip(values, judged, strict=True)]
    known = [(v, t) for v, t in kept if v is not None]
    return Judgements(
        np.array([v for v, _ in known], dtype=np.float64),
        np.array([t for _, t in known], dtype=np.bool_),
    )


def fit_calibration(
    data: Judgements, kind: CalibrationKind = "platt", *, fitted_on: str | None = None
) -> Calibration:
    """Fit on candidates of development cases, best out of fold.

    Raises `ContentError` with fewer than 10 of each outcome (isotonic: 200).
    """
    n_true, n_false = int(data.true.sum()), int((~data.true).sum())
    least = MIN_FOR_ISOTONIC if kind == "isotonic" else MIN_FOR_PLATT
    if min(n_true, n_false) < least:
        raise ContentError(
            f"Too few candidates to calibrate ({kind}).",
            seen=f"{n_true} true and {n_false} false ones",
            expected=f"at least {least} of each",
        )
    x = logit(data.values)
    if kind == "platt":
        # Platt's targets: one pseudo-count of each outcome keeps probabilities off 0 and 1
        targets = np.where(data.true, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
        fit = fit_logistic(x, data.true, targets=targets)
        found = Calibration("platt", fit.intercept, fit.slope)
    else:
        found = _isotonic(x, data.true)
    return replace(found, fitted_on=fitted_on, n_true=n_true, n_false=n_false)


def fit_out_of_fold(
    results: Sequence[CaseResult], fold_of: Mapping[str, int], kind: CalibrationKind = "platt"
) -> dict[int, Calibration | None]:
    """For each fold of `fold_of` (by case) the calibration fitted on all the others.

    With it probabilities can be judged on the very cases the final one is fitted on. None where
    the other folds have too few candidates.
    """
    found: dict[int, Calibration | None] = {}
    for number in sorted(set(fold_of.values())):
        rest = judgements([r for r in results if fold_of[r.case] != number])
        try:
            found[number] = fit_calibration(rest, kind)
        except ContentError:
            found[number] = None
    return found


def _isotonic(x: NDArray[np.float64], true: NDArray[np.bool_]) -> Calibration:
    order = np.argsort(x, kind="stable")
    knots, first = np.unique(x[order], return_inverse=True)
    counts = np.bincount(first)
    shares = np.bincount(first, weights=true[order]) / counts
    fitted = isotonic_regression(shares, weights=counts).x
    return Calibration(
        "isotonic", knots=tuple(knots.tolist()), probabilities=tuple(fitted.tolist())
    )


def describe_calibration(data: Judgements) -> dict[str, Any] | None:
    """Brier score, calibration slope and intercept, ECE and the reliability curve.

    Slope and intercept: logistic regression of the outcome on the logit of the probability (Cox
    1958); 1 and 0 when well calibrated. ECE: mean distance of bins of equal width, weighed by
    their candidates. None with fewer than 5 of each outcome.
    """
    if min(int(data.true.sum()), int((~data.true).sum())) < MIN_FOR_CALIBRATION:
        return None
    p, y = data.values, data.true.astype(np.float64)
    fit = fit_logistic(logit(p), data.true, ridge=1e-6)
    bins = np.minimum((p * N_BINS).astype(np.int64), N_BINS - 1)
    curve = [
        CalibrationBin(
            i / N_BINS,
            (i + 1) / N_BINS,
            int((bins == i).sum()),
            float(p[bins == i].mean()),
            float(y[bins == i].mean()),
        )
        for i in np.unique(bins).tolist()
    ]
    apart = [b.n * abs(b.mean_probability - b.true_share) for b in curve]
    return {
        "n": len(p),
        "brier": float(((p - y) ** 2).mean()),
        "slope": fit.slope,
        "intercept": fit.intercept,
        "ece": float(sum(apart) / len(p)),
        "reliability": [b.to_json() for b in curve],
    }
