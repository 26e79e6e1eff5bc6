"""Recall by lesion size: in size classes, and as a smooth curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit

from lesionseg.core import joint_unit
from lesionseg.evaluation.calibration import MIN_FOR_CURVE, TOO_FEW, fit_logistic
from lesionseg.evaluation.case_results import CaseResult, LesionResult
from lesionseg.evaluation.criteria import Preset
from lesionseg.evaluation.curves import sums_by_group
from lesionseg.evaluation.intervals import (
    NO_LESION,
    SHARE,
    Draws,
    Estimate,
    Weights,
    bootstrap,
    proportion,
)
from lesionseg.evaluation.scores import PERCENT_OF_WIDTH, NoSizeCurve, SizeClass, SizeCurve

N_CURVE_POINTS = 25
OUTSIDE = "it is not within the observed diameters"
_RIDGE = 1 / 2.5**2  # the precision of a normal prior with standard deviation 2.5
# per lesion: the hits, totals and temporary arrays of a logistic fit
_ITEMS_PER_LESION = 4


@dataclass(frozen=True)
class SizeScale:
    """The unit of sizes, and the lower bounds of the size classes in this unit."""

    unit: str
    edges: Sequence[float]

    @classmethod
    def of(cls, results: Sequence[CaseResult], preset: Preset) -> "SizeScale":
        """Choose per cent of the image width if an image has no pixel size, otherwise mm.

        Pixels of different images are not comparable, but shares of their widths are.
        """
        unit = joint_unit(r.unit for r in results)
        has_pixels = any(r.unit == "px" for r in results)
        if has_pixels and all(r.dims == 2 for r in results):
            return cls(PERCENT_OF_WIDTH, preset.size_edges_percent)
        return cls(unit, preset.size_edges_mm)

    def size_of(self, lesion: LesionResult) -> float:
        """Return the equivalent diameter of a lesion in the unit."""
        if self.unit == PERCENT_OF_WIDTH and lesion.diameter_percent is not None:
            return lesion.diameter_percent
        return lesion.diameter_mm


def recall_by_size(
    results: Sequence[CaseResult], groups: Sequence[str], scale: SizeScale
) -> tuple[SizeClass, ...]:
    """Compute the recall of each size class `[from, to)`. The last class has no upper bound."""
    found = []
    for low, high in zip(scale.edges, [*scale.edges[1:], None], strict=True):
        end = np.inf if high is None else high
        inside = [[x for x in r.lesions if low <= scale.size_of(x) < end] for r in results]
        n_found = [sum(x.detected for x in lesions) for lesions in inside]
        hits = sums_by_group(groups, results, n_found)
        totals = sums_by_group(groups, results, [len(lesions) for lesions in inside])
        recall = proportion(hits, totals, NO_LESION)
        found.append(
            SizeClass(
                from_mm=low,
                to_mm=high,
                n=int(totals.sum()),
                detected=int(hits.sum()),
                recall=recall.value,
                ci95=recall.ci95,
                reason=recall.reason,
            )
        )
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _LesionsBySize:
    """The lesions of each group, counted by diameter.

    Many lesions have the same number of voxels, and therefore the same diameter.

    Attributes:
        diameters: The different diameters `[sizes]`, ascending.
        counts: Number of lesions of each diameter `[sizes]`.
        found: Number of found lesions `[groups, sizes]`.
        total: Number of lesions `[groups, sizes]`.
    """

    diameters: NDArray[np.float64]
    counts: NDArray[np.float64]
    found: csr_array
    total: csr_array

    @classmethod
    def of(
        cls, results: Sequence[CaseResult], groups: Sequence[str], scale: SizeScale
    ) -> "_LesionsBySize":
        """Count the lesions of all cases. At least one case has a lesion."""
        row_of_group = {group: row for row, group in enumerate(groups)}
        rows: list[int] = []
        sizes: list[float] = []
        are_found: list[bool] = []
        for r in results:
            for lesion in r.lesions:
                rows.append(row_of_group[r.group])
                sizes.append(scale.size_of(lesion))
                are_found.append(lesion.detected)
        diameters, columns = np.unique(np.array(sizes), return_inverse=True)
        shape = (len(groups), len(diameters))
        # values at equal places of a sparse array are added
        places = (np.array(rows), columns)
        return cls(
            diameters=diameters,
            counts=np.bincount(columns).astype(np.float64),
            found=csr_array((np.array(are_found, dtype=np.float64), places), shape=shape),
            total=csr_array((np.ones(len(rows)), places), shape=shape),
        )


def size_curve(
    results: Sequence[CaseResult], groups: Sequence[str], draws: Draws, scale: SizeScale
) -> SizeCurve | NoSizeCurve:
    """Fit P(found) = 1 / (1 + exp(−(intercept + slope·ln d))) for a diameter d, with intervals.

    `d50_mm` and `d90_mm` are undefined outside the observed diameters. The standardised slope has a
    normal prior with standard deviation 2.5 (Gelman et al. 2008), as a ridge penalty. If a diameter
    separates found and missed lesions perfectly, the slope is therefore steep instead of infinite.
    Return `NoSizeCurve` if fewer than `MIN_FOR_CURVE` lesions were found, or missed.
    """
    n_lesions = sum(len(r.lesions) for r in results)
    n_found = sum(r.n_detected for r in results)
    if min(n_found, n_lesions - n_found) < MIN_FOR_CURVE:
        return NoSizeCurve(reason=TOO_FEW)
    sizes = _LesionsBySize.of(results, groups, scale)
    log_diameters = np.log(sizes.diameters)
    low = float(sizes.diameters[0])
    high = float(sizes.diameters[-1])
    points = np.geomspace(low, high, N_CURVE_POINTS)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        """Return curve, d50, d90, intercept and slope `[replicates, points + 4]`."""
        found = weights @ sizes.found
        total = weights @ sizes.total
        fits = fit_logistic(log_diameters, found, total, sizes.counts, ridge=_RIDGE)
        intercept = fits[:, :1]
        slope = fits[:, 1:]
        curve = expit(intercept + slope * np.log(points))
        crossings = _find_crossings(intercept, slope, low, high)
        return np.concatenate([curve, crossings, fits], axis=1)

    support = sums_by_group(groups, results, [len(r.lesions) for r in results])
    items = _ITEMS_PER_LESION * n_lesions
    bounds = [SHARE] * N_CURVE_POINTS + [None] * 4  # of the curve, and of the other numbers
    estimates = bootstrap(statistic, draws, support, NO_LESION, items, bounds=bounds)
    *recall, d50, d90, intercept, slope = estimates
    return SizeCurve(
        intercept=float(intercept.value or 0.0),
        slope=float(slope.value or 0.0),
        d50_mm=_clear_if_at_end(d50, low, high),
        d90_mm=_clear_if_at_end(d90, low, high),
        observed_mm=(low, high),
        diameters_mm=tuple(points.tolist()),
        recall=tuple(one.value for one in recall),
        ci95=tuple(one.ci95 for one in recall),
        reason=next((one.reason for one in (recall[0], d50, d90) if one.reason), None),
    )


def _find_crossings(
    intercept: NDArray[np.float64], slope: NDArray[np.float64], low: float, high: float
) -> NDArray[np.float64]:
    """Return the diameters at which curves cross 50 and 90 % `[curves, 2]`.

    A diameter outside the observed ones, from `low` to `high`, is replaced by the nearest of them.
    A curve that does not rise crosses nothing: it is below or above throughout, as in its middle.
    It gets `high` if it is below, and `low` if it is above.

    Args:
        intercept: Intercept of each curve `[curves, 1]`.
        slope: Slope of each curve `[curves, 1]`.
        low: Smallest observed diameter.
        high: Largest observed diameter.
    """
    levels = np.array([0.5, 0.9])
    log_odds = np.log([1.0, 9.0])  # of the levels: 0.5/0.5 and 0.9/0.1
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        crossing = np.exp((log_odds - intercept) / slope)
    in_middle = expit(intercept + slope * np.log(np.sqrt(low * high)))
    without_crossing = np.where(in_middle >= levels, 0.0, np.inf)
    return np.clip(np.where(slope > 0, crossing, without_crossing), low, high)


def _clear_if_at_end(diameter: Estimate, low: float, high: float) -> Estimate:
    """Remove value and interval if the value was clipped to an end of the observed diameters."""
    return Estimate(None, None, OUTSIDE) if diameter.value in (low, high) else diameter
