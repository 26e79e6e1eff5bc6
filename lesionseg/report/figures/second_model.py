"""A second model or reader on the same scans: its tables, and the charts of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lesionseg.errors import ContentError
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.score_parts import Difference
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import (
    ACCENT,
    FOUND,
    INK,
    TOP,
    shorten,
    tidy,
)
from lesionseg.report.figures.froc_figure import doubling_axis, froc_range
from lesionseg.report.result_tables import Tables, read_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# differences of these are no shares, and have an axis of their own
RATES = ("false_positives_per_case",)

LEGEND = 200.0  # points of a model's or reader's name in a legend


@dataclass(frozen=True)
class LineStyle:
    """How one of the two is drawn; they differ in shape as well as in colour."""

    name: str
    colour: str
    line: str
    marker: str


@dataclass(frozen=True)
class ModelPair:
    """The two evaluations and what they are called."""

    one: Tables
    other: Tables
    names: tuple[str, str]

    def looks(self) -> tuple[tuple[Tables, LineStyle], ...]:
        """Each with the way it is drawn."""
        return (
            (self.one, LineStyle(self.names[0], FOUND, "-", "o")),
            (self.other, LineStyle(self.names[1], ACCENT, "--", "s")),
        )


def read_pair(tables: Tables, folder: Path, names: tuple[str, str]) -> ModelPair:
    """The evaluation in `folder` beside `tables`.

    `ContentError` when it is of other scans, or by another match rule.
    """
    other = read_tables(folder)
    here, there = ({case.case: case.n_lesions for case in t.cases} for t in (tables, other))
    if here != there:
        apart = sum(here.get(case) != there.get(case) for case in {*here, *there})
        raise ContentError(
            "The two evaluations are not of the same scans and lesions.",
            where=folder,
            seen=f"{apart} scans that differ",
            expected=f"the {len(here)} scans of {tables.folder}",
            remedy="evaluate both against the same reference.",
        )
    check_rule(folder, other.scores, tables.scores)
    return ModelPair(tables, other, names)


def check_rule(folder: Path, there: Scores, here: Scores) -> None:
    """Raise `ContentError` where the scores in `folder` are by another match rule than `here`."""
    if there.match_rule != here.match_rule:
        raise ContentError(
            "The two evaluations do not count what was found by the same rule.",
            where=folder,
            seen=there.match_rule,
            expected=here.match_rule,
            remedy="evaluate both with the same preset and version.",
        )


def draw_froc_pair(onto: "FigureBase", pair: ModelPair) -> None:
    """Both curves on one doubling axis, and the operating point of each."""
    axes = onto.subplots()
    tidy(axes, text.AXIS_SENSITIVITY)
    ends = [froc_range(tables.scores) for tables, _ in pair.looks()]
    first, last = min(low for low, _ in ends), max(high for _, high in ends)
    for tables, look in pair.looks():
        if tables.sweep is not None:
            rates, recall = tables.sweep.curve()
            axes.step(
                np.maximum(rates, first),
                recall,
                look.line,
                where="post",
                color=look.colour,
                linewidth=2,
            )
        _point(axes, tables.scores, look, first)
    doubling_axis(axes, first, last)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _point(axes: "Axes", scores: Scores, look: LineStyle, first: float) -> None:
    false = scores.estimate("false_positives_per_case").value
    recall = scores.estimate("lesion_recall").value
    if false is not None and recall is not None:
        axes.plot(
            [max(false, first)],
            [recall],
            look.marker + look.line,
            color=look.colour,
            markersize=9,
            markeredgecolor="white",
            zorder=5,
            clip_on=False,
            label=shorten(look.name, LEGEND, 9),
        )


def draw_sizes_pair(onto: "FigureBase", pair: ModelPair) -> None:
    """Sensitivity of each size group by both, side by side, with intervals."""
    axes = onto.subplots()
    tidy(axes, text.AXIS_SENSITIVITY)
    groups = pair.one.scores.recall_by_size
    for (tables, look), shift in zip(pair.looks(), (-0.12, 0.12), strict=True):
        drawn = False
        for at, group in enumerate(tables.scores.recall_by_size):
            if not group.n:
                continue
            share, x = group.detected / group.n, at + shift
            if group.recall.ci95 is not None:
                axes.plot([x, x], group.recall.ci95, color=look.colour, linewidth=1.6, marker="_")
            sure = group.recall.ci95 is not None
            axes.plot(
                [x],
                [share],
                look.marker,
                color=look.colour,
                markerfacecolor=look.colour if sure else "white",
                markersize=8,
                label=None if drawn else shorten(look.name, LEGEND, 9),
                clip_on=False,
            )
            drawn = True
    axes.set_ylim(0, TOP)
    axes.set_xticks(
        np.arange(len(groups)), [text.size_range(g, pair.one.scores.size_unit) for g in groups]
    )
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xlabel(text.axis_diameter(pair.one.scores.size_said))
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def draw_differences(onto: "FigureBase", differences: Mapping[str, Difference]) -> None:
    """Each difference with its interval around a line at zero; rates in a panel of their own."""
    shares = {key: row for key, row in differences.items() if key not in RATES}
    rates = {key: row for key, row in differences.items() if key in RATES}
    panels = [part for part in (shares, rates) if part]
    grid = onto.subplots(len(panels), 1, squeeze=False, height_ratios=[len(p) for p in panels])
    for axes, part in zip(grid[:, 0], panels, strict=True):
        _draw_panel(axes, part)
        name = text.AXIS_DIFFERENCE if part is shares else text.AXIS_DIFFERENCE_FALSE
        axes.set_xlabel(name)


def _draw_panel(axes: "Axes", rows: Mapping[str, Difference]) -> None:
    axes.axvline(0, color=INK, linewidth=1)
    reach = 0.0
    for at, row in enumerate(rows.values()):
        value, ci95 = row.difference.value, row.difference.ci95
        if value is None:
            continue
        reach = max(reach, abs(value), *map(abs, ci95 or ()))
        if ci95 is not None:
            axes.plot(ci95, [at, at], color=INK, linewidth=1.4, marker="|", markersize=7)
        face = "white" if ci95 is None else FOUND
        axes.plot([value], [at], "o", color=FOUND, markerfacecolor=face, markersize=7)
    reach = 1.1 * reach or 0.1
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [text.measure_name(key) for key in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
