"""Charts of the report: FROC, size, Dice, subgroups, reliability, training curves; colours.

Each function returns one chart or None.

The exception is `training_charts`, which returns a list.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import expit

from lesionseg.errors import count, format_score
from lesionseg.evaluation.intervals import CI, all_or_none_interval, wilson_interval
from lesionseg.reporting.evaluation_tables import EvaluationTables, SizeClass
from lesionseg.reporting.rendering import format_rate, render_sentence
from lesionseg.reporting.words import FEW, size_class_words

# colours of Okabe and Ito 2008, which colour-blind readers can distinguish, also in grey
FOUND = "#0072b2"
MISSED = "#e4e8ea"
ACCENT = "#d55e00"
INK = "#1a1a1a"
GRID = "#e0e3e5"
OTHER = "#999999"
RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "lesionseg",
    "text.parse_math": False,  # names of cases may contain dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
}
MAX_SUBGROUPS = 24  # in their chart
MAX_RINGS = 12  # with more patients, the chart of sizes has no rings
RELIABLE = 10  # intervals of fewer patients are dashed
DASHED = (0, (3, 2))  # style of a line
MAX_LETTERS = 30  # of a line of the legend
MIN_LESIONS = 5  # with fewer lesions in a size class, no trend of sizes is stated
# the usual axis of an FROC curve begins and ends at these numbers of false positives per scan
FIRST_RATE = 0.125
LAST_RATE = 8.0
# columns of metrics.csv in words
CURVES = {
    "grad_share/lesion": "share of the gradient from lesions",
    "grad_share/hard_background": "share of the gradient from the hardest 1 % of background",
    "p/lesion": "mean probability in lesions",
}


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure with its title and caption."""

    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """Return the figure as an SVG element, which a page contains directly.

        The XML header before `<svg` is removed, and no date is written, so that equal figures give
        equal text.
        """
        buffer = io.StringIO()
        with rc_context(RC):  # the report's style: fonts as paths, and reproducible ids
            self.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        text = buffer.getvalue()
        return text[text.index("<svg") :]


@dataclass(frozen=True)
class CurvePoint:
    """A point of an FROC curve: a score threshold, and its lesions found and false positives."""

    threshold: float
    n_found: int
    n_false: int


