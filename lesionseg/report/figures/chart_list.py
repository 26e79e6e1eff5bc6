"""Which charts a report has, each with the words that stand for it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lesionseg.report import text
from lesionseg.report.figures import chart_drawing as figures
from lesionseg.report.figures import detail_figures, froc_figure
from lesionseg.report.figures import second_model as comparison
from lesionseg.report.figures.second_model import ModelPair
from lesionseg.report.result_tables import Tables, read_history

# more lines than this are in the table alone
MOST_SUBGROUPS = 30

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn onto a figure of `height` inches, and its words."""

    draw: "Callable[[FigureBase], None]"
    height: float
    caption: str
    alt: str

    @cached_property
    def drawing(self) -> figures.Drawing:
        """The chart drawn."""
        return figures.draw_svg(self.draw, self.height)

    def data_uri(self) -> str:
        """The chart as an SVG data URI."""
        return self.drawing.data_uri

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Where its first axes lie: left, top, width, height in percent."""
        left, top, width, height = self.drawing.frame
        return 100 * left, 100 * top, 100 * width, 100 * height


def make_charts(tables: Tables, history: Path | None) -> dict[str, Chart]:
    """The charts that the tables allow, by section of the report."""
    scores, cases, charts = tables.scores, tables.cases, {}
    if scores.n_lesions:
        draw = partial(figures.recall_by_size, scores=scores, lesions=tables.lesions)
        charts["size"] = Chart(draw, 4.6, text.SIZE_TEXT, text.alt_sizes(scores))
    if scores.froc:
        draw = partial(froc_figure.froc_curve, scores=scores, sweep=tables.sweep)
        charts["froc"] = Chart(draw, 3.8, text.froc_text(scores), text.alt_froc(scores.froc))
    if any(case.dice is not None for case in cases):
        draw = partial(figures.dice_per_case, cases=cases, median=scores.median_dice)
        alt = text.alt_dice(cases, scores.median_dice)
        charts["overlap"] = Chart(draw, 3.4, text.OVERLAP_TEXT, alt)
    charts |= _detail_charts(tables)
    curves = () if history is None else read_history(history)
    if curves:
        alt = text.say("ALT_TRAINING", names=", ".join(curve.name for curve in curves))
        draw = partial(figures.training_curves, curves=curves)
        charts["training"] = Chart(draw, 3.2, text.TRAINING_TEXT, alt)
    return charts


def _detail_charts(tables: Tables) -> dict[str, Chart]:
    details, unit, charts = tables.details, tables.scores.size_unit, {}
    curve = details.size_curve
    if curve is not None:
        draw = partial(
            detail_figures.draw_size_curve,
            curve=curve,
            lesions=tables.lesions,
            scores=tables.scores,
        )
        charts["size_curve"] = Chart(draw, 3.8, text.CURVE_TEXT, text.alt_curve(curve, unit))
    if detail_figures.contrasts_differ(details.cells):
        draw = partial(detail_figures.draw_cells, cells=details.cells, unit=unit)
        alt = text.alt_cells(details.cells, unit)
        charts["contrast"] = Chart(draw, 3.6, text.CELLS_TEXT, alt)
    overall = tables.scores.estimate("lesion_recall").value
    shown = details.subgroups[:MOST_SUBGROUPS]
    if shown and overall is not None:
        draw = partial(detail_figures.draw_subgroups, subgroups=shown, overall=overall)
        height = detail_figures.forest_height(shown)
        charts["subgroups"] = Chart(draw, height, text.SUBGROUPS_TEXT, text.alt_subgroups(shown))
    if details.calibration is not None:
        draw = partial(detail_figures.draw_reliability, calibration=details.calibration)
        alt = text.alt_reliability(details.calibration)
        charts["calibration"] = Chart(draw, 4.8, text.RELIABILITY_TEXT, alt)
    return charts


def comparison_charts(
    tables: Tables, pair: ModelPair | None, names: tuple[str, str]
) -> dict[str, Chart]:
    """The differences that scores.json holds, and the curves of both where both are given."""
    charts, rows = {}, tables.details.differences
    if rows:
        draw = partial(comparison.draw_differences, differences=rows)
        alt = text.alt_differences(rows)
        caption = text.say("DIFFERENCES_TEXT", name=names[0], other=names[1])
        charts["differences"] = Chart(draw, 1.6 + 0.3 * len(rows), caption, alt)
    if pair is None:
        return charts
    both = [tables.scores for tables, _ in pair.looks()]
    draw = partial(comparison.draw_froc_pair, pair=pair)
    charts["froc_pair"] = Chart(
        draw, 3.8, text.FROC_BOTH_TEXT, text.alt_froc_pair(both, pair.names)
    )
    if pair.one.scores.n_lesions:
        draw = partial(comparison.draw_sizes_pair, pair=pair)
        alt = text.alt_sizes_pair(both, pair.names)
        charts["sizes_pair"] = Chart(draw, 3.4, text.SIZES_BOTH_TEXT, alt)
    return charts
