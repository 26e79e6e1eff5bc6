"""Recall along the size of lesions: in bins of diameter, and as a logistic curve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lesionseg.evaluation.cases import CaseResult
from lesionseg.evaluation.curves import sums_by_group
from lesionseg.evaluation.intervals import Draws, Weights, bootstrap, proportion

NO_LESION = "there is no reference lesion to find"
TOO_FEW = "fewer than 5 of either kind are too few for a curve"
MIN_FOR_CURVE = 5  # lesions found and lesions missed
N_CURVE_POINTS = 25
_RIDGE = 1 / 2.5**2


def recall_by_size(
    results: Sequence[CaseResult], groups: Sequence[str], edges_mm: Sequence[float]
) -> list[dict[str, Any]]:
    """Recall in groups of equivalent diameter, `[from, to)`; the last has no upper bound."""
    rows = []
    for low, high in zip(edges_mm, [*edges_mm[1:], None], strict=True):
        inside = [
            [x for x in r.lesions if low <= x.diameter_mm < (np.inf if high is None else high)]
            for r in results
        ]
        hits, totals = (
            sums_by_group(groups, results, values)
            for values in (
                [sum(x.detected for x in lesions) for lesions in inside],
                [len(lesions) for lesions in inside],
            )
        )
        recall = proportion(hits, totals, NO_LESION).to_json("recall")
        counts = {"n": int(totals.sum()), "detected": int(hits.sum())}
        rows.append({"from_mm": low, "to_mm": high, **counts, **recall})
    return rows


def size_curve(
    results: Sequence[CaseResult], groups: Sequence[str], draws: Draws
) -> dict[str, Any]:
    """P(found) = 1 / (1 + exp(−(intercept + slope·ln d))) for a diameter d, with intervals.

    `d50_mm` and `d90_mm`: the diameters found with 50 and 90 % probability, null beyond the
    observed ones. Ridge: the standardised slope has a normal prior of standard deviation 2.5
    (Gelman et al. 2008), so that a perfect separation gives a steep curve, not an infinite one.
    """
    index = {group: i for i, group in enumerate(groups)}
    rows = [(x.diameter_mm, x.detected, index[r.group]) for r in results for x in r.lesions]
    n_found = sum(found for _, found, _ in rows)
    if min(n_found, len(rows) - n_found) < MIN_FOR_CURVE:
        return {"slope": None, "reason": TOO_FEW}
    diameters, found, group = (np.array(column) for column in zip(*rows, strict=True))
    low, high = float(diameters.min()), float(diameters.max())
    values, place = np.unique(diameters, return_inverse=True)  # counts of voxels repeat
    x, counts = np.log(values), np.bincount(place).astype(np.float64)
    shape = (len(groups), len(values))
    totals = csr_array((np.ones(len(rows)), (group, place)), shape=shape)
    hits = csr_array((found.astype(np.float64), (group, place)), shape=shape)
    along = np.geomspace(low, high, N_CURVE_POINTS)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        fits = fit_logistic(x, weights @ hits, weights @ totals, counts, ridge=_RIDGE)
        intercept, slope = fits[:, :1], fits[:, 1:]
        curve = _sigmoid(intercept + slope * np.log(along))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            passed = np.exp((np.log([1.0, 9.0]) - intercept) / slope)
        # a curve that does not grow passes no share: all lesions are on one side of it
        middle = _sigmoid(intercept + slope * np.log(np.sqrt(low * high)))
        never = np.where(middle >= [0.5, 0.9], 0.0, np.inf)
        held = np.clip(np.where(slope > 0, passed, never), low, high)
        return np.concatenate([curve, held, fits], axis=1)

    support = sums_by_group(groups, results, [len(r.lesions) for r in results])
    estimates = bootstrap(statistic, draws, support, NO_LESION, 4 * len(rows))
    *points, d50, d90, intercept, slope = estimates
    reason = next((one.reason for one in (points[0], d50, d90) if one.reason), None)
    crossings = {
        name: {**one.to_json(), "value": None if one.value in (low, high) else one.value}
        for name, one in (("d50_mm", d50), ("d90_mm", d90))
    }
    return {
        "intercept": intercept.value,
        "slope": slope.value,
        **crossings,
        "observed_mm": [low, high],
        "diameters_mm": along.tolist(),
        "recall": [one.value for one in points],
        "ci95": [None if one.ci95 is None else list(one.ci95) for one in points],
        **({"reason": reason} if reason else {}),
    }


def fit_logistic(
    x: NDArray[np.float64],
    true: NDArray[np.float64],
    totals: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    *,
    ridge: float = 1e-9,
) -> NDArray[np.float64]:
    """Intercept and slope `[fits, 2]` of logistic regressions, by Newton's method.

    From counts `[fits, n]` at each x `[n]`: `true` of `totals` are true there; fractions count as
    such. `weights` `[n]`: counts by whose mean and deviation x is standardised for all fits alike;
    `ridge`/2 · slope² of standardised x is added. A fit without counts stays at 0, without
    deviation in x the slope is 0.
    """
    weights = totals.sum(0) if weights is None else weights
    middle = float(np.average(x, weights=weights))
    width = float(np.sqrt(np.average((x - middle) ** 2, weights=weights)))
    z = (x - middle) / width if width > 0 else np.zeros_like(x)
    prior = ridge if width > 0 else 1.0
    beta = np.zeros((len(totals), 2))
    for _ in range(100):
        p = _sigmoid(np.clip(beta[:, :1] + beta[:, 1:] * z, -30, 30))
        left = true - totals * p
        slope = np.stack([left.sum(1), left @ z - prior * beta[:, 1]], axis=1)
        w = totals * np.maximum(p * (1 - p), 1e-9)
        a, b, c = w.sum(1) + 1e-12, w @ z, w @ z**2 + prior
        step = np.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], 1)
        step /= (a * c - b**2)[:, None]
        step *= np.minimum(1, 5 / np.maximum(np.abs(step).max(1), 1e-300))[:, None]
        beta += step
        if np.abs(step).max(initial=0) < 1e-10:
            break
    by_x = beta[:, 1] / width if width > 0 else np.zeros(len(beta))
    return np.stack([beta[:, 0] - by_x * middle, by_x], axis=1)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))