def new_figure(width: float = 5.2, height: float = 2.7) -> tuple[Figure, Axes]:
    """Return an empty figure in the report's style, and its axes.

    The number of ticks is limited, because automatic ticks change during layout, which would cut
    off labels.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    for axis in (axes.xaxis, axes.yaxis):
        # at most 6 intervals between ticks, at multiples of these steps and of powers of ten
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def size_chart(tables: EvaluationTables) -> Chart | None:
    """Draw the sensitivity of each size class as a bar, with its 95 % interval.

    A class with fewer than `RELIABLE` patients has a dashed interval. For 2 to `MAX_RINGS`
    patients, a ring next to the bar shows the sensitivity among the lesions of each patient. The
    title states a trend if there is one (`has_size_trend`). Return None if there is no lesion.
    """
    bins = tables.size_classes
    if not bins:
        return None
    figure, axes = new_figure()
    who = "patient" if tables.has_patients else "scan"
    has_rings = 1 < tables.lesions["group"].nunique() <= MAX_RINGS
    numbers_of_patients = []
    is_too_narrow = False
    for x, size_class in enumerate(bins):
        # the bar of all lesions (height 1, that is 100 %), and over it that of the lesions found
        axes.bar(x, 1, color=MISSED, width=0.5)
        axes.bar(x, size_class.recall, color=FOUND, width=0.5)
        recalls = _recalls_of_patients(tables, size_class)
        numbers_of_patients.append(len(recalls))
        # Wilson's interval of few patients is too narrow, because it treats lesions of one patient
        # as independent; classes with all or no lesions found have another interval
        is_too_narrow |= len(recalls) < FEW and 0 < size_class.detected < size_class.n
        style = DASHED if len(recalls) < RELIABLE else "-"
        ends = size_class.ci95 or _interval_of_few(size_class, len(recalls))
        axes.plot([x, x], ends, color=INK, linestyle=style, linewidth=1.4)
        if has_rings:
            # to the right of the bar, which ends at x + 0.25; neighbouring rings overlap little
            x_of_rings = x + 0.32 + 0.05 * np.arange(len(recalls))
            axes.plot(
                x_of_rings, recalls, "o", markersize=4.5, mfc="white", mec="#555555", clip_on=False
            )
    unit = tables.scores.size_unit
    names = [f"{size_class_words(b, unit)}\n{b.detected} of {b.n}" for b in bins]
    axes.set_xticks(range(len(bins)), names)
    axes.set_xlim(-0.4, max(len(bins), 3) - 0.4)  # bars of one or two classes are not wider
    _label_share_axis(axes)
    caption = render_sentence(
        "size_caption",
        unit=unit,
        who=who,
        has_rings=has_rings,
        n_reliable=RELIABLE,
        n_few=FEW,
        is_uncertain=min(numbers_of_patients) < RELIABLE,
        is_too_narrow=is_too_narrow,
    )
    title = "Lesions found, by size"
    if has_size_trend(bins):
        title = "The smaller the lesion, the more are missed"
    return Chart(title, caption, figure)


def _label_share_axis(axes: Axes) -> None:
    """Scale the y axis from 0 to 1, and label it in per cent. The charts of sensitivity use it."""
    axes.set_ylim(0, 1.02)  # a line at 100 % is visible in its full width
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def _recalls_of_patients(tables: EvaluationTables, size_class: SizeClass) -> pd.Series:
    """Return the sensitivity among each patient's lesions of one size class, by patient.

    Patients without a lesion of this class are left out.
    """
    end = np.inf if size_class.below is None else size_class.below
    sizes = tables.lesions[tables.size_column]
    in_class = tables.lesions[sizes.between(size_class.minimum, end, inclusive="left")]
    return in_class.groupby("group")["detected"].mean()


def _interval_of_few(size_class: SizeClass, n_patients: int) -> CI:
    """Return the 95 % interval of a size class for which scores.json has none, due to few patients.

    If all lesions of the class were found, or none, the interval is that of `n_patients`
    independent patients. Otherwise it is Wilson's, which treats the lesions as independent.
    """
    if size_class.detected in (0, size_class.n):
        # this interval only asks if the value is 0 or more
        return all_or_none_interval(size_class.detected, n_patients)
    return wilson_interval(size_class.detected, size_class.n)


def has_size_trend(bins: Sequence[SizeClass]) -> bool:
    """Return True if more lesions are missed the smaller they are. The chart's title then says so.

    All of these are required:

    - There are at least two classes.
    - The sensitivity never falls from a class to the next larger one, and it is higher in the
      largest class than in the smallest.
    - Each class has at least `MIN_LESIONS` lesions, and at least as many lesions were missed in the
      class of the smallest lesions. Fewer could show a trend by chance.

    Args:
        bins: The size classes that have lesions, smallest first.
    """
    if len(bins) < 2 or min(size_class.n for size_class in bins) < MIN_LESIONS:
        return False
    recalls = [size_class.recall for size_class in bins]
    rises = recalls == sorted(recalls) and recalls[0] < recalls[-1]
    n_missed_of_smallest = bins[0].n - bins[0].detected
    return rises and n_missed_of_smallest >= MIN_LESIONS


def froc_chart(models: Sequence[tuple[str, EvaluationTables]]) -> Chart | None:
    """Draw the FROC curves of one or two models: sensitivity against false positives per scan.

    The axis of rates is linear below ⅛, so that it includes 0, and logarithmic above, as usual.
    Dots mark the threshold in use and a suggested lower one, if any (`find_lower_threshold`).
    Return None if the first model has no score threshold or no lesions.

    Args:
        models: The name and the tables of the evaluated model, and of a second one to compare with,
            if any. The caption states if the second one was scored on another number of scans.
    """
    first = models[0][1]
    if first.threshold is None or not len(first.lesions):
        return None
    figure, axes = new_figure()
    scans = first.n_scanned
    # the threshold in use, and a lower one that the chart suggests
    in_use = CurvePoint(first.threshold, *first.count_at(first.threshold))
    lower = find_lower_threshold(first)
    max_false = in_use.n_false if lower is None else max(in_use.n_false, lower.n_false)
    highest_rate = max_false / scans
    # the upper end of the axis doubles until both dots fit, with space to their right
    right = LAST_RATE
    while right < 1.4 * highest_rate:
        right *= 2
    has_band = _draw_interval_band(axes, first, right)
    has_dotted_line = False
    for (name, tables), colour in zip(models, (FOUND, OTHER), strict=False):
        has_dotted_line |= _draw_froc_curve(axes, name, tables, colour, right)
    _label_rate_axis(axes, right)
    _draw_threshold(axes, first, in_use, "in use", ACCENT)
    if lower is not None:
        _draw_threshold(axes, first, lower, "lower limit", "white")
    # a vertical line at the rate that the threshold was chosen for
    aim = first.scores.operating_point.aim
    if aim is not None and aim.kind == "fp_per_case" and 0 < aim.value < right:
        words = f"set for {format_rate(aim.value)}"
        axes.axvline(aim.value, color="#555555", linestyle="-.", linewidth=1, zorder=1, label=words)
    # above the axes, because curves may be anywhere within them
    with rc_context(RC):  # names of folders may contain dollar signs
        figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=2)
    caption = render_sentence(
        "froc_caption",
        chosen_on=first.scores.operating_point.chosen_on,
        has_lower=lower is not None,
        has_band=has_band,
        has_dotted_line=has_dotted_line,
        n_cases=len(first.cases),
        models=models,
    )
    title = "A lower limit finds more, with more false positives"
    if lower is None:
        title = "Lesions found against false positives per scan"
    return Chart(title, caption, figure)


def _draw_froc_curve(
    axes: Axes, name: str, tables: EvaluationTables, colour: str, right: float
) -> bool:
    """Draw the FROC curve of one model, or one point for a model without threshold.

    `EvaluationTables.threshold` is None if the candidates have no scores, such as the masks of a
    reader, or if scores.json has no operating point. If the curve ends before `right`, the upper
    end of the axis in false positives per scan, a dotted line continues it. Return True if this
    dotted line was drawn, because the caption explains it.
    """
    label = fill(name.lstrip("_"), MAX_LETTERS)  # matplotlib hides names that begin with "_"
    if tables.threshold is None:
        false_rate = tables.scores.count("n_false_positive") / tables.n_scanned
        axes.plot(false_rate, tables.lesions["detected"].mean(), "s", color=colour, label=label)
        return False
    scores = np.unique(tables.lesions["detected_at"].dropna())[::-1]  # the highest first
    # the curve begins at (0, 0), and has a step at each score that finds a lesion
    n_found, n_false = np.array([(0, 0), *map(tables.count_at, scores)]).T
    # The last point: all candidates are accepted, with all false positives (`false_score`). Below
    # the last score in `scores`, lower thresholds add false positives, but no lesion.
    x = np.append(n_false, len(tables.false_score)) / tables.n_scanned
    y = np.append(n_found, n_found[-1]) / max(len(tables.lesions), 1)
    axes.step(x, y, where="post", color=colour, linewidth=2.2, label=label)
    if x[-1] >= right:
        return False
    axes.plot((x[-1], right), (y[-1], y[-1]), ":", color=colour, linewidth=1.6)
    return True


def _draw_interval_band(axes: Axes, tables: EvaluationTables, right: float) -> bool:
    """Draw the 95 % intervals of the FROC curve in scores.json as a band.

    The band contains the points of at most `right` false positives per scan. Without two points
    with an interval, nothing is drawn. Return True if the band was drawn, because the caption
    explains it.
    """
    band = [
        (point.at, *point.ci95)
        for point in tables.scores.curve("froc")
        if point.ci95 and point.at is not None and point.at <= right
    ]
    if len(band) < 2:
        return False
    rates, low, high = zip(*band, strict=True)
    axes.fill_between(rates, low, high, color=FOUND, alpha=0.15, linewidth=0)
    return True


def _label_rate_axis(axes: Axes, right: float) -> None:
    """Scale and label both axes of the FROC chart.

    The x axis has the false positives per scan up to `right`, with ticks at 0, ⅛, ¼, ½, 1, 2 and so
    on. The y axis has the sensitivity in per cent.
    """
    # linear between 0 and ⅛, with the width of 0.6 doublings, and logarithmic above
    axes.set_xscale("symlog", base=2, linthresh=FIRST_RATE, linscale=0.6)
    axes.set_xlim(-0.01, right * 1.02)  # a line at either end is visible in its full width
    # 0, ⅛, and the doublings of ⅛ up to `right`
    ticks = [0.0, *(FIRST_RATE * 2**k for k in range(int(np.log2(right / FIRST_RATE)) + 1))]
    names = {0.125: "⅛", 0.25: "¼", 0.5: "½"}
    axes.set_xticks(ticks, [names.get(tick, f"{tick:g}") for tick in ticks])
    axes.minorticks_off()
    _label_share_axis(axes)
    axes.set_xlabel("false positives per scan")


def _draw_threshold(
    axes: Axes, tables: EvaluationTables, point: CurvePoint, name: str, colour: str
) -> None:
    """Draw a dot at a score threshold on the FROC curve, with an entry of the legend.

    The entry has `name` and the numbers of the threshold, such as "in use: 8 of 10 at 0.5 per
    scan". `colour` is that of the dot.
    """
    x = point.n_false / tables.n_scanned
    y = point.n_found / len(tables.lesions)
    label = f"{name}: {point.n_found} of {len(tables.lesions)} at {format_rate(x)} per scan"
    (dot,) = axes.plot(x, y, "o", markersize=9, color=colour, mec=FOUND, mew=1.5, label=label)
    dot.set(zorder=5, clip_on=False)  # complete also at 0 and 100 %


def find_lower_threshold(tables: EvaluationTables) -> CurvePoint | None:
    """Find a lower score threshold that finds more lesions, which the FROC chart suggests.

    The false positives at this threshold are more than those of the threshold in use, but at most
    twice as many, or one per scan if that is more. Of several such thresholds, return the point of
    the one that finds most lesions, and of these the one with the fewest false positives. Return
    None if there is none, or if the candidates have no scores.
    """
    if tables.threshold is None:
        return None
    n_found, n_false = tables.count_at(tables.threshold)
    max_false = max(2 * n_false, round(tables.n_scanned))  # twice as many, or one per scan
    better = []
    # only at these scores, a lower threshold finds a further lesion
    for score in np.unique(tables.lesions["detected_at"].dropna()):
        if score < tables.threshold:
            point = CurvePoint(float(score), *tables.count_at(score))
            if n_false < point.n_false <= max_false and point.n_found > n_found:
                better.append(point)
    return max(better, key=lambda point: (point.n_found, -point.n_false), default=None)


def dice_chart(tables: EvaluationTables) -> Chart | None:
    """Draw the Dice of each scan, in ascending order, with the mean as a dashed line.

    Return None if the mean Dice is undefined, such as without masks.
    """
    mean = tables.scores["dice"].value
    if mean is None:
        return None
    values = np.sort(tables.cases["dice"].dropna().to_numpy(float))
    figure, axes = new_figure()
    axes.plot(np.arange(1, len(values) + 1), values, "o", color=FOUND, markersize=5)
    axes.axhline(mean, color=ACCENT, linestyle="--", linewidth=1.2)
    axes.set(ylim=(0, 1.02), xlabel="scans with a lesion, sorted", ylabel="Dice")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    caption = f"The Dice of each scan. Dashed: mean {format_score(mean)}."
    return Chart("Dice, scan by scan", caption, figure)


def curve_chart(tables: EvaluationTables) -> Chart | None:
    """Draw the probability that a lesion is found against its diameter, by logistic regression.

    Ticks at 0 and 1 show the missed and the found lesions. The coefficients are those of
    scores.json. Return None if scores.json has none.
    """
    # the type allows None, but every point of a curve has `at`
    diameters = [point.at or 0.0 for point in tables.scores.curve("size_curve")]
    intercept = tables.scores["size_intercept"].value
    slope = tables.scores["size_slope"].value
    if not diameters or intercept is None or slope is None:
        return None
    figure, axes = new_figure()
    smallest = diameters[0]
    # `geomspace` needs a lower end above 0, and a curve of equal diameters needs some width
    x = np.geomspace(max(smallest, 1e-3), max(diameters[-1], smallest * 1.01), num=200)
    axes.plot(x, expit(intercept + slope * np.log(x)), color=FOUND)
    lesions = tables.lesions
    is_found = lesions["detected"] * 1.0  # the heights of the ticks, 1 or 0
    axes.plot(lesions[tables.size_column], is_found, "|", color=INK, alpha=0.4)
    axes.set(
        xlabel=f"diameter, {tables.scores.size_unit}",
        ylabel="chance to be found",
        ylim=(-0.03, 1.03),
    )
    return Chart("Chance to be found, by size", "A logistic regression. Ticks are lesions.", figure)


def subgroup_chart(tables: EvaluationTables) -> Chart | None:
    """Draw the sensitivity in each subgroup of scans as a dot, with its 95 % interval as a line.

    Intervals of fewer than `RELIABLE` patients are dashed. At most `MAX_SUBGROUPS` subgroups with
    lesions are drawn, in the order of scores.json. Return None if no subgroup has lesions.
    """
    scores = tables.scores
    recalls = {name: scores.find("lesion_recall", subset=name) for name in scores.subgroups}
    with_recall = [name for name, recall in recalls.items() if recall.value is not None]
    groups = with_recall[:MAX_SUBGROUPS]
    if not groups:
        return None
    figure, axes = new_figure(width=6.4, height=0.9 + 0.28 * len(groups))
    # reversed, because the y axis points up and the first subgroup is at the top
    for y, group in enumerate(groups[::-1]):
        recall = recalls[group]
        if recall.ci95:
            style = DASHED if (scores.find("n_groups", subset=group).value or 0) < RELIABLE else "-"
            axes.plot(recall.ci95, [y, y], color=INK, linestyle=style, linewidth=1.2)
        axes.plot(recall.value or 0.0, y, "o", color=FOUND)
    numbers = [int(scores.find("n_lesions", subset=name).value or 0) for name in groups]
    names = [f"{g} ({count(n, 'lesion')})" for g, n in zip(groups, numbers, strict=True)][::-1]
    axes.set_yticks(range(len(groups)), names, parse_math=False)
    axes.set(xlim=(0, 1.02), xlabel="sensitivity")
    axes.grid(axis="x", color=GRID)
    caption = (
        f"Lines: 95 % intervals, for {FEW} or more patients, dashed for fewer than {RELIABLE}."
    )
    if len(groups) < len(with_recall):
        caption += f" The first {len(groups)} of {len(with_recall)} subgroups; scores.json has all."
    return Chart("Subgroups", caption, figure)


def reliability_chart(tables: EvaluationTables) -> Chart | None:
    """Draw the reliability diagram: the share of true candidates against their mean score, by bin.

    The x axis has the calibrated probability instead of the score if there is one. Larger dots are
    bins with more candidates. The diagonal line is perfect calibration. Return None if scores.json
    has no such curve.
    """
    points = tables.scores.curve("true_share")
    if not points:
        return None
    score_name = points[0].subset  # rows of this curve have the name of the score here
    figure, axes = new_figure(height=3.6)
    axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1)
    # every point has both numbers; `or 0.0` only satisfies the type checker
    scores_of_bins = [point.at or 0.0 for point in points]
    true_shares = [point.value or 0.0 for point in points]
    # in square points; the area grows up to 60 candidates
    areas = [20 + 3 * min(point.n or 0, 60) for point in points]
    axes.scatter(scores_of_bins, true_shares, s=areas, color=FOUND, alpha=0.8, clip_on=False)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    axes.set(xlabel=f"{score_name} of the marking", ylabel="share that was a lesion")
    return Chart(
        "Calibration", f"On the line, the {score_name} equals the share of lesions.", figure
    )


def load_chart(tables: EvaluationTables) -> Chart | None:
    """Draw the Bland-Altman chart: predicted minus reference volume against their mean, per scan.

    The volumes are those of all lesions of a scan. Lines show the mean difference and the limits of
    agreement. Return None if scores.json has no limits of agreement.
    """
    mean = tables.scores["volume_ml_bias"].value
    highest = tables.scores["volume_ml_upper_limit"].value
    if mean is None or highest is None:
        return None
    volumes = tables.cases[tables.is_predicted][["reference_ml", "predicted_ml"]].dropna()
    difference = volumes["predicted_ml"] - volumes["reference_ml"]
    half_width = highest - mean  # the limits of agreement are at equal distances from the mean
    figure, axes = new_figure()
    axes.plot(volumes.mean(axis=1), difference, "o", color=FOUND)
    for level, style in ((mean, "-"), (mean - half_width, "--"), (highest, "--")):
        axes.axhline(level, color=ACCENT, linestyle=style, linewidth=1.2)
    axes.set(xlabel="mean of both volumes, ml", ylabel="difference, ml")
    caption = (
        f"Predicted minus marked volume: mean {mean:+.2g} ml (solid). About 95 % of the scans are "
        f"within ±{half_width:.2g} ml of it (dashed)."
    )
    return Chart("Lesion volume per scan", caption, figure)


def training_charts(history: Path) -> list[Chart]:
    """Draw the loss terms, and the focal statistics, over the training steps in two charts.

    A curve needs two values, and a chart needs a curve.

    Args:
        history: The file metrics.csv of a training. If it does not exist, the list is empty.
    """
    if not history.is_file():
        return []
    rows = pd.read_csv(history)
    # by column; NaN for an empty cell, because not every step has every value
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in rows}
    # a line needs two points
    drawable = [name for name, values in numbers.items() if values.notna().sum() > 1]
    columns_of_chart = {
        "Training: loss": [name for name in drawable if "loss" in name],
        "Training: focal statistics": [
            name for name in drawable if name.startswith(("grad", "focal", "p/"))
        ],
    }
    charts = []
    for title, names in columns_of_chart.items():
        if not names:
            continue
        figure, axes = new_figure()
        for name in names:
            values = numbers[name]
            words = CURVES.get(name, name.replace("_", " "))
            axes.plot(rows["step"][values.notna()], values.dropna(), linewidth=1.2, label=words)
        axes.set_xlabel("step")
        # above the axes, because curves may be anywhere within them; long names need a line each
        n_columns = 1 if any(name in CURVES for name in names) else 3
        figure.legend(frameon=False, fontsize=9, loc="outside upper left", ncols=n_columns)
        charts.append(Chart(title, "From metrics.csv.", figure))
    return charts
