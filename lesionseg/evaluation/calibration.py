"""Calibration of candidate scores to probabilities (Platt): fit, slope, Brier score, bins.

A share p of the candidates with probability p should be true positives.

A logistic regression on the logit of the score (Platt 1999) turns scores into probabilities.
Probabilities are never used for ranking.
"""

import numpy as np
from scipy.special import expit

from lesionseg.core import Calibration
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.core.prediction import logit
from lesionseg.errors import ContentError
from lesionseg.evaluation.intervals import Estimate
from lesionseg.evaluation.tables import Tables

TOO_FEW = "fewer than 5 of either kind are too few for a curve"
MIN_FOR_PLATT = 10  # a fit needs so many candidates of each outcome
MIN_FOR_CURVE = 5  # the measures of calibration need so many
N_BINS = 10
_MAX_STEPS = 100  # of Newton's method, which usually converges in far fewer
_LONGEST_STEP = 5.0  # of intercept or slope; the first steps may be far too long
_CONVERGED = 1e-10  # a shorter step ends the iteration
_LARGEST_LOGIT = 30.0  # beyond it, expit is 0 or 1 in every digit that counts


def scores_and_outcomes(tables: Tables, column: str = "score") -> tuple[Numbers, Flags]:
    """Return the scores of all candidates that are not ignored, and if they are true positives.

    An outcome is that of the match in which all candidates are accepted (`outcome_any`), so that
    it does not depend on the operating point.

    Args:
        tables: The evaluated cases.
        column: `score`, or `probability` for the calibrated probabilities. Candidates whose cell
            in this column is empty are left out.

    Returns:
        The scores or probabilities `[n]`, and flags `[n]` that are True for true positives.
    """
    table = tables.candidates
    counted = table[(table["outcome_any"] != "ignored") & table[column].notna()]
    true = counted["outcome_any"] == "true_positive"
    return counted[column].to_numpy(float), true.to_numpy(bool)


