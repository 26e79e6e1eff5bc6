"""Logistic regression of one variable, with ridge, and the curve of recall over lesion size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.statistics.bootstrap import Statistic, Weights, place_sums

MIN_FOR_CURVE = 5  # lesions found and lesions missed
_RIDGE = 1 / 2.5**2


@dataclass(frozen=True)
class Logistic:
    """P(true) = 1 / (1 + exp(−(intercept + slope·x)))."""

    intercept: float
    slope: float

    def probability(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fitted chance at each x."""
        return 1 / (1 + np.exp(-np.clip(self.intercept + self.slope * x, -500, 500)))


def fit_logistic(
    x: NDArray[np.float64],
    true: NDArray[np.bool_],
    *,
    ridge: float = 0.0,
    targets: NDArray[np.float64] | None = None,
) -> Logistic:
    """Maximum likelihood by Newton's method; `ridge`/2 · slope² of standardised x is added.

    `targets` in [0, 1] stand in for `true`, as Platt's do. Without deviation in x the slope is 0.
    """
    y = true.astype(np.float64) if targets is None else targets
    middle, deviation = float(x.mean()), float(x.std())
    z = (x - middle) / deviation if deviation > 0 else np.zeros_like(x)
    design = np.stack([np.ones_like(z), z], axis=1)
    penalty = np.diag([0.0, ridge if deviation > 0 else 1.0])
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        slope = design.T @ (y - p) - penalty @ beta
        weight = np.maximum(p * (1 - p), 1e-9)
        step = np.linalg.solve(design.T @ (design * weight[:, None]) + penalty, slope)
        beta += step * min(1.0, 5 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    slope_of_x = float(beta[1] / deviation) if deviation > 0 else 0.0
    return Logistic(float(beta[0] - slope_of_x * middle), slope_of_x)


def fit_counts(
    x: NDArray[np.float64],
    true: NDArray[np.float64],
    totals: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    ridge: float,
) -> NDArray[np.float64]:
    """Intercept and slope `[fits, 2]` of `fit_logistic` from counts `[fits, n]` at each x `[n]`.

    `true` of `totals` are true there. `weights` `[n]`: counts by whose mean and deviation x is
    standardised for all fits alike. A fit without counts stays at 0.
    """
    middle = float(np.average(x, weights=weights))
    width = float(np.sqrt(np.average((x - middle) ** 2, weights=weights)))
    z = (x - middle) / width if width > 0 else np.zeros_like(x)
    prior = ridge if width > 0 else 1.0
    beta = np.zeros((len(totals), 2))
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(beta[:, :1] + beta[:, 1:] * z, -30, 30)))
        left = true - totals * p
        slope = np.stack([left.sum(1), left @ z - prior * beta[:, 1]], axis=1)
        w = totals * np.maximum(p * (1 - p), 1e-9)
        a, b, c = w.sum(1) + 1e-12, w @ z, w @ z**2 + prior
        det = a * c - b**2
        step = np.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], 1)
        step /= det[:, None]
        step *= np.minimum(1, 5 / np.maximum(np.abs(step).max(1), 1e-300))[:, None]
        beta += step
        if np.abs(step).max(initial=0) < 1e-8:
            break
    by_x = beta[:, 1] / width if width > 0 else np.zeros(len(beta))
    return np.stack([beta[:, 0] - by_x * middle, by_x], axis=1)


def fit_offset(
    x: NDArray[np.float64], true: NDArray[np.float64], totals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Intercept `[fits]` of P(true) = 1 / (1 + exp(−(intercept + x))), from counts as `fit_counts`.

    Far from 0, not infinite, where all or none are true.
    """
    offset = np.zeros(len(totals))
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(offset[:, None] + x, -30, 30)))
        left, weight = (true - totals * p).sum(1), (totals * p * (1 - p)).sum(1)
        step = np.clip(left / np.maximum(weight, 1e-12), -2, 2)
        offset = np.clip(offset + step, -30, 30)
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return offset


@dataclass(frozen=True)
class SizeCurve:
    """P(found) = 1 / (1 + exp(−(intercept + slope·ln d))) for a diameter d in mm.

    `d50_mm` and `d90_mm`: the diameters found with 50 % and 90 % probability, beyond the observed
    ones too; 0 where every lesion is likelier found and recall does not grow with size, infinite
    where every one is likelier missed.
    """

    intercept: float
    slope: float
    smallest_mm: float
    largest_mm: float
    d50_mm: float
    d90_mm: float

    def recall(self, diameters_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fitted chance of being found."""
        return Logistic(self.intercept, self.slope).probability(np.log(diameters_mm))


def fit_size_curve(diameters_mm: NDArray[np.float64], found: NDArray[np.bool_]) -> SizeCurve | None:
    """Fit the curve; None with fewer than 5 lesions found or 5 missed.

    Ridge: the standardised slope has a normal prior of standard deviation 2.5 (Gelman et al.
    2008), so that a perfect separation gives a steep curve, not an infinite one.
    """
    if min(int(found.sum()), int((~found).sum())) < MIN_FOR_CURVE:
        return None
    fit = fit_logistic(np.log(diameters_mm), found, ridge=_RIDGE)
    low, high = float(diameters_mm.min()), float(diameters_mm.max())
    d50, d90 = _diameters(np.array([fit.intercept]), np.array([fit.slope]), low, high)[0]
    return SizeCurve(fit.intercept, fit.slope, low, high, float(d50), float(d90))


def _diameters(
    intercept: NDArray[np.float64], slope: NDArray[np.float64], low: float, high: float
) -> NDArray[np.float64]:
    """Diameters `[fits, 2]` found with 50 and 90 %; see `SizeCurve`."""
    wanted = np.array([_logit(0.5), _logit(0.9)])
    grows = slope[:, None] > 0
    steps = np.divide(
        wanted - intercept[:, None], slope[:, None], out=np.zeros((len(slope), 2)), where=grows
    )
    # a curve that does not grow passes the share at no diameter: all lesions are on one side of it
    middle = intercept + slope * np.log(np.sqrt(low * high))
    never = np.where(middle[:, None] >= wanted, 0.0, np.inf)
    return np.where(grows, np.exp(np.clip(steps, -500, 500)), never)


def size_statistic(
    diameters_mm: NDArray[np.float64],
    found: NDArray[np.bool_],
    group: NDArray[np.int64],
    n_groups: int,
    along_mm: NDArray[np.float64],
) -> Statistic:
    """Statistic: the curve at `along_mm`, and the diameters found with 50 and 90 %.

    `group` `[lesions]`. Those diameters are held within the observed ones.
    """
    low, high = float(diameters_mm.min()), float(diameters_mm.max())
    values, place = np.unique(diameters_mm, return_inverse=True)  # counts of voxels repeat
    x, counts = np.log(values), np.bincount(place).astype(np.float64)
    totals = place_sums(np.ones(len(place)), group, place, n_groups)
    hits = place_sums(found.astype(np.float64), group, place, n_groups)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        fits = fit_counts(x, weights @ hits, weights @ totals, counts, ridge=_RIDGE)
        intercept, slope = fits[:, :1], fits[:, 1:]
        curve = 1 / (1 + np.exp(-np.clip(intercept + slope * np.log(along_mm), -500, 500)))
        passed = np.clip(_diameters(fits[:, 0], fits[:, 1], low, high), low, high)
        return np.concatenate([curve, passed], axis=1)

    return statistic


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
