"""What a search for α and γ found, and the page that shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lesionseg.io.atomic import write_text

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
    from lesionseg.report.figures.search_surface import draw_surface
    from lesionseg.report.page import render

    caption = (
        f"Colour: {search.objective}, averaged over nearby trials that were trained to the end; "
        "grey where none is near. The table below holds every number."
    )
    chart = Chart(partial(draw_surface, search=search), HEIGHT, caption, "Heat map over α and γ.")
    header, *rows = table(search)
    page = render("tuning.html.j2", search=search, chart=chart, header=header, rows=rows)
    write_text(path, page)
    return path
