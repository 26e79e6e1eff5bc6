"""Charts of the further numbers: size curve, contrast, subgroups, calibration, patients, load."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lesionseg.evaluation.rows import CaseRow, LesionRow
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import CI
from lesionseg.evaluation.statistics.score_parts import (
    CalibrationScores,
    ContrastCell,
    SizeCurveScores,
    SubgroupScores,
)
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import (
    ACCENT,
    FOUND,
    GRID,
    INK,
    TOP,
    log_axis,
    shorten,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# even in lightness, so that it survives grey-scale print
SHADES = "cividis"
MOST_ALIKE = 0.8  # of the lesions in one column: beyond it a map of contrasts says nothing
DARK = 0.55  # shares under it are dark fields, with white letters
LARGEST_DOT = 260.0  # square points
LABEL = 150.0  # points of a subgroup's name; the rest of it is in the table
PER_ROW, AROUND = 0.24, 0.9  # inches of a forest plot


def draw_size_curve(
    onto: "FigureBase", curve: SizeCurveScores, lesions: Sequence[LesionRow], scores: Scores
) -> None:
    """The fitted chance along the diameter with its band, and every lesion as a stroke.

    Found ones stand at the top, missed ones at the bottom.
    """
    axes = onto.subplots()
    tidy(axes, text.AXIS_CHANCE)
    known = [(d, *pair) for d, pair in zip(curve.diameters_mm, curve.ci95, strict=True) if pair]
    if known:
        x, low, high = zip(*known, strict=True)
        axes.fill_between(x, low, high, color=FOUND, alpha=0.18, linewidth=0)
    axes.plot(curve.diameters_mm, curve.recall, color=FOUND, linewidth=2)
    for detected, height in ((True, 1.06), (False, -0.06)):
        sizes = [row.diameter_mm for row in lesions if row.detected is detected]
        axes.plot(sizes, [height] * len(sizes), "|", color=INK, markersize=8, alpha=0.6)
    for estimate, share in ((curve.d50, 0.5), (curve.d90, 0.9)):
        _draw_diameter(axes, estimate.value, estimate.ci95, share, scores.size_unit)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylim(-0.12, 1.12)
    if curve.diameters_mm[-1] > 4 * curve.diameters_mm[0]:
        log_axis(axes)
    axes.set_xlabel(text.axis_diameter(scores.size_said))


def _draw_diameter(
    axes: "Axes", value: float | None, ci95: CI | None, share: float, unit: str
) -> None:
    if value is None:
        return
    if ci95 is not None:
        axes.plot(ci95, [share, share], color=ACCENT, linewidth=1.4, marker="|", markersize=8)
    axes.plot([value], [share], "o", color=ACCENT, markersize=7, zorder=5)
    axes.annotate(
        text.found_at(share, value, unit),
        (value, share),
        xytext=(9, -14),
        textcoords="offset points",
        color=INK,
        fontsize=9,
    )


def draw_cells(onto: "FigureBase", cells: Sequence[ContrastCell], unit: str) -> None:
    """Found of all in fields of size (downwards) and contrast (to the right), shaded by share."""
    axes = onto.subplots()
    sizes = list(dict.fromkeys(cell.size for cell in cells))
    contrasts = list(dict.fromkeys(cell.contrast for cell in cells))
    shares = np.full((len(sizes), len(contrasts)), np.nan)
    for cell in cells:
        y, x = sizes.index(cell.size), contrasts.index(cell.contrast)
        few = cell.recall.ci95 is None and cell.n < text.MIN_FOR_PERCENT
        share = shares[y, x] = np.nan if few else cell.detected / cell.n
        words = text.of(cell.detected, cell.n) if cell.n else text.NONE
        colour = "white" if share < DARK else INK
        # fields lie between whole numbers
        axes.text(x + 0.5, y + 0.5, words, ha="center", va="center", color=colour)
    axes.set_facecolor(GRID)
    axes.pcolormesh(shares, cmap=SHADES, vmin=0, vmax=1, edgecolors="white", linewidth=2)
    axes.set_xlim(0, len(contrasts))
    axes.set_ylim(len(sizes), 0)
    axes.set_xticks(np.arange(len(contrasts)) + 0.5, [text.range_words(*c, "") for c in contrasts])
    axes.set_yticks(np.arange(len(sizes)) + 0.5, [text.range_words(*s, unit) for s in sizes])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(text.AXIS_CONTRAST)


def contrasts_differ(cells: Sequence[ContrastCell]) -> bool:
    """Whether the lesions are of several contrasts: at most 80 % of them in one column."""
    columns = Counter[object]()
    for cell in cells:
        columns[cell.contrast] += cell.n
    return bool(cells) and max(columns.values()) <= MOST_ALIKE * columns.total()


def draw_reliability(onto: "FigureBase", calibration: CalibrationScores) -> None:
    """Share of candidates that are lesions against the chance stated, above their number."""
    axes, counts = onto.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    tidy(axes, text.AXIS_TRUE)
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=1.2)
    bins = [one for one in calibration.bins if one.n]
    most = max((one.n for one in bins), default=1)
    axes.plot(
        [b.mean_probability for b in bins], [b.true_share for b in bins], color=FOUND, linewidth=1.2
    )
    axes.scatter(
        [b.mean_probability for b in bins],
        [b.true_share for b in bins],
        s=[max(18.0, LARGEST_DOT * b.n / most) for b in bins],
        color=FOUND,
        edgecolor="white",
        zorder=4,
        clip_on=False,
    )
    axes.set_ylim(-0.02, TOP)
    tidy(counts, text.AXIS_CANDIDATES)
    counts.bar(
        [(b.start + b.stop) / 2 for b in bins],
        [b.n for b in bins],
        width=[0.86 * (b.stop - b.start) for b in bins],
        color=FOUND,
    )
    counts.locator_params(axis="y", integer=True, nbins=3)
    counts.set_xlim(0, 1)
    counts.set_xlabel(text.AXIS_STATED[calibration.of == "probability"])


def forest_height(subgroups: Sequence[SubgroupScores]) -> float:
    """Inches that a forest plot needs."""
    return AROUND + PER_ROW * (len(subgroups) + len({group.by for group in subgroups}))


def draw_subgroups(onto: "FigureBase", subgroups: Sequence[SubgroupScores], overall: float) -> None:
    """Both rates of each subgroup with their intervals, below the column they are made by."""
    rated = any(group.false_positives_per_case is not None for group in subgroups)
    axes, *rates = onto.subplots(
        1, 1 + rated, sharey=True, squeeze=False, width_ratios=(3, 2)[: 1 + rated]
    )[0]
    axes.axvline(overall, color=INK, linestyle=":", linewidth=1.2)
    labels: dict[float, str] = {}
    headings: list[float] = []
    y, by = 0.0, ""
    for group in subgroups:
        if group.by != by:
            by, labels[y], y = group.by, shorten(group.by, LABEL, 10, bold=True), y + 1
            headings.append(y - 1)
        value = shorten(group.value, LABEL, 10)
        labels[y] = f"{value}   {text.of(group.detected, group.n_lesions)}"
        _draw_rate(axes, y, group.recall.value, group.recall.ci95, FOUND)
        for false in rates:
            _draw_rate(false, y, group.false_positives_per_case, group.false_positives_ci95, ACCENT)
        y += 1
    axes.set_yticks(list(labels), list(labels.values()))
    for at, tick in zip(labels, axes.get_yticklabels(), strict=True):
        tick.set_fontweight("bold" if at in headings else "normal")
    axes.set_ylim(y - 0.4, -0.6)
    axes.set_xlim(0, TOP)
    for false in rates:
        false.set_xlim(left=0)
    for panel, name in zip((axes, *rates), (text.AXIS_SENSITIVITY, text.AXIS_FALSE), strict=False):
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color=GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.set_xlabel(name)


def _draw_rate(axes: "Axes", y: float, value: float | None, ci95: CI | None, colour: str) -> None:
    """A dot with its interval, hollow without one."""
    if value is None:
        return
    if ci95 is not None:
        axes.plot(ci95, [y, y], color=INK, linewidth=1.4, marker="|", markersize=7)
    face = "white" if ci95 is None else colour
    axes.plot([value], [y], "o", color=colour, markerfacecolor=face, markersize=7, clip_on=False)


LINES = ("bias", "lower_limit", "upper_limit")
NAME_POINTS = 72.0
NAMED = 40  # patients whose names still fit below the dots


@dataclass(frozen=True)
class Patient:
    """One patient's scans together."""

    name: str
    n_scans: int
    n_lesions: int
    n_detected: int
    n_false_positive: int


