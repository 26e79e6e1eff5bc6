"""Charts of who a focal loss taught: shares over training, and cumulative loss by class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.atomic import read_csv, read_json
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import ACCENT, FOUND, GRID, INK, MISSED
from lesionseg.report.figures.chart_list import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

T = TypeVar("T")
PARTS = ("lesion", "hard", "easy")
PART_COLOURS = (FOUND, ACCENT, MISSED)
# Points along the steps, each of several rows: single batches hold few lesions or none
MIN_POINTS, MAX_POINTS, ROWS_A_POINT = 10, 60, 4


@dataclass(frozen=True, eq=False)
class Course:
    """focal_balance.csv in at most `MAX_POINTS` points, each the pool of neighbouring rows.

    `steps` `[n]`; `loss` and `gradient` `[3, n]`, shares of lesions, hard and easy background;
    `lesion_p`, `background_p` `[n]`. What is not known is NaN.
    """

    steps: NDArray[np.float64]
    loss: NDArray[np.float64]
    gradient: NDArray[np.float64]
    lesion_p: NDArray[np.float64]
    background_p: NDArray[np.float64]


def balance_charts(folder: Path) -> dict[str, Chart]:
    """The charts `balance` and `curves` that the files in a run directory allow."""
    charts = {}
    course = _optional(folder / "focal_balance.csv", read_course)
    if course is not None:
        draw = partial(draw_course, course=course)
        charts["balance"] = Chart(draw, 4.6, text.BALANCE_TEXT, _alt_course(course))
    curves = _optional(folder / "loss_curves.csv", read_curves)
    if curves:
        draw_all = partial(draw_curves, curves=curves)
        charts["curves"] = Chart(draw_all, 3.0, text.CURVES_TEXT, _alt_curves(curves))
    return charts


def balance_warnings(folder: Path) -> tuple[str, ...]:
    """The sentences of a focal_balance.json, each with its step; none without the file."""
    path = folder / "focal_balance.json"
    if not path.is_file():
        return ()
    try:
        return tuple(
            text.say("STEP", step=row["step"], sentence=row["sentence"]) for row in read_json(path)
        )
    except (KeyError, TypeError) as error:
        raise ContentError("The warnings cannot be read.", where=path, seen=repr(error)) from error


def read_course(path: Path) -> Course | None:
    """Read focal_balance.csv; None for one without rows, `ContentError` for a broken one."""
    rows = read_csv(path)
    if not rows:
        return None
    names = ("step", "loss_sum", "gradient_sum", "n_lesions", "lesion_p", "background_p")
    shares = [f"{what}_{part}" for what in ("loss", "gradient") for part in PARTS]
    try:
        table = {
            name: np.array([float(row[name]) if row[name] else np.nan for row in rows])
            for name in (*names, *shares)
        }
    except (KeyError, ValueError) as error:
        raise ContentError(
            "The focal balance cannot be read.", where=path, seen=repr(error)
        ) from error
    n_points = min(max(len(rows) // ROWS_A_POINT, MIN_POINTS), MAX_POINTS, len(rows))
    bins = np.array_split(np.arange(len(rows)), n_points)

    def pooled(name: str, weight: str) -> NDArray[np.float64]:
        return np.array([_mean(table[name][at], table[weight][at]) for at in bins])

    return Course(
        steps=np.array([table["step"][at].mean() for at in bins]),
        loss=np.stack([pooled(f"loss_{part}", "loss_sum") for part in PARTS]),
        gradient=np.stack([pooled(f"gradient_{part}", "gradient_sum") for part in PARTS]),
        lesion_p=pooled("lesion_p", "n_lesions"),
        background_p=np.array([_mean(table["background_p"][at], None) for at in bins]),
    )


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64] | None) -> float:
    """Weighted mean of what is known; NaN when nothing is."""
    weights = np.ones_like(values) if weights is None else weights
    known = np.isfinite(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan


def read_curves(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of loss_curves.csv that hold numbers: quantile, and lesion and background if known.

    Raises `ContentError` for a broken one.
    """
    rows = read_csv(path)
    try:
        return {
            name: np.array([float(row[name]) for row in rows])
            for name in ("quantile", "lesion", "background")
            if rows and all(row[name] for row in rows)
        }
    except (KeyError, ValueError) as error:
        raise ContentError(
            "The loss curves cannot be read.", where=path, seen=repr(error)
        ) from error


def draw_course(onto: "FigureBase", course: Course) -> None:
    """Stacked shares of loss and gradient, above the highest probabilities."""
    grid = onto.subplots(2, 2, sharex=True, height_ratios=(3, 2))
    for axes, what, shares in zip(
        grid[0], ("loss", "gradient"), (course.loss, course.gradient), strict=True
    ):
        _stack(axes, course.steps, shares, text.SHARE_OF[what])
    for axes, p, name, colour in zip(
        grid[1],
        (course.lesion_p, course.background_p),
        text.AXES_HIGHEST,
        (FOUND, ACCENT),
        strict=True,
    ):
        axes.plot(course.steps, p, color=colour, linewidth=1.6)
        _head(axes, name)
        axes.set_xlabel(text.AXIS_STEP)
        _frame(axes)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    onto.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)


def _stack(
    axes: "Axes", steps: NDArray[np.float64], shares: NDArray[np.float64], name: str
) -> None:
    known = np.isfinite(shares).all(axis=0)
    axes.stackplot(
        steps[known],
        shares[:, known],
        labels=text.PART_NAMES,
        colors=PART_COLOURS,
        edgecolor="white",
        linewidth=0.5,
    )
    _head(axes, name)
    _frame(axes)


def draw_curves(onto: "FigureBase", curves: dict[str, NDArray[np.float64]]) -> None:
    """One panel a class: share of the loss against share of the voxels, easiest first."""
    names = [name for name in ("lesion", "background") if name in curves]
    for axes, name in zip(np.atleast_1d(onto.subplots(1, max(len(names), 1))), names, strict=False):
        colour = FOUND if name == "lesion" else ACCENT
        axes.plot(100 * curves["quantile"], curves[name], color=colour, linewidth=2)
        axes.plot([0, 100], [0, 1], ":", color=INK, linewidth=1)
        axes.set_xlabel(text.AXIS_VOXELS[name])
        axes.set_ylabel(text.AXIS_THEIR_LOSS)
        axes.set_xlim(0, 100)
        _frame(axes)


def _head(axes: "Axes", words: str) -> None:
    """The name of a panel above it: beside it, neighbours would run into each other."""
    axes.set_title(words, loc="left", fontsize=9.5)


def _frame(axes: "Axes") -> None:
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _optional(path: Path, read: Callable[[Path], T]) -> T | None:
    try:
        return read(path)
    except ReadError:  # a run without it
        return None


def _alt_course(course: Course) -> str:
    """The chart of shares in words: those of the gradient at the end."""
    known = course.gradient[:, np.isfinite(course.gradient).all(axis=0)]
    return text.alt_course(known[:, -1].tolist() if known.size else [])


def _alt_curves(curves: dict[str, NDArray[np.float64]]) -> str:
    """The cumulative curves in words: what the hardest tenth holds."""
    names = [name for name in curves if name != "quantile"]
    tenths = {name: float(1 - curves[name][-11]) for name in names}
    return text.alt_cumulative(tenths)
