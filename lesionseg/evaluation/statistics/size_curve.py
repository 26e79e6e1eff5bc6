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
    x, shape = np.log(values), (n_groups, len(values))
    totals, hits = np.zeros(shape), np.zeros(shape)
    np.add.at(totals, (group, place), 1)
    np.add.at(hits, (group[found], place[found]), 1)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        fits = fit_counts(x, weights @ hits, weights @ totals, totals.sum(0), ridge=_RIDGE)
        intercept, slope = fits[:, :1], fits[:, 1:]
        curve = 1 / (1 + np.exp(-np.clip(intercept + slope * np.log(along_mm), -500, 500)))
        passed = np.clip(_diameters(fits[:, 0], fits[:, 1], low, high), low, high)
        return np.concatenate([curve, passed], axis=1)

    return statistic


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