def fit_calibration(tables: Tables, *, fitted_on: str | None = None) -> Calibration:
    """Fit the map from the scores of candidates to probabilities on development cases.

    The cases should have out-of-fold predictions, because probabilities on training cases are
    too extreme.

    Args:
        tables: The evaluated development cases.
        fitted_on: The role of these cases, which is recorded in the calibration.

    Raises:
        ContentError: If there are fewer than 10 candidates of either outcome.
    """
    scores, true = scores_and_outcomes(tables)
    n_true = int(true.sum())
    n_false = int((~true).sum())
    if min(n_true, n_false) < MIN_FOR_PLATT:
        raise ContentError(
            f"Calibration needs {MIN_FOR_PLATT} true and {MIN_FOR_PLATT} false candidates; there "
            f"are {n_true} and {n_false}."
        )
    # Platt's targets: one pseudo-count of each outcome keeps probabilities away from 0 and 1
    targets = np.where(true, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
    fits = fit_logistic(logit(scores), true=targets[None], totals=np.ones((1, len(true))))
    intercept, slope = fits[0]  # the only fit
    return Calibration(
        intercept=float(intercept),
        slope=float(slope),
        fitted_on=fitted_on,
        n_true=n_true,
        n_false=n_false,
    )


def describe_calibration(tables: Tables) -> list[Estimate]:
    """Measure how well the candidates' probabilities agree with the share of true positives.

    The scores are measured instead of the probabilities if a candidate has no probability. The
    numbers have no intervals, because intervals of few patients would be unreliable.

    Returns:
        The rows of scores.json, with `probability` or `score` as subset:

        - `calibration_brier`: the Brier score (1950).
        - `calibration_slope`: the slope of a logistic regression of the outcome on the logit of the
          probability (Cox 1958). It is 1 for perfect calibration, and below 1 for probabilities
          that are too extreme.
        - `observed_expected`: the number of true positives divided by the sum of the probabilities.
          Left out if this sum is 0.
        - `true_share`: a curve with the share of true positives in each of ten equal bins of
          probability. `at` is the mean probability. Bins without a candidate are left out.

        With fewer than `MIN_FOR_CURVE` true positives, or as few other candidates, only
        `calibration_slope` is returned, as undefined.
    """
    candidates = tables.candidates
    is_calibrated = len(candidates) > 0 and bool(candidates["probability"].notna().all())
    column = "probability" if is_calibrated else "score"
    p, true = scores_and_outcomes(tables, column)
    if min(int(true.sum()), int((~true).sum())) < MIN_FOR_CURVE:
        return [Estimate(None, reason=TOO_FEW, name="calibration_slope")]
    y = true.astype(float)
    # the ridge keeps the slope finite if a probability separates the outcomes perfectly
    fits = fit_logistic(logit(p), true=y[None], totals=np.ones((1, len(y))), ridge=1e-6)
    _, slope = fits[0]  # the only fit
    numbers = {"calibration_brier": ((p - y) ** 2).mean(), "calibration_slope": slope}
    if p.any():
        numbers["observed_expected"] = y.sum() / p.sum()
    rows = [Estimate(float(x), n=len(true), name=k, subset=column) for k, x in numbers.items()]
    bins = np.minimum((p * N_BINS).astype(np.int64), N_BINS - 1)
    for i in np.unique(bins).tolist():
        inside = bins == i
        rows.append(
            Estimate(
                float(y[inside].mean()),
                n=int(inside.sum()),
                name="true_share",
                subset=column,
                at=float(p[inside].mean()),
            )
        )
    return rows


def fit_logistic(
    x: Numbers,
    true: Numbers,
    totals: Numbers,
    weights: Numbers | None = None,
    *,
    ridge: float = 1e-9,
) -> Numbers:
    """Fit several logistic regressions with the same predictor at once, by Newton's method.

    Each fit is P(true) = expit(intercept + slope·x), for grouped outcomes. x is standardised before
    the fit. The iteration ends after at most 100 steps.

    Args:
        x: The predictor `[n]`.
        true: Number of true outcomes at each x, `[fits, n]`. Fractions are allowed.
        totals: Number of all outcomes at each x, `[fits, n]`.
        weights: Weights `[n]` for the mean and standard deviation by which x is standardised, the
            same in all fits. None uses the sums of `totals` over the fits. At least one weight must
            be positive.
        ridge: Strength of the penalty ridge/2 · slope², for the slope of standardised x. It keeps
            the slope finite.

    Returns:
        Intercept and slope `[fits, 2]`. Both are 0 for a fit without counts. The slope is 0 if all
        x are equal.
    """
    weights = totals.sum(0) if weights is None else weights
    # standardise x
    mean_x = float(np.average(x, weights=weights))
    deviation = float(np.sqrt(np.average((x - mean_x) ** 2, weights=weights)))
    z = (x - mean_x) / deviation if deviation > 0 else np.zeros_like(x)
    prior = ridge if deviation > 0 else 1.0  # if all z are 0, any prior makes the slope 0
    beta = np.zeros((len(totals), 2))
    # the small constants avoid 0/0 without counts, and if all probabilities are nearly 0 or 1
    for _ in range(_MAX_STEPS):
        p = expit(np.clip(beta[:, :1] + beta[:, 1:] * z, -_LARGEST_LOGIT, _LARGEST_LOGIT))
        residuals = true - totals * p
        gradient = np.stack([residuals.sum(1), residuals @ z - prior * beta[:, 1]], axis=1)
        # the negative Hessian [[a, b], [b, c]] of the log likelihood
        w = totals * np.maximum(p * (1 - p), 1e-9)
        a = w.sum(1) + 1e-12
        b = w @ z
        c = w @ z**2 + prior
        # Newton's step: the inverse of this matrix times the gradient
        step = np.stack(
            [
                c * gradient[:, 0] - b * gradient[:, 1],
                a * gradient[:, 1] - b * gradient[:, 0],
            ],
            axis=1,
        )
        step /= (a * c - b**2)[:, None]
        # shorten a step that may be far too long; 1e-300 avoids a division by 0
        step *= np.minimum(1, _LONGEST_STEP / np.maximum(np.abs(step).max(1), 1e-300))[:, None]
        beta += step
        if np.abs(step).max(initial=0) < _CONVERGED:
            break
    slope = beta[:, 1] / deviation if deviation > 0 else np.zeros(len(beta))  # of x instead of z
    return np.stack([beta[:, 0] - slope * mean_x, slope], axis=1)
