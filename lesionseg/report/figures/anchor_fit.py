"""The fit of a detector's anchors: sides of the training lesions against sizes of the anchors."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ContentError
from lesionseg.io.atomic import read_json
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import ACCENT, INK, tidy
from lesionseg.report.figures.chart_list import Chart

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

MARKERS = "sD^v"  # a level each, finest first
_MOST_LESIONS = 2000  # drawn; more are one cloud anyway


@dataclass(frozen=True, eq=False)
class Fit:
    """Sides in millimetres: `lesions` `[n, 2]`, and of each level the anchors' `[k, 2]`.

    The first number is the side along the last axis (3-D: the geometric mean of those in plane),
    the second the side along the first axis. `mean_iou` and `small_recall` as in `AnchorPlan`.
    """

    lesions: NDArray[np.float64]
    levels: tuple[NDArray[np.float64], ...]
    mean_iou: float | None
    small_recall: float | None


def anchor_charts(folder: Path) -> dict[str, Chart]:
    """The chart `anchors` of a run directory whose plan has anchors fitted to lesions."""
    fit = read_fit(folder)
    if fit is None:
        return {}
    said = text.anchors_text(fit.mean_iou or 0.0, fit.small_recall or 0.0)
    alt = text.alt_anchors(len(fit.lesions), sum(len(level) for level in fit.levels))
    return {"anchors": Chart(partial(draw_fit, fit=fit), 3.8, said, alt)}


def read_fit(folder: Path) -> Fit | None:
    """Read plan.json and fingerprint.json; None without them, without anchors or any lesion.

    Raises `ContentError` for files that do not fit together.
    """
    paths = folder / "plan.json", folder / "fingerprint.json"
    if not all(path.is_file() for path in paths):
        return None
    plan, fingerprint = (read_json(path) for path in paths)
    anchors, extents = plan.get("anchors"), fingerprint.get("extents_mm")
    if not anchors or not extents:
        return None
    try:
        spacing = np.asarray(plan["spacing_mm"], dtype=float)
        levels = tuple(_two_sides(np.asarray(level) * spacing) for level in anchors["sizes"])
        return Fit(_two_sides(extents), levels, anchors["mean_iou"], anchors["small_recall"])
    except (KeyError, TypeError, ValueError) as error:
        raise ContentError(
            "The fit of the anchors cannot be read.", where=paths[0], seen=repr(error)
        ) from error


def _two_sides(sides: Any) -> NDArray[np.float64]:
    sides = np.maximum(np.asarray(sides, dtype=float), 1e-3)
    across = np.exp(np.log(sides[:, 1:]).mean(axis=1))
    return np.stack([across, sides[:, 0]], axis=1)


def draw_fit(onto: "FigureBase", fit: Fit) -> None:
    """A point per lesion, a marker per anchor size, both axes logarithmic."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes = onto.subplots()
    some = np.linspace(0, len(fit.lesions) - 1, min(len(fit.lesions), _MOST_LESIONS)).astype(int)
    lesions = fit.lesions[some]
    axes.plot(*lesions.T, ".", color=INK, alpha=0.35, markersize=4, label=text.LESIONS_OF_TRAINING)
    for number, (level, marker) in enumerate(zip(fit.levels, MARKERS, strict=False), start=1):
        axes.plot(
            *level.T,
            marker,
            color=ACCENT,
            fillstyle="none",
            markersize=7 + 2 * number,
            label=text.anchor_level(number),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel(text.AXIS_SIDE_ACROSS)
    tidy(axes, text.AXIS_SIDE_ALONG)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