def sum_patients(cases: Iterable[CaseRow]) -> tuple[Patient, ...]:
    """Each patient, those with most lesions first."""
    rows: dict[str, list[CaseRow]] = {}
    for case in cases:
        rows.setdefault(case.group or case.case, []).append(case)
    patients = (
        Patient(
            name,
            len(own),
            sum(case.n_lesions for case in own),
            sum(case.n_detected for case in own),
            sum(case.n_false_positive for case in own),
        )
        for name, own in rows.items()
    )
    return tuple(sorted(patients, key=lambda one: (-one.n_lesions, one.name)))


def draw_patients(onto: "FigureBase", patients: Sequence[Patient]) -> None:
    """Sensitivity, lesions and false positives per scan of each patient, one below the other."""
    shares, counts, false = onto.subplots(3, 1, sharex=True, height_ratios=(3, 1.5, 1.5))
    at = np.arange(len(patients))
    ill = [x for x, one in enumerate(patients) if one.n_lesions]
    tidy(shares, text.AXIS_SENSITIVITY)
    own = [patients[x].n_detected / patients[x].n_lesions for x in ill]
    shares.plot(ill, own, "o", color=FOUND, clip_on=False)
    shares.set_ylim(0, TOP)
    tidy(counts, text.AXIS_LESIONS)
    counts.plot(at, [one.n_lesions for one in patients], "o", color=INK, clip_on=False)
    tidy(false, text.AXIS_FALSE_SHORT)
    rates = [one.n_false_positive / one.n_scans for one in patients]
    false.plot(at, rates, "o", color=ACCENT, clip_on=False)
    for axes, most in ((counts, max(one.n_lesions for one in patients)), (false, max(rates))):
        axes.set_ylim(0, 1.08 * max(1.0, most))
        axes.locator_params(axis="y", nbins=3, integer=True)
    false.set_xticks(at if len(patients) <= NAMED else [])
    if len(patients) <= NAMED:
        names = [shorten(one.name, NAME_POINTS, 8) for one in patients]
        false.set_xticklabels(names, rotation=90, fontsize=8)
    false.set_xlabel(text.AXIS_PATIENTS, labelpad=8)


