"""What a search for α and γ found, on a page: the pairs coloured by recall, and a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lesionseg.io.files import write_text
from lesionseg.reporting.charts import ACCENT, OTHER, Chart, new_figure
from lesionseg.reporting.rendering import render

State = Literal["complete", "pruned", "unfinished", "failed"]


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
    def finished(self) -> list[TuningTrial]:
        """The trials trained to their end."""
        return [t for t in self.trials if t.state == "complete" and t.value is not None]

    @property
    def best(self) -> TuningTrial | None:
        """The finished trial that has the highest value, the earliest of equals."""
        return max(self.finished, key=lambda t: (t.value or 0.0, -t.number), default=None)


def table(search: TuningSearch) -> list[list[str]]:
    """Return a header and one row per trial, in the order of trials; a dash for a missing value."""
    names = list(dict.fromkeys(name for t in search.trials for name in t.scores))
    header = ["trial", "α", "γ", *(n.replace("_", " ") for n in names), "state", "seconds"]
    rows, noted = list[list[str]](), any(trial.note for trial in search.trials)
    for trial in search.trials:
        scores = [f"{trial.scores[n]:.3f}" if n in trial.scores else "–" for n in names]
        seconds = "–" if trial.seconds is None else f"{trial.seconds:.0f}"
        pair = [f"{trial.alpha:.3f}", f"{trial.gamma:.2f}"]
        note = [trial.note] if noted else []
        rows.append([str(trial.number), *pair, *scores, trial.state, seconds, *note])
    return [[*header, "note"] if noted else header, *rows]


def write_tuning_page(search: TuningSearch, path: Path) -> Path:
    """Write the sentences, the pairs and the table as one page that needs no network."""
    figure, axes = new_figure(6, 4.4)
    done = np.array([(t.alpha, t.gamma, t.value) for t in search.finished], float).reshape(-1, 3)
    dots = axes.scatter(
        done[:, 0], done[:, 1], c=done[:, 2], s=90, vmin=0, vmax=1, clip_on=False, zorder=3
    )
    figure.colorbar(dots, label=search.objective)
    for alpha, gamma, value in done:
        axes.annotate(f"{value:.2f}", (alpha, gamma), (8, 4), textcoords="offset points", size=8)
    stopped = [(t.alpha, t.gamma) for t in search.trials if t.state == "pruned"]
    axes.plot(*np.array(stopped).reshape(-1, 2).T, "x", color=OTHER, clip_on=False)
    axes.set(xlabel="α", ylabel="γ", xlim=search.alpha, ylim=search.gamma)
    caption = "Each dot is a training to its end; colour: what is searched for."
    if stopped:
        caption += " Crosses: stopped early."
    headline = "No trial has found a lesion yet."
    if (steady := steadiest(search)) is not None and steady.value:
        at = ([steady.alpha], [steady.gamma])
        axes.plot(*at, "o", mfc="none", mec=ACCENT, mew=2, markersize=15, clip_on=False)
        caption += " Ring: the pair to take."
        headline = f"Take α = {steady.alpha:.3f} and γ = {steady.gamma:.2f}: "
        headline += f"{steady.scores.get('recall', 0.0):.2f} {search.objective}."
    header, *rows = table(search)
    html = render(
        "tuning.html.j2",
        search=search,
        headline=headline,
        chart_of_pairs=Chart("The pairs", caption, figure),
        rows=[dict(zip(header, row, strict=True)) for row in rows],
    )
    write_text(path, html)
    return path


BANDWIDTH = 0.12  # of each axis' length: how far a trial speaks for its surroundings


def steadiest(search: TuningSearch) -> TuningTrial | None:
    """Return the finished trial that is best together with its neighbours: noise moves it less.

    Each trial is given the weighted mean of the trials around it and of one more with the mean of
    all, so that a trial without neighbours cannot win by luck. None without a finished trial.
    """
    finished = search.finished
    if not finished:
        return None
    at = np.array([[t.alpha, t.gamma] for t in finished])
    span = np.array([np.ptp(axis) or 1.0 for axis in (search.alpha, search.gamma)]) * BANDWIDTH
    weights = np.exp(-(((at[:, None] - at) / span) ** 2).sum(-1) / 2)
    values = np.array([t.value for t in finished], dtype=float)
    means = (weights @ values + values.mean()) / (weights.sum(-1) + 1)
    return finished[int(means.argmax())]
