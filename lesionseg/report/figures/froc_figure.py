"""Sensitivity against false positives per scan: the curve, where this report stands, a reader."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lesionseg.evaluation.score_sections import FrocPoint, Scores, SecondReader
from lesionseg.evaluation.statistics.detection import ThresholdSweep
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import ACCENT, FOUND, INK, TOP, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


def froc_curve(onto: "FigureBase", scores: Scores, sweep: ThresholdSweep | None = None) -> None:
    """Recall against false positives per case on a doubling axis, with the operating point.

    With `sweep` the whole step curve, else the stored points joined. Rates beyond the last
    candidate, where nothing more can be found, are joined by dots.
    """
    axes = onto.subplots()
    tidy(axes, text.AXIS_SENSITIVITY)
    first, last = froc_range(scores)
    reached = [point for point in scores.froc if point.reached]
    beyond = [*reached[-1:], *(point for point in scores.froc if not point.reached)]
    parts = ((reached, "-", "o"), (beyond, ":", ""))
    for points, style, marker in parts if sweep is None else parts[1:]:
        x = [max(point.fp_per_case, first) for point in points]
        y = [point.recall for point in points]
        axes.plot(x, y, style, marker=marker, color=FOUND, linewidth=2, markersize=4)
    if sweep is not None:
        rates, recall = sweep.curve()
        axes.step(np.maximum(rates, first), recall, where="post", color=FOUND, linewidth=2)
    _band(axes, scores.froc, first)
    _draw_operating_point(axes, scores, first)
    if scores.second_reader is not None:
        _draw_reader(axes, scores.second_reader, first)
    doubling_axis(axes, first, last)


def froc_range(scores: Scores) -> tuple[float, float]:
    """Ends of the axis of false positives per case; its start stands for none."""
    here = scores.estimate("false_positives_per_case").value or 0.0
    reader = scores.second_reader and scores.second_reader.false_positives_per_case.value
    rates = [*(point.fp_per_case for point in scores.froc), here, reader or 0.0]
    least = min([0.125, 1 / max(scores.n_cases, 1), *(rate for rate in rates if rate > 0)])
    return least / 2, max([8.0, *rates])


def _band(axes: "Axes", points: Sequence[FrocPoint], first: float) -> None:
    """Steps like the curve's: it rises, so up to the next point it lies under that one's end."""
    known = [(max(p.fp_per_case, first), *p.ci95) for p in points if p.ci95 is not None]
    if known:
        x, low, high = (np.repeat(column, 2) for column in zip(*known, strict=True))
        axes.fill_between(x[1:-1], low[:-2], high[2:], color=FOUND, alpha=0.18, linewidth=0)


def _draw_operating_point(axes: "Axes", scores: Scores, first: float) -> None:
    false = scores.estimate("false_positives_per_case").value
    recall = scores.estimate("lesion_recall").value
    kind, value = text.aim(scores)
    if kind == "fp_per_case" and value:
        axes.axvline(max(value, first), color=INK, linestyle=":", linewidth=1.2)
    x, y = text.expected(scores)
    if x is not None and y is not None:
        axes.plot(max(x, first), y, "o", color=ACCENT, markersize=9, markerfacecolor="none")
    if false is None or recall is None:
        return
    axes.plot(max(false, first), recall, "o", color=ACCENT, markersize=9, zorder=5, clip_on=False)
    axes.annotate(
        text.USED_HERE,
        (max(false, first), recall),
        xytext=(8, -14 if recall > 0.1 else 8),
        textcoords="offset points",
        color=INK,
    )


def _draw_reader(axes: "Axes", reader: SecondReader, first: float) -> None:
    """A square with the intervals of both rates."""
    recall, false = reader.lesion_recall, reader.false_positives_per_case
    if recall.value is None or false.value is None:
        return
    x, y = max(false.value, first), recall.value
    for ci95, ends in ((recall.ci95, ([x, x], None)), (false.ci95, (None, [y, y]))):
        if ci95 is not None:
            across = [max(end, first) for end in ci95]
            axes.plot(ends[0] or across, ends[1] or ci95, color=INK, linewidth=1.2, zorder=4)
    axes.plot(x, y, "s", color=INK, markersize=8, zorder=5, clip_on=False)
    axes.annotate(
        text.SECOND_READER,
        (x, y),
        xytext=(8, -14 if y > 0.1 else 8),
        textcoords="offset points",
        color=INK,
    )


def doubling_axis(axes: "Axes", first: float, last: float) -> None:
    """False positives per scan to the right, twice as many per division; a share upwards.

    The axis is broken: its start stands for 0.
    """
    axes.set_xscale("log", base=2)
    axes.set_xlim(first, last)
    axes.set_ylim(0, TOP)
    ticks = [t for t in (2.0**k for k in range(-16, 12)) if 1.5 * first <= t <= last]
    ticks = ticks[-1 :: -2 if len(ticks) > 10 else -1]
    named = [f"1/{round(1 / t)}" if t < 1 else f"{t:g}" for t in ticks]
    axes.set_xticks([*ticks, first], [*named, "0"])
    axes.minorticks_off()
    axes.text(first * 2**0.5, 0, "//", ha="center", va="center", color=INK, clip_on=False)
    axes.set_xlabel(text.AXIS_FALSE)