def volumes(cases: Iterable[CaseRow]) -> list[tuple[float, float]]:
    """Reference and detected volume of the cases that have both."""
    return [
        (case.reference_ml, case.predicted_ml)
        for case in cases
        if case.reference_ml is not None and case.predicted_ml is not None
    ]


def draw_load(
    onto: "FigureBase", cases: Sequence[CaseRow], numbers: Mapping[str, float | None]
) -> None:
    """Predicted minus reference volume against their mean (Bland & Altman 1986)."""
    axes = onto.subplots()
    tidy(axes, text.AXIS_DIFFERENCE_ML)
    known = volumes(cases)
    mean = [(x + y) / 2 for x, y in known]
    axes.plot(mean, [y - x for x, y in known], "o", color=FOUND, alpha=0.75, clip_on=False)
    for name in LINES:
        value = numbers[name]
        if value is not None:
            style = "-" if name == "bias" else "--"
            axes.axhline(value, color=ACCENT, linestyle=style, linewidth=1.2)
            axes.annotate(
                f"{text.LINE_NAMES[name]} {text.signed(value)} ml",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=INK,
            )
    if min(mean) > 0 and max(mean) > 10 * min(mean):
        log_axis(axes)
    axes.set_xlabel(text.AXIS_MEAN_ML)
