"""Charts of a dataset: lesion sizes, intensities, spacings, and the anchors fitted to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ContentError
from lesionseg.io.atomic import read_json
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import ACCENT, FOUND, INK, tidy
from lesionseg.report.figures.chart_list import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


def size_histogram(onto: "FigureBase", diameters: Sequence[float], unit: str) -> None:
    """How many lesions there are of each equivalent diameter, on a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    axes = onto.subplots()
    low, high = max(min(diameters), 1e-3), max(diameters)
    edges = np.geomspace(low * 0.95, max(high, low) * 1.05, 31)
    axes.hist(diameters, bins=edges.tolist(), color=FOUND)
    axes.set_xscale("log")
    ticks = [t for t in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if edges[0] <= t <= edges[-1]]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"equivalent diameter in {unit}")
    tidy(axes, "lesions")


def intensity_ranges(
    onto: "FigureBase", channels: Sequence[str], ranges: Sequence[Sequence[Sequence[float]]]
) -> None:
    """Range and median of each case's voxels, a panel a channel; `ranges[case][channel]`."""
    panels = np.atleast_1d(np.asarray(onto.subplots(len(channels), 1, sharex=True)))
    for number, (axes, name) in enumerate(zip(panels, channels, strict=True)):
        values = np.array([case[number] for case in ranges], dtype=float)
        at = np.arange(1, len(values) + 1)
        axes.vlines(at, values[:, 0], values[:, 2], color=FOUND, linewidth=1.2)
        axes.plot(at, values[:, 1], ".", color=ACCENT, markersize=4)
        tidy(axes, name)
    _number_cases(panels[-1])


def spacing_scatter(onto: "FigureBase", spacings: Sequence[Sequence[float]], unit: str) -> None:
    """Voxel size of each case along each axis."""
    axes = onto.subplots()
    values = np.array(spacings, dtype=float)
    names = ("through the slices", "front to back", "across")[3 - values.shape[1] :]
    names = names if values.shape[1] == 3 else ("down", "across")
    for axis, (name, marker) in enumerate(zip(names, "o+x", strict=False)):
        at = np.arange(1, len(values) + 1)
        axes.plot(at, values[:, axis], marker, label=name, markersize=4, fillstyle="none")
    axes.set_ylim(0, float(values.max()) * 1.1)
    _number_cases(axes)
    axes.legend(frameon=False, fontsize=9)
    tidy(axes, f"{unit} per voxel")


def _number_cases(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("case")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


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
    caption = text.say("ANCHORS_TEXT", iou=fit.mean_iou or 0.0, small=fit.small_recall or 0.0)
    n_sizes = sum(len(level) for level in fit.levels)
    alt = text.say("ALT_ANCHORS", lesions=len(fit.lesions), sizes=n_sizes)
    return {"anchors": Chart(partial(draw_fit, fit=fit), 3.8, caption, alt)}


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
            label=text.say("ANCHOR_LEVEL", n=number),
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
