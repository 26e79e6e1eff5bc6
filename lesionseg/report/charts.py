"""Which charts a report has, each with the words that stand for it."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lesionseg.report import figures, text
from lesionseg.report.sweep import Sweep
from lesionseg.report.tables import Tables, read_history

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
        encoded = base64.b64encode(self.drawing.svg).decode("ascii")
        return f"data:image/svg+xml;base64,{encoded}"

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Where its first axes lie: left, top, width, height in percent."""
        left, top, width, height = self.drawing.frame
        return 100 * left, 100 * top, 100 * width, 100 * height


def make_charts(
    tables: Tables, history: Path | None, sweep: Sweep | None = None
) -> dict[str, Chart]:
    """The charts that the tables allow, by section of the report."""
    scores, cases, charts = tables.scores, tables.cases, {}
    if scores.n_lesions:
        draw = partial(figures.recall_by_size, scores=scores, lesions=tables.lesions)
        charts["size"] = Chart(draw, 4.6, text.SIZE_TEXT, text.alt_sizes(scores))
    if scores.froc:
        draw = partial(figures.froc_curve, scores=scores, sweep=sweep)
        charts["froc"] = Chart(draw, 3.8, text.FROC_TEXT, text.alt_froc(scores.froc))
    if any(case.dice is not None for case in cases):
        draw = partial(figures.dice_per_case, cases=cases, median=scores.median_dice)
        alt = text.alt_dice(cases, scores.median_dice)
        charts["overlap"] = Chart(draw, 3.4, text.OVERLAP_TEXT, alt)
    curves = () if history is None else read_history(history)
    if curves:
        alt = text.alt_training([curve.name for curve in curves])
        draw = partial(figures.training_curves, curves=curves)
        charts["training"] = Chart(draw, 3.2, text.TRAINING_TEXT, alt)
    return charts
