"""Charts of a dataset: lesion sizes, intensities and spacings; matplotlib comes when drawing."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lesionseg.report.figures.chart_drawing import ACCENT, FOUND, GRID, RC, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


def data_uri(draw: "Callable[[FigureBase], None]", height: float) -> str:
    """Draw a figure of `height` inches as the data URI of an SVG without a date."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        buffer, figure = io.BytesIO(), Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


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
    _tidy(axes, "lesions")


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
        _tidy(axes, name)
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
    _tidy(axes, f"{unit} per voxel")


def _number_cases(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("case")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _tidy(axes: "Axes", ylabel: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylabel(ylabel)
