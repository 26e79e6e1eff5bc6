"""How recall grows with size: logistic regression on the logarithm of the diameter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.logistic import fit_logistic

MIN_FOR_CURVE = 5  # lesions found and lesions missed


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


def fit_size_curve(diameters_mm: NDArray[np.float64], found: NDArray[np.bool_]) -> SizeCurve | None:
    """Fit the curve; None with fewer than 5 lesions found or 5 missed.

    Ridge: the standardised slope has a normal prior of standard deviation 2.5 (Gelman et al.
    2008), so that a perfect separation gives a steep curve, not an infinite one.
    """
    if min(int(found.sum()), int((~found).sum())) < MIN_FOR_CURVE:
        return None
    fit = fit_logistic(np.log(diameters_mm), found, ridge=1 / 2.5**2)
    low, high = float(diameters_mm.min()), float(diameters_mm.max())

    def at(probability: float) -> float | None:
        if fit.slope <= 0:
            return None
        wanted = (np.log(probability / (1 - probability)) - fit.intercept) / fit.slope
        inside = np.log(low) <= wanted <= np.log(high)
        return float(np.exp(wanted)) if inside else None

    return SizeCurve(fit.intercept, fit.slope, low, high, at(0.5), at(0.9))
