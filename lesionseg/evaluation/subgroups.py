"""Recall by lesion size, and subgroups of cases by columns of tables and of lesions by zone.

Subgroups deliberately have no p-values. Many are looked at, and a p-value is only valid for a
comparison that was planned before.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit

from lesionseg.core import CaseFiles, joint_unit, numbers_first
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation.calibration import MIN_FOR_CURVE, TOO_FEW, fit_logistic
from lesionseg.evaluation.case_results import CaseResult, LesionResult
from lesionseg.evaluation.criteria import Preset
from lesionseg.evaluation.curves import sums_by_group
from lesionseg.evaluation.intervals import (
    NO_LESION,
    Draws,
    Estimate,
    Weights,
    bootstrap,
    proportion,
)
from lesionseg.evaluation.scores import PERCENT_OF_WIDTH, NoSizeCurve, SizeClass, SizeCurve
from lesionseg.io.files import read_csv

N_QUANTILES = 4
MAX_VALUES = 20
NOT_STATED = "not stated"
ZONE = "zone"
N_CURVE_POINTS = 25
OUTSIDE = "it is not within the observed diameters"
_RIDGE = 1 / 2.5**2  # the precision of a normal prior with standard deviation 2.5
# per lesion: the hits, totals and temporary arrays of a logistic fit
_ITEMS_PER_LESION = 4

Columns = Mapping[str, Mapping[str, str]]  # the cells of a table by case and column


def read_columns(cases: Sequence[CaseFiles], table: Path | None = None) -> Columns:
    """Read the columns of each case from the dataset and from a CSV file with a column `case`.

    Raises:
        DatasetError: if the table lacks that column or contains none of the cases, unless there
            are no cases.
    """
    columns = {files.case: dict(files.columns) for files in cases}
    if table is None:
        return columns
    rows = read_csv(table)  # its cells replace those of the dataset
    if columns and not any(row.get("case") in columns for row in rows):
        names = ", ".join(rows[0]) if rows else "none"
        raise DatasetError(
            f"{table}: no row names a case of the dataset, such as {next(iter(columns))}, in "
            f"the column case. Its columns are: {names}."
        )
    for row in rows:
        if row.get("case") in columns:
            columns[row["case"]] |= {key: value for key, value in row.items() if key != "case"}
    return columns


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
    estimates = bootstrap(statistic, draws, support, NO_LESION, items)
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


@dataclass(frozen=True)
class Members:
    """The cases with one value, or range of values, of a column; or all cases, cut to one zone."""

    by: str
    value: str
    results: Sequence[CaseResult]


def find_subgroups(
    results: Sequence[CaseResult], columns: Columns, by: Sequence[str] | None = None
) -> Iterator[Members]:
    """Yield every subgroup of cases, then the lesions of each zone.

    Args:
        results: The evaluated cases.
        columns: The cells of a table by case and column.
        by: Names of the columns to divide by. None uses every suitable column.

    Raises:
        ConfigError: if a column in `by` is missing or has too many different words.
    """
    cases = [r.case for r in results]
    if by is None:
        by = _find_dividing_columns(cases, columns, [r.group for r in results])
    for name in by:
        for value, chosen in divide_by(cases, columns, name).items():
            yield Members(name, value, [r for r in results if r.case in chosen])
    zones: set[str] = set()
    for r in results:
        zones.update(lesion.zone for lesion in r.lesions)
        zones.update(candidate.zone for candidate in r.candidates)
    for zone in sorted(zones - {""}, key=numbers_first):
        inside = [
            replace(
                r,
                lesions=tuple(x for x in r.lesions if x.zone == zone),
                candidates=tuple(c for c in r.candidates if c.zone == zone),
            )
            for r in results
        ]
        yield Members(ZONE, zone, inside)


def divide_by(cases: Sequence[str], columns: Columns, name: str) -> dict[str, set[str]]:
    """Divide cases by the words of a column, or by quartiles if all its values are numbers.

    The result contains the cases of each word, such as {"GE": {"c1", "c3"}, "Siemens": {"c2"}}. A
    column of at most four different numbers is divided by words, too. An empty cell is "not
    stated".

    Raises:
        ConfigError: if the column is missing or has too many different words.
    """
    known = sorted({column for case in cases for column in columns.get(case, {})})
    if not cases:
        return {}
    if name not in known:
        raise ConfigError(
            f"subgroups: no table has a column {name!r}. The columns are: {known or 'none'}."
        )
    values = _read_cells(cases, columns, name)
    words = sorted(set(values), key=lambda word: (word == NOT_STATED, numbers_first(word)))
    if _is_numeric(words):
        values, ranges = _replace_by_quartiles(values)
        words = [word for word in (*ranges, NOT_STATED) if word in values]
    if len(words) > MAX_VALUES:
        raise ConfigError(
            f"subgroups: the column {name!r} has {len(words)} different words. Choose a column of "
            f"at most {MAX_VALUES} words, or of numbers only."
        )
    cases_of: dict[str, set[str]] = {word: set() for word in words}
    for case, word in zip(cases, values, strict=True):
        cases_of[word].add(case)
    return cases_of


def _replace_by_quartiles(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace each number by its quartile, such as "0.5 to 1.2", and list all quartiles.

    A quartile contains its lower bound but not its upper bound, except for the last one. If many
    numbers are equal, there are fewer than four quartiles. `NOT_STATED` is not replaced.
    """
    numbers = np.array([np.nan if v == NOT_STATED else float(v) for v in values])
    stated = numbers[~np.isnan(numbers)]
    edges = np.unique(np.quantile(stated, np.linspace(0, 1, N_QUANTILES + 1)))
    ranges = [f"{low:.12g} to {high:.12g}" for low, high in itertools.pairwise(edges.tolist())]
    numbers_of_range = np.searchsorted(edges[1:-1], numbers, side="right").tolist()
    replaced = []
    for value, i in zip(values, numbers_of_range, strict=True):
        replaced.append(NOT_STATED if value == NOT_STATED else ranges[i])
    return replaced, ranges


def _find_dividing_columns(
    cases: Sequence[str], columns: Columns, groups: Sequence[str]
) -> list[str]:
    """Find the columns that divide the cases into subgroups.

    They have numbers, or 2 to 20 words. At least one of the words belongs to several patients. A
    column with another word for each case or patient, such as a name, does not divide them.
    """
    names = dict.fromkeys(name for case in cases for name in columns.get(case, {}))
    found = []
    for name in names:
        cells = _read_cells(cases, columns, name)
        stated = set(cells) - {NOT_STATED}
        has_few_words = len(stated) <= MAX_VALUES and len(stated) < len(cases)
        # there are more pairs than words if a word belongs to several patients
        pairs = set(zip(cells, groups, strict=True))
        is_shared = len(pairs) > len(set(cells))
        divides = (has_few_words and is_shared) or _is_numeric(stated)
        if divides and len(stated) > 1:
            found.append(name)
    return found


def _read_cells(cases: Sequence[str], columns: Columns, name: str) -> list[str]:
    """Return the cell of each case in a column."""
    return [columns.get(case, {}).get(name, "").strip() or NOT_STATED for case in cases]


def _is_numeric(values: Sequence[str] | set[str]) -> bool:
    """Return True if all values are numbers, and there are more than four different ones."""
    stated = set(values) - {NOT_STATED}
    try:
        return len(stated) > N_QUANTILES and bool(np.isfinite([float(v) for v in stated]).all())
    except ValueError:
        return False
