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
from lesionseg.evaluation.edge_cases import NOTHING_ACCEPTED
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.statistics.bootstrap import Statistic, Weights, place_sums
from lesionseg.evaluation.statistics.estimates import Estimate, Estimator, as_list
from lesionseg.evaluation.statistics.logistic import fit_counts, fit_logistic, fit_offset
from lesionseg.evaluation.statistics.score_parts import CalibrationBin

MIN_FOR_ISOTONIC = 200
MIN_FOR_PLATT = 10  # of each outcome, to fit
MIN_FOR_CALIBRATION = 5  # of each outcome, to describe
N_BINS = 10
LOGIT_STEP = 0.05  # logits of regressions are rounded to it, so that replicates are quick
PERFECT_DRAWS = 200
BOOTSTRAPPED = ("brier", "slope", "intercept", "observed_expected")


@dataclass(frozen=True, eq=False)
class Judgements:
    """Scores (or probabilities) `[n]` of judged candidates and whether each found a lesion.

    `group` `[n]`: indices into the sorted groups of all cases.
    """

    values: NDArray[np.float64]
    true: NDArray[np.bool_]
    group: NDArray[np.int64]


def judgements(results: Sequence[CaseResult], *, calibrated: bool = False) -> Judgements:
    """All retained candidates that are not ignored; with their probabilities if `calibrated`."""
    index = {group: i for i, group in enumerate(sorted({r.group for r in results}))}
    known = [
        (value, c.outcome_any == "true_positive", index[r.group])
        for r in results
        for c in r.candidates
        for value in [c.probability if calibrated else c.score]
        if c.outcome_any != "ignored" and value is not None
    ]
    return Judgements(
        np.array([v for v, _, _ in known], dtype=np.float64),
        np.array([t for _, t, _ in known], dtype=np.bool_),
        np.array([g for _, _, g in known], dtype=np.int64),
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


def describe_calibration(data: Judgements, estimator: Estimator) -> dict[str, Any] | None:
    """How well chances hold, with intervals, and the reliability curve.

    Brier score (1950). Slope: logistic regression of the outcome on the chance's logit (Cox 1958);
    1 when well calibrated, under 1 where chances are too extreme. Intercept: the same with the
    slope fixed at 1, under 0 where chances are too high (Van Calster et al. 2019).
    `observed_expected`: true positives over the sum of chances. ECE: mean distance of bins of equal
    width, weighed by their candidates; `ece_if_perfect` is that of outcomes drawn by the chances
    themselves, with what 95 % of draws give. None with fewer than 5 of each outcome.
    """
    if min(int(data.true.sum()), int((~data.true).sum())) < MIN_FOR_CALIBRATION:
        return None
    support = np.bincount(data.group, minlength=estimator.n_groups).astype(np.float64)
    estimates = estimator.bootstrapped(
        _calibration_statistic(data, estimator.n_groups), support, NOTHING_ACCEPTED, len(data.true)
    )
    numbers = dict(zip(BOOTSTRAPPED, estimates, strict=True))
    reason = next((one.reason for one in estimates if one.reason), None)
    ece, perfect = _ece(data.values, data.true[None])[0], _ece_if_perfect(data.values)
    return {
        "n": len(data.true),
        **{name: one.value for name, one in numbers.items()},
        "ece": float(ece),
        "ece_if_perfect": perfect.value,
        "ci95": {
            n: as_list(one.ci95) for n, one in (numbers | {"ece_if_perfect": perfect}).items()
        },
        **({"reason": reason} if reason else {}),
        "reliability": [b.to_json() for b in _reliability(data)],
    }


def _calibration_statistic(data: Judgements, n_groups: int) -> Statistic:
    """Statistic: the numbers of `BOOTSTRAPPED`, from sums by group and by logit."""
    p, y = data.values, data.true.astype(np.float64)
    steps, place = np.unique(np.round(logit(p) / LOGIT_STEP), return_inverse=True)
    x, counts = steps * LOGIT_STEP, np.bincount(place).astype(np.float64)
    totals, hits = (place_sums(v, data.group, place, n_groups) for v in (np.ones(len(y)), y))
    squares, chances = (np.bincount(data.group, v, n_groups) for v in ((p - y) ** 2, p))

    def statistic(weights: Weights) -> NDArray[np.float64]:
        n, true = weights @ totals, weights @ hits
        slope = fit_counts(x, true, n, counts, ridge=1e-6)[:, 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            brier = (weights @ squares) / n.sum(1)
            ratio = true.sum(1) / (weights @ chances)
        known = np.stack([brier, slope, fit_offset(x, true, n), ratio], axis=1)
        mixed = (true.sum(1) > 0) & (true.sum(1) < n.sum(1))
        return np.where(mixed[:, None], known, np.nan)

    return statistic


def _ece(p: NDArray[np.float64], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Expected calibration error `[draws]` of outcomes `[draws, n]`."""
    members = _bin_of(p)[:, None] == np.arange(N_BINS)
    apart = (true - p) @ members.astype(np.float64)
    return np.asarray(np.abs(apart).sum(1) / len(p), dtype=np.float64)


def _ece_if_perfect(p: NDArray[np.float64]) -> Estimate:
    """What the error is by chance alone when every stated chance is true."""
    rng = np.random.default_rng(0)
    drawn = np.concatenate([_ece(p, rng.random((1, len(p))) < p) for _ in range(PERFECT_DRAWS)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(drawn.mean()), (float(low), float(high)))


def _bin_of(p: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((p * N_BINS).astype(np.int64), N_BINS - 1)


def _reliability(data: Judgements) -> list[CalibrationBin]:
    bins, p = _bin_of(data.values), data.values
    return [
        CalibrationBin(
            i / N_BINS,
            (i + 1) / N_BINS,
            int((bins == i).sum()),
            float(p[bins == i].mean()),
            float(data.true[bins == i].mean()),
        )
        for i in np.unique(bins).tolist()
    ]
