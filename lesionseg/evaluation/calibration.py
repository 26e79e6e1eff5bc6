"""Is a candidate with probability p a true positive in a share p of cases?

Platt's fit (1999) with an intercept, on the logit of the score; isotonic only with 200 of each.
Calibration never changes the order of candidates of different scores under Platt, and is not used
for ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from lesionseg.errors import ContentError
from lesionseg.evaluation.logistic import fit_logistic
from lesionseg.evaluation.results import CaseResult

MIN_FOR_ISOTONIC = 200
MIN_FOR_CALIBRATION = 5  # of each outcome
N_BINS = 10
Method = Literal["platt", "isotonic"]


@dataclass(frozen=True, eq=False)
class Judgements:
    """Scores (or probabilities) `[n]` of judged candidates and whether each found a lesion."""

    values: NDArray[np.float64]
    true: NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """Score to probability: knots by ascending logit of the score, linear between, flat beyond.

    Platt: two parameters; isotonic: the knots.
    """

    method: Method
    intercept: float = 0.0
    slope: float = 1.0
    knots: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def probability(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The calibrated chance of being a lesion."""
        x = logit(scores)
        if self.method == "isotonic":
            return np.interp(x, self.knots, self.probabilities)
        return 1 / (1 + np.exp(-(self.intercept + self.slope * x)))


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


def fit_calibration(data: Judgements, method: Method = "platt") -> Calibration:
    """Fit on candidates of development cases, best out of fold.

    Raises `ContentError` with fewer than 5 of each outcome (isotonic: 200).
    """
    n_true, n_false = int(data.true.sum()), int((~data.true).sum())
    least = MIN_FOR_ISOTONIC if method == "isotonic" else MIN_FOR_CALIBRATION
    if min(n_true, n_false) < least:
        raise ContentError(
            f"Too few candidates to calibrate ({method}).",
            seen=f"{n_true} true and {n_false} false ones",
            expected=f"at least {least} of each",
        )
    x = logit(data.values)
    if method == "platt":
        # Platt's targets: one pseudo-count of each outcome keeps probabilities off 0 and 1
        targets = np.where(data.true, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
        fit = fit_logistic(x, data.true, targets=targets)
        return Calibration("platt", fit.intercept, fit.slope)
    order = np.argsort(x, kind="stable")
    knots, first = np.unique(x[order], return_inverse=True)
    counts = np.bincount(first)
    shares = np.bincount(first, weights=data.true[order]) / counts
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
        {
            "from": i / N_BINS,
            "to": (i + 1) / N_BINS,
            "n": int((bins == i).sum()),
            "mean_probability": float(p[bins == i].mean()),
            "true_share": float(y[bins == i].mean()),
        }
        for i in np.unique(bins).tolist()
    ]
    apart = [b["n"] * abs(b["mean_probability"] - b["true_share"]) for b in curve]
    return {
        "n": len(p),
        "brier": float(((p - y) ** 2).mean()),
        "slope": fit.slope,
        "intercept": fit.intercept,
        "ece": float(sum(apart) / len(p)),
        "reliability": curve,
    }


def logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(p/(1−p)), with p kept a millionth off 0 and 1."""
    kept = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(kept / (1 - kept)), dtype=np.float64)
