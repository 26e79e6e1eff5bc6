"""Page and table of a search for α and γ: chart of trials, smoothed best trial."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from lesionseg.reporting import ACCENT, OTHER, Chart, new_figure, write_page

TrialState = Literal["complete", "pruned", "unfinished", "failed"]
BANDWIDTH = 0.12  # standard deviation of the smoothing kernel, relative to the range of each axis


@dataclass(frozen=True)
class TuningTrial:
    """One training with a pair of α and γ.

    Attributes:
        number: Number of the trial.
        alpha: Α.
        gamma: Γ.
        state: The end of the training. A pruned trial was stopped early.
        value: The value to maximise, None if it is unknown. For a pruned trial, its last value.
        scores: Further numbers by name.
        seconds: Duration of the training.
        note: A remark, empty if there is none.
    """

    number: int
    alpha: float
    gamma: float
    state: TrialState
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
        objective: The name of the recall that the page shows.
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
        """The trials whose training was completed and that have a value."""
        return [t for t in self.trials if t.state == "complete" and t.value is not None]

    @property
    def pruned(self) -> list[TuningTrial]:
        """The trials that were stopped early, with the value of their last validation.

        Trials without a value are left out.
        """
        return [t for t in self.trials if t.state == "pruned" and t.value is not None]

    @property
    def best(self) -> TuningTrial | None:
        """The finished trial with the highest value, and the lowest number among equal values.

        None if no trial is finished.
        """
        by_number = sorted(self.finished, key=lambda trial: trial.number)
        # `max` returns the first of equal values. Every finished trial has a value; `or 0.0` only
        # satisfies the type checker.
        return max(by_number, key=lambda trial: trial.value or 0.0, default=None)


def trial_table(search: TuningSearch) -> list[list[str]]:
    """Return the table of trials for the page and the terminal: a header, and a row per trial.

    The columns are trial, α, γ, one per score, state, seconds, and note if any trial has one. A
    missing number is a dash.
    """
    names: dict[str, None] = {}  # of the scores of all trials, in the order of their appearance
    for trial in search.trials:
        names.update(dict.fromkeys(trial.scores))
    has_notes = any(trial.note for trial in search.trials)
    header = ["trial", "α", "γ", *(name.replace("_", " ") for name in names), "state", "seconds"]
    if has_notes:
        header.append("note")
    table = [header]
    for trial in search.trials:
        row = [str(trial.number), f"{trial.alpha:.3f}", f"{trial.gamma:.2f}"]
        row += [f"{trial.scores[n]:.3f}" if n in trial.scores else "–" for n in names]
        row += [trial.state, "–" if trial.seconds is None else f"{trial.seconds:.0f}"]
        if has_notes:
            row.append(trial.note)
        table.append(row)
    return table


def write_tuning_page(search: TuningSearch, path: Path) -> Path:
    """Write the page of the search to `path` atomically, and return `path`.

    The chart shows each trained pair of α and γ. A ring marks the recommended trial
    (`best_smoothed_trial`), if there is one.
    """
    figure, axes = new_figure(width=6, height=4.4)
    figure.colorbar(_draw_finished(axes, search), label=search.objective)
    stopped = [trial for trial in search.trials if trial.state == "pruned"]
    alphas = [trial.alpha for trial in stopped]
    axes.plot(alphas, [trial.gamma for trial in stopped], "x", color=OTHER, clip_on=False)
    axes.set(xlabel="α", ylabel="γ", xlim=search.alpha, ylim=search.gamma)
    recommended = best_smoothed_trial(search)
    if recommended is not None:
        axes.plot(  # a ring around its dot
            [recommended.alpha],
            [recommended.gamma],
            "o",
            mfc="none",
            mec=ACCENT,
            mew=2,
            markersize=15,
            clip_on=False,
        )
    caption = f"Each dot is a completed training, coloured by its {search.objective}."
    if stopped:
        caption += " Crosses: trainings that were stopped early."
    if recommended is not None:
        caption += " Ring: the recommended α and γ."
    header, *rows = trial_table(search)
    write_page(
        path,
        "tuning.html.j2",
        search=search,
        recommended=recommended,
        recall=None if recommended is None else _recall(recommended),
        chart_of_pairs=Chart("Trained pairs of α and γ", caption, figure),
        rows=[dict(zip(header, row, strict=True)) for row in rows],
    )
    return path


def _draw_finished(axes: Axes, search: TuningSearch) -> PathCollection:
    """Draw a dot for each finished training at its α and γ, with its recall as colour and as text.

    Return the dots, which the colour bar needs.
    """
    finished = search.finished
    dots = axes.scatter(
        [trial.alpha for trial in finished],
        [trial.gamma for trial in finished],
        c=np.array([_recall(trial) for trial in finished], float),
        s=90,  # area in square points
        vmin=0,
        vmax=1,
        clip_on=False,
        zorder=3,
    )
    for trial in finished:
        axes.annotate(
            f"{_recall(trial):.2f}",
            xy=(trial.alpha, trial.gamma),
            xytext=(8, 4),  # to the right of the dot and above it
            textcoords="offset points",
            size=8,
        )
    return dots


def _recall(trial: TuningTrial) -> float:
    """Return the recall of a trial, for the chart; 0 if it is unknown.

    The value of a trial is not used, because it also contains the average precision.
    """
    return trial.scores.get("recall", 0.0)


def best_smoothed_trial(search: TuningSearch) -> TuningTrial | None:
    """Return the finished trial with the highest smoothed value, the recommended one.

    A single value is noisy. The smoothed value of a trial is the weighted mean of its value, the
    values of its neighbours, and the mean of all trials. Neighbours weigh less the farther their α
    and γ are. The mean of all trials has the weight of one trial, so that a trial without
    neighbours cannot win by luck.

    Pruned trials count as neighbours with their last value, because otherwise a pair whose poor
    neighbours were all pruned would count as one without neighbours. Pruned trials and trials of
    value 0 are never returned. Return None if there is no other trial.
    """
    successful = [trial for trial in search.finished if trial.value]
    if not successful:
        return None
    counted = search.finished + search.pruned
    candidates = np.array([[t.alpha, t.gamma] for t in successful])
    points = np.array([[t.alpha, t.gamma] for t in counted])
    # a setting with a fixed value has the range 0, which must not become a divisor
    ranges = np.array([np.ptp(axis) or 1.0 for axis in (search.alpha, search.gamma)])
    distances = (candidates[:, None] - points) / (BANDWIDTH * ranges)  # [candidates, points, 2]
    weights = np.exp(-(distances**2).sum(-1) / 2)  # a Gaussian kernel, 1 for the trial itself
    values = np.array([t.value for t in counted], float)
    # the mean of all trials has the weight 1
    smoothed = (weights @ values + values.mean()) / (weights.sum(-1) + 1)
    return successful[int(smoothed.argmax())]
