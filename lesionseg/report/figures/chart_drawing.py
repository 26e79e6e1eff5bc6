"""How the report's charts look, drawn onto a figure; matplotlib is imported only when drawing."""

import base64
import io
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lesionseg.evaluation.rows import CaseRow, LesionRow
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report import text
from lesionseg.report.result_tables import HistoryCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# Colour-blind safe pairs (Okabe and Ito 2008) that also differ in lightness, for grey-scale print.
INK, GRID = "#1a1a1a", "#d9d9d9"
WIDTH = 7.6  # inches
TOP = 1.02  # of axes that show a share: room for a line at 1
# a cloud of more numbers becomes an image, of so many dots an inch
MOST_POINTS, DOTS = 5000, 200
FOUND, MISSED, ACCENT = "#0072b2", "#cfd8dc", "#d55e00"
ELLIPSIS = "…"
STYLES = ("-", "--", ":", "-.")
RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "lesionseg",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "hatch.linewidth": 0.8,
    "text.parse_math": False,  # a name of the user's may hold dollars
}


def recall_by_size(onto: "FigureBase", scores: Scores, lesions: Sequence[LesionRow]) -> None:
    """Recall of each size group with interval, above the counts found and missed.

    Lesions near the scan's resolution are hatched in the counts.
    """
    shares, counts = onto.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    groups = scores.recall_by_size
    _draw_shares(shares, groups)
    _draw_counts(counts, groups, lesions)
    labels = [f"{text.size_range(g, scores.size_unit)}\n{text.of(g.detected, g.n)}" for g in groups]
    counts.set_xticks(np.arange(len(groups)), labels)
    counts.set_xlim(-0.5, len(groups) - 0.5)
    counts.set_xlabel(text.axis_sizes(scores.size_said))


def _draw_shares(axes: "Axes", groups: Sequence[SizeGroup]) -> None:
    tidy(axes, text.AXIS_SENSITIVITY)
    axes.set_ylim(0, TOP)
    for at, group in enumerate(groups):
        if not group.n:
            axes.text(at, 0.03, text.NO_BAR, ha="center", color=INK)
            continue
        share = group.detected / group.n
        few = group.recall.ci95 is None and group.n < text.MIN_FOR_PERCENT
        face = "none" if few else FOUND
        axes.bar(
            at, share, width=0.6, facecolor=face, edgecolor=FOUND, linestyle="--" if few else "-"
        )
        if not share:  # no bar would look like no lesion
            axes.plot(at, 0, "o", color=FOUND, clip_on=False)
        if group.recall.ci95 is not None:
            low, high = group.recall.ci95
            errors = [[max(share - low, 0)], [max(high - share, 0)]]
            axes.errorbar(at, share, yerr=errors, color=INK, capsize=5, linewidth=1.4)
    if groups and all(group.recall.ci95 is None for group in groups):
        axes.set_title(text.NO_BARS_HAVE, fontsize=9, loc="right")


def _draw_counts(axes: "Axes", groups: Sequence[SizeGroup], lesions: Sequence[LesionRow]) -> None:
    tidy(axes, text.AXIS_LESIONS)
    base = [0] * len(groups)
    for detected in (True, False):
        for near in (False, True):
            heights = [
                sum(
                    lesion.detected is detected and lesion.near_resolution is near
                    for lesion in lesions
                    if group.holds(lesion.diameter_mm)
                )
                for group in groups
            ]
            drawn = [at for at, height in enumerate(heights) if height]
            if not drawn:
                continue
            axes.bar(
                drawn,
                [heights[at] for at in drawn],
                bottom=[base[at] for at in drawn],
                width=0.6,
                color=FOUND if detected else MISSED,
                edgecolor=("white" if detected else INK) if near else "none",
                hatch="////" if near else None,
                label=text.bar_key(detected=detected, near=near),
            )
            base = [b + h for b, h in zip(base, heights, strict=True)]
    axes.legend(frameon=False, fontsize=8.5, ncols=2, handlelength=1.6)
    axes.locator_params(axis="y", integer=True, nbins=4)
    axes.set_ylim(0, max([1, *base]) * 1.6)


