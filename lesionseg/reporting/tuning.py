"""The page of a search for α and γ: a chart and a table of the trials."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lesionseg.io.files import write_text
from lesionseg.reporting.charts import ACCENT, OTHER, Chart, new_figure
from lesionseg.reporting.rendering import render

State = Literal["complete", "pruned", "unfinished", "failed"]
BANDWIDTH = 0.12  # standard deviation of the smoothing kernel, relative to the range of each axis


@dataclass(frozen=True)
class TuningTrial:
    """One training with a pair of α and γ.

    Attributes:
        number: Number of the trial.
        alpha: α.
        gamma: γ.
        state: The end of the training. A pruned trial was stopped early.
        value: The value to maximise, None if it is unknown. For a pruned trial, its last value.
        scores: Further numbers by name.
        seconds: Duration of the training.
        note: A remark, empty if there is none.
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
    """A search for α and γ.

    Attributes:
        alpha: The range of α.
        gamma: The range of γ.
        trials: The trials in their order.
        objective: The name of the value to maximise.
        title: The title of the page.
        notes: Paragraphs about the result.
    """

    alpha: tuple[float, float]
    gamma: tuple[float, float]
    trials: tuple[TuningTrial, ...]
    objective: str
    title: str
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> list[TuningTrial]:
        """The trials whose training was completed."""
        return [t for t in self.trials if t.state == "complete" and t.value is not None]

    @property
    def best(self) -> TuningTrial | None:
        """The finished trial with the highest value, or the earliest of several."""
        return max(self.finished, key=lambda t: (t.value or 0.0, -t.number), default=None)


def trial_table(search: TuningSearch) -> list[list[str]]:
    """Return a header and one row per trial in order. A missing value is a dash."""
    names = list(dict.fromkeys(name for t in search.trials for name in t.scores))
    header = ["trial", "α", "γ", *(n.replace("_", " ") for n in names), "state", "seconds"]
    rows = list[list[str]]()
    has_notes = any(trial.note for trial in search.trials)
    for trial in search.trials:
        scores = [f"{trial.scores[n]:.3f}" if n in trial.scores else "–" for n in names]
        seconds = "–" if trial.seconds is None else f"{trial.seconds:.0f}"
        pair = [f"{trial.alpha:.3f}", f"{trial.gamma:.2f}"]
        row = [str(trial.number), *pair, *scores, trial.state, seconds]
        rows.append([*row, trial.note] if has_notes else row)
    return [[*header, "note"] if has_notes else header, *rows]


def write_tuning_page(search: TuningSearch, path: Path) -> Path:
    """Write the page of the search. It needs no network. Return its path."""
    figure, axes = new_figure(6, 4.4)
    done = np.array([(t.alpha, t.gamma, t.value) for t in search.finished], float).reshape(-1, 3)
    dots = axes.scatter(
        done[:, 0], done[:, 1], c=done[:, 2], s=90, vmin=0, vmax=1, clip_on=False, zorder=3
    )
    figure.colorbar(dots, label=search.objective)
    for alpha, gamma, value in done:
        axes.annotate(f"{value:.2f}", (alpha, gamma), (8, 4), textcoords="offset points", size=8)
    stopped = [(t.alpha, t.gamma) for t in search.trials if t.state == "pruned"]
    alphas = [alpha for alpha, _ in stopped]
    gammas = [gamma for _, gamma in stopped]
    axes.plot(alphas, gammas, "x", color=OTHER, clip_on=False)
    axes.set(xlabel="α", ylabel="γ", xlim=search.alpha, ylim=search.gamma)
    caption = f"Each dot is a completed training, coloured by its {search.objective}."
    if stopped:
        caption += " Crosses: trainings that were stopped early."
    headline = "No trial has found a lesion yet."
    steadiest = find_steadiest(search)
    if steadiest is not None and steadiest.value:
        axes.plot(
            [steadiest.alpha],
            [steadiest.gamma],
            "o",
            mfc="none",
            mec=ACCENT,
            mew=2,
            markersize=15,
            clip_on=False,
        )
        caption += " Ring: the recommended α and γ."
        headline = f"Use α = {steadiest.alpha:.3f} and γ = {steadiest.gamma:.2f}: "
        headline += f"{steadiest.scores.get('recall', 0.0):.2f} {search.objective}."
    header, *rows = trial_table(search)
    html = render(
        "tuning.html.j2",
        search=search,
        headline=headline,
        chart_of_pairs=Chart("Trained pairs of α and γ", caption, figure),
        rows=[dict(zip(header, row, strict=True)) for row in rows],
    )
    write_text(path, html)
    return path


def find_steadiest(search: TuningSearch) -> TuningTrial | None:
    """Return the finished trial with the highest smoothed value, which noise affects less.

    The smoothed value of a trial is the weighted mean of its own value, those of its neighbours,
    and the mean of all trials. The latter has the weight of one trial, so that a trial without
    neighbours cannot win by luck. Return None if no trial is finished.
    """
    finished = search.finished
    if not finished:
        return None
    points = np.array([[t.alpha, t.gamma] for t in finished])
    ranges = np.array([np.ptp(axis) or 1.0 for axis in (search.alpha, search.gamma)])
    distances = (points[:, None] - points) / (BANDWIDTH * ranges)
    weights = np.exp(-(distances**2).sum(-1) / 2)
    values = np.array([t.value for t in finished], dtype=float)
    means = (weights @ values + values.mean()) / (weights.sum(-1) + 1)
    return finished[int(means.argmax())]
