"""What a search for α and γ found: its heat map over the rectangle, and the page that shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.io.atomic import write_text
from lesionseg.report.figures.chart_drawing import ACCENT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

HEIGHT = 4.8  # inches
State = Literal["complete", "pruned", "running", "failed"]


@dataclass(frozen=True)
class TuningTrial:
    """One pair of α and γ and how training with it went.

    `value` is what is searched for, None where there is none; a pruned trial's is the one at which
    it was stopped. `scores`: the numbers behind it by name. `note`: what was odd.
    """

    number: int
    alpha: float
    gamma: float
    state: State
    value: float | None
    scores: Mapping[str, float]
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class TuningSearch:
    """The rectangle that was searched, its trials, and what to say of them.

    `objective` names the trials' value. `notes` are paragraphs in plain words.
    """

    alpha: tuple[float, float]
    gamma: tuple[float, float]
    trials: tuple[TuningTrial, ...]
    objective: str
    title: str
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> TuningTrial | None:
        """The trial trained to its end that has the highest value, the earliest of equals."""
        return max(
            (t for t in self.trials if t.state == "complete" and t.value is not None),
            key=lambda t: (t.value or 0.0, -t.number),
            default=None,
        )


def table(search: TuningSearch) -> list[list[str]]:
    """A header and one row per trial, in the order of trials; what there is none of is a dash."""
    names = list(dict.fromkeys(name for t in search.trials for name in t.scores))
    header = ["trial", "α", "γ", *(n.replace("_", " ") for n in names), "state", "seconds", "note"]
    return [header, *(_row(trial, names) for trial in search.trials)]


def _row(trial: TuningTrial, names: list[str]) -> list[str]:
    scores = [f"{trial.scores[n]:.3f}" if n in trial.scores else "–" for n in names]
    seconds = "–" if trial.seconds is None else f"{trial.seconds:.0f}"
    pair = [f"{trial.alpha:.3f}", f"{trial.gamma:.2f}"]
    return [str(trial.number), *pair, *scores, trial.state, seconds, trial.note]


def write_tuning_page(search: TuningSearch, path: Path) -> Path:
    """Write the sentences, the heat map and the table as one page that needs no network."""
    from lesionseg.report.figures.chart_list import Chart
    from lesionseg.report.rendering import render

    caption = (
        f"Colour: {search.objective}, averaged over nearby trials that were trained to the end; "
        "grey where none is near. The table below holds every number."
    )
    chart = Chart(partial(draw_surface, search=search), HEIGHT, caption, "Heat map over α and γ.")
    header, *rows = table(search)
    page = render("tuning.html.j2", search=search, chart=chart, header=header, rows=rows)
    write_text(path, page)
    return path


BANDWIDTH = 0.12  # of each axis' length: how far a trial speaks for its surroundings
NEAR = 0.15  # summed weight of the trials below which nothing is drawn
POINTS = 121  # of the heat map along each axis
COLOURS = "viridis"  # even in lightness, so that it survives grey-scale print


def smoothed_surface(
    search: TuningSearch, alphas: NDArray[np.float64], gammas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of the values of nearby trials `[gammas, alphas]`; NaN where no trial is near.

    Weights are Gaussian in the distance as a share of each axis' length (Nadaraya 1964). A mean
    and no interpolation: trials are noisy, and a surface through all of them would show the noise
    as hills. Pruned trials are left out: a value from half-way does not compare.
    """
    points = np.stack(np.meshgrid(alphas, gammas), axis=-1)
    weights, values = _weights(search, points), _values(search)
    total = weights.sum(-1)
    mean = (weights * values).sum(-1) / np.maximum(total, np.finfo(np.float64).tiny)
    return np.where(total >= NEAR, mean, np.nan)


def steadiest(search: TuningSearch) -> TuningTrial | None:
    """The finished trial that is best together with its neighbours: noise moves it less.

    Each trial is given the weighted mean of the trials around it and of one more with the mean of
    all, so that a trial without neighbours cannot win by luck. None without a finished trial.
    """
    finished = _finished(search)
    if not finished:
        return None
    weights = _weights(search, np.array([[t.alpha, t.gamma] for t in finished]))
    values = _values(search)
    means = ((weights * values).sum(-1) + values.mean()) / (weights.sum(-1) + 1)
    return finished[int(means.argmax())]


def _weights(search: TuningSearch, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights `[..., trials]` of the finished trials at points `[..., 2]` of α and γ."""
    at = np.array([[t.alpha, t.gamma] for t in _finished(search)]).reshape(-1, 2)
    span = np.array([np.ptp(search.alpha), np.ptp(search.gamma)]) * BANDWIDTH
    return np.asarray(np.exp(-(((points[..., None, :] - at) / span) ** 2).sum(-1) / 2))


def _values(search: TuningSearch) -> NDArray[np.float64]:
    return np.array([t.value for t in _finished(search)], dtype=np.float64)


def draw_surface(onto: "FigureBase", search: TuningSearch) -> None:
    """The smoothed surface as colour, every finished trial on it in its own, the best ringed."""
    import matplotlib as mpl

    finished = _finished(search)
    values = [t.value or 0.0 for t in finished] or [0.0, 1.0]
    scale = mpl.colors.Normalize(min(values), max(*values, min(values) + 1e-6))
    alphas, gammas = (np.linspace(*side, POINTS) for side in (search.alpha, search.gamma))
    axes = onto.subplots()
    axes.set_facecolor("#eceff1")
    axes.pcolormesh(
        alphas,
        gammas,
        smoothed_surface(search, alphas, gammas),
        cmap=COLOURS,
        norm=scale,
        shading="nearest",
        rasterized=True,
    )
    _draw_trials(axes, search, scale)
    axes.set(xlabel="α, the weight of lesions", ylabel="γ, the focusing")
    axes.set(xlim=search.alpha, ylim=search.gamma)
    onto.colorbar(mpl.cm.ScalarMappable(scale, COLOURS), ax=axes, label=search.objective)


def _draw_trials(axes: "Axes", search: TuningSearch, scale: Any) -> None:
    finished, pruned = _finished(search), [t for t in search.trials if t.state == "pruned"]
    mark: dict[str, Any] = {"linestyle": "none", "clip_on": False}
    axes.scatter(
        [t.alpha for t in finished],
        [t.gamma for t in finished],
        c=[t.value or 0.0 for t in finished],
        cmap=COLOURS,
        norm=scale,
        s=70,
        edgecolors="white",
        linewidths=1.2,
        label="trained to the end",
        clip_on=False,
        zorder=3,
    )
    if pruned:
        pairs = [t.alpha for t in pruned], [t.gamma for t in pruned]
        axes.plot(*pairs, "x", color=INK, label="stopped early", **mark)
    singled = ((search.best, "o", "best"), (steadiest(search), "s", "best with neighbours"))
    for trial, shape, label in singled:
        if trial is not None:
            look = {"ms": 15, "mfc": "none", "mec": ACCENT, "mew": 2.0, **mark}
            axes.plot([trial.alpha], [trial.gamma], shape, label=label, **look)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        columnspacing=1.2,
        markerscale=0.6,
    )


def _finished(search: TuningSearch) -> list[TuningTrial]:
    return [t for t in search.trials if t.state == "complete" and t.value is not None]
