"""Recall by lesion size: size classes, logistic curve, diameters at 50 and 90 % recall."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array
from scipy.special import expit

from lesionseg.core import joint_unit
from lesionseg.core.arrays import Numbers
from lesionseg.evaluation.calibration import MIN_FOR_CURVE, TOO_FEW, fit_logistic
from lesionseg.evaluation.criteria import Preset
from lesionseg.evaluation.intervals import (
    NO_LESION,
    SHARE,
    Draws,
    Estimate,
    GroupWeights,
    bootstrap,
    proportion,
)
from lesionseg.evaluation.scores import PERCENT_OF_WIDTH, size_column
from lesionseg.evaluation.tables import Tables

N_CURVE_POINTS = 25
OUTSIDE = "it is not within the observed diameters"
_RIDGE = 1 / 2.5**2  # the precision of a normal prior with standard deviation 2.5
# per lesion: the hits, totals and temporary arrays of a logistic fit
_ITEMS_PER_LESION = 4


@dataclass(frozen=True, eq=False)
class SizeScale:
    """The sizes of lesions and their unit.

    Attributes:
        unit: The unit of sizes.
        edges: The lower bounds of the size classes in this unit.
        sizes: The equivalent diameter of each lesion `[lesions]` in this unit.
    """

    unit: str
    edges: Sequence[float]
    sizes: Numbers

    @classmethod
    def of(cls, tables: Tables, preset: Preset) -> "SizeScale":
        """Choose the unit of lesion sizes that suits all images of an evaluation.

        The unit is per cent of the image width if all images have two axes and at least one has no
        pixel size. Pixels of different images are not comparable, but fractions of their widths
        are. Otherwise it is the joint unit of the images (`core.joint_unit`), usually mm.
        """
        units = tables.cases["size_unit"]
        unit = joint_unit(units)
        edges = preset.size_edges_mm
        if (units == "px").any() and (tables.cases["axes"] == 2).all():
            unit = PERCENT_OF_WIDTH
            edges = preset.size_edges_percent
        return cls(unit, edges, tables.lesions[size_column(unit)].to_numpy(float))


def recall_by_size(tables: Tables, scale: SizeScale) -> list[Estimate]:
    """Compute the recall of the lesions in each size class, as rows `recall_by_size`.

    A class contains its lower bound but not its upper bound. The last class has no upper bound.
    `at` of a row is the lower bound, and `n` is the number of lesions in the class.
    """
    is_found = tables.lesions["detected"].to_numpy(bool)
    rows = []
    for low, high in zip(scale.edges, [*scale.edges[1:], np.inf], strict=True):
        inside = (scale.sizes >= low) & (scale.sizes < high)
        n_found = tables.add_up("lesions", inside & is_found)
        n_inside = tables.add_up("lesions", inside)
        recall = proportion(n_found, n_inside, NO_LESION, name="recall_by_size")
        rows.append(replace(recall, n=int(inside.sum()), at=low))
    return rows


def size_curve(tables: Tables, draws: Draws, scale: SizeScale) -> list[Estimate]:
    """Fit the probability that a lesion is found as a logistic function of its diameter.

    The function is P(found) = 1 / (1 + exp(−(intercept + slope·ln d))) for a diameter d. The
    standardised slope has a normal prior with standard deviation 2.5 (Gelman et al. 2008), as a
    ridge penalty. If a diameter separates found and missed lesions perfectly, the slope is
    therefore steep instead of infinite.

    Args:
        tables: The evaluated cases.
        draws: How often each replicate of the bootstrap draws each group.
        scale: The diameters of the lesions.

    Returns:
        The diameters `size_d50` and `size_d90` at which 50 % and 90 % of the lesions are found,
        `size_intercept` and `size_slope` without intervals, and the points `size_curve` from the
        smallest to the largest observed diameter. A diameter outside this range is undefined. With
        fewer than `MIN_FOR_CURVE` found lesions or missed lesions, only `size_slope` is returned,
        as undefined.
    """
    is_found = tables.lesions["detected"].to_numpy(bool)
    n_lesions = len(is_found)
    if min(int(is_found.sum()), int((~is_found).sum())) < MIN_FOR_CURVE:
        return [Estimate(None, reason=TOO_FEW, name="size_slope")]
    # many lesions have the same number of voxels, and therefore the same diameter
    diameters, columns = np.unique(scale.sizes, return_inverse=True)
    # count lesions by group and diameter; `csr_array` adds the values with equal indices
    shape = (len(tables.groups), len(diameters))
    indices = (tables.group_of["lesions"], columns)
    n_found = csr_array((is_found.astype(float), indices), shape=shape)
    n_all = csr_array((np.ones(n_lesions), indices), shape=shape)
    n_of_size = np.bincount(columns).astype(float)
    log_diameters = np.log(diameters)
    low = float(diameters[0])
    high = float(diameters[-1])
    points = np.geomspace(low, high, N_CURVE_POINTS)

    def statistic(weights: GroupWeights) -> Numbers:
        """Return recall at `points`, d50, d90, intercept and slope `[replicates, points + 4]`.

        `weights` is how often each group was drawn `[replicates, groups]`.
        """
        found = weights @ n_found
        fits = fit_logistic(
            x=log_diameters,
            true=found,
            totals=weights @ n_all,
            # for mean and standard deviation of x, which are the same in all replicates; these
            # are no weights of the bootstrap
            weights=n_of_size,
            ridge=_RIDGE,
        )
        intercept = fits[:, :1]
        slope = fits[:, 1:]
        curve = expit(intercept + slope * np.log(points))
        return np.concatenate([curve, _find_crossings(intercept, slope, low, high), fits], axis=1)

    *curve, d50, d90, intercept, slope = bootstrap(
        statistic,
        draws,
        support=tables.lesions_by_group,
        undefined=NO_LESION,
        items=_ITEMS_PER_LESION * n_lesions,  # numbers in memory per replicate
        names=["size_curve"] * N_CURVE_POINTS
        + ["size_d50", "size_d90", "size_intercept", "size_slope"],
        bounds=[SHARE] * N_CURVE_POINTS + [None] * 4,  # of the curve, and of the other numbers
    )
    # `or 0.0` only satisfies the type checker: a fit always has an intercept and a slope
    return [
        _clear_if_at_end(d50, low, high),
        _clear_if_at_end(d90, low, high),
        Estimate(intercept.value or 0.0, name=intercept.name),
        Estimate(slope.value or 0.0, name=slope.name),
        *(replace(estimate, at=at) for estimate, at in zip(curve, points.tolist(), strict=True)),
    ]


def _find_crossings(intercept: Numbers, slope: Numbers, low: float, high: float) -> Numbers:
    """Return the diameters at which fitted curves cross a recall of 50 % and 90 % `[curves, 2]`.

    A diameter outside the range of observed diameters is replaced by the nearest end of the range.
    A curve that does not rise (slope ≤ 0) has no crossing. It gets `low` if its recall at the
    geometric mean of the range is at least 50 % (or 90 %), otherwise `high`.

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
    in_middle = expit(intercept + slope * np.log(np.sqrt(low * high)))  # at the geometric mean
    without_crossing = np.where(in_middle >= levels, 0.0, np.inf)  # clipped to `low` or `high`
    return np.clip(np.where(slope > 0, crossing, without_crossing), low, high)


def _clear_if_at_end(diameter: Estimate, low: float, high: float) -> Estimate:
    """Return the diameter d50 or d90, as undefined if it was clipped to `low` or `high`.

    `low` and `high` are the smallest and the largest observed diameter.
    """
    if diameter.value not in (low, high):
        return diameter
    return Estimate(None, reason=OUTSIDE, name=diameter.name)
