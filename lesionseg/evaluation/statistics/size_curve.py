"""How recall grows with size: logistic regression on the logarithm of the diameter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.statistics.bootstrap import Statistic, Weights
from lesionseg.evaluation.statistics.logistic import Logistic, fit_counts, fit_logistic

MIN_FOR_CURVE = 5  # lesions found and lesions missed
_RIDGE = 1 / 2.5**2


@dataclass(frozen=True)
class SizeCurve:
    """P(found) = 1 / (1 + exp(−(intercept + slope·ln d))) for a diameter d in mm.

    `d50_mm` and `d90_mm`: the diameters found with 50 % and 90 % probability; None where that lies
    outside the observed diameters, or where recall does not grow with size.
    """

    intercept: float
    slope: float
    smallest_mm: float
    largest_mm: float
    d50_mm: float | None
    d90_mm: float | None

    def inside(self, diameter_mm: float) -> bool:
        """Whether lesions of about this diameter were observed."""
        return self.smallest_mm <= diameter_mm <= self.largest_mm

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

    def at(probability: float) -> float | None:
        if fit.slope <= 0:
            return None
        wanted = (_logit(probability) - fit.intercept) / fit.slope
        inside = np.log(low) <= wanted <= np.log(high)
        return float(np.exp(wanted)) if inside else None

    return SizeCurve(fit.intercept, fit.slope, low, high, at(0.5), at(0.9))


def size_statistic(
    diameters_mm: NDArray[np.float64],
    found: NDArray[np.bool_],
    group: NDArray[np.int64],
    n_groups: int,
    along_mm: NDArray[np.float64],
) -> Statistic:
    """Statistic: the curve at `along_mm`, and the diameters found with 50 and 90 %.

    `group` `[lesions]`. Those diameters are not held within the observed ones here; they are
    undefined where recall does not grow with size.
    """
    values, place = np.unique(diameters_mm, return_inverse=True)  # counts of voxels repeat
    x, shape = np.log(values), (n_groups, len(values))
    totals, hits = np.zeros(shape), np.zeros(shape)
    np.add.at(totals, (group, place), 1)
    np.add.at(hits, (group[found], place[found]), 1)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        fits = fit_counts(x, weights @ hits, weights @ totals, totals.sum(0), ridge=_RIDGE)
        intercept, slope = fits[:, :1], fits[:, 1:]
        curve = 1 / (1 + np.exp(-np.clip(intercept + slope * np.log(along_mm), -500, 500)))
        wanted = np.array([_logit(0.5), _logit(0.9)])
        steps = np.divide(
            wanted - intercept, slope, out=np.full((len(fits), 2), np.nan), where=slope > 0
        )
        return np.concatenate([curve, np.exp(np.clip(steps, -500, 500))], axis=1)

    return statistic


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