def dice_per_case(onto: "FigureBase", cases: Sequence[CaseRow], median: float | None) -> None:
    """Dice of each case with a reference lesion, against its lesion volume where that is known."""
    axes = onto.subplots()
    tidy(axes, text.AXIS_DICE)
    rows = [case for case in cases if case.dice is not None]
    values = [case.dice or 0.0 for case in rows]
    volumes = [case.reference_ml or 0.0 for case in rows]
    if rows and all(volumes):
        if max(volumes) > 10 * min(volumes):
            log_axis(axes)
        axes.set_xlabel(text.AXIS_VOLUME)
        axes.plot(volumes, values, "o", color=FOUND, alpha=0.75, clip_on=False)
    else:
        axes.set_xlabel(text.AXIS_SCANS)
        axes.plot(range(1, len(rows) + 1), sorted(values), "o", color=FOUND, clip_on=False)
        axes.locator_params(axis="x", integer=True)
    if median is not None:
        axes.axhline(median, color=ACCENT, linestyle="--", linewidth=1.2, label=text.MEDIAN)
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    axes.set_ylim(-0.02, 1.02)


def log_axis(axes: "Axes") -> None:
    """Logarithmic to the right, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def training_curves(onto: "FigureBase", curves: Sequence[HistoryCurve]) -> None:
    """Each loss column of the history against the optimiser step."""
    axes = onto.subplots()
    tidy(axes, text.AXIS_LOSS)
    colours = (FOUND, ACCENT, INK, "#009e73", "#cc79a7", "#56b4e9")
    for at, curve in enumerate(curves):
        axes.plot(
            curve.steps,
            curve.values,
            STYLES[at % len(STYLES)],
            color=colours[at % len(colours)],
            linewidth=1.4,
            marker="." if len(curve.steps) < 30 else None,
            label=curve.name,
        )
    axes.set_xlabel(text.AXIS_STEP)
    axes.legend(frameon=False, fontsize=8.5)


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG, and where its first axes lie: left, top, width, height as shares of it."""

    svg: bytes
    frame: tuple[float, float, float, float]

    @property
    def data_uri(self) -> str:
        """The figure as an SVG data URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode('ascii')}"


def draw_svg(draw: "Callable[[FigureBase], None]", height: float) -> Drawing:
    """Draw a figure of `height` inches as SVG, the same bytes for the same figure."""
    import matplotlib as mpl
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with mpl.rc_context(RC):
        buffer, figure = io.BytesIO(), Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        for cloud in figure.findobj(Line2D) + figure.findobj(PathCollection):
            points = cloud.get_xdata() if isinstance(cloud, Line2D) else cloud.get_offsets()
            cloud.set_rasterized(np.size(points) > MOST_POINTS)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=DOTS)
        place = figure.axes[0].get_position()
        frame = (place.x0, 1 - place.y1, place.width, place.height)
        return Drawing(buffer.getvalue(), frame)


def width_of(words: str, size: float, *, bold: bool = False) -> float:
    """The width of one line in points, set in so many points of the font that is there."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(words, font, ismath=False)[0])


def shorten(words: str, width: float, size: float, *, bold: bool = False) -> str:
    """The words, or as many letters of them as fit `width` points before an ellipsis."""
    if width_of(words, size, bold=bold) <= width:
        return words
    kept = bisect_left(
        range(1, len(words)),
        True,
        key=lambda n: width_of(words[:n] + ELLIPSIS, size, bold=bold) > width,
    )
    return words[:kept].rstrip() + ELLIPSIS


def tidy(axes: "Axes", ylabel: str) -> None:
    """Two spines, a quiet grid, and what goes upwards."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylabel(ylabel)
