"""What a search for α and γ comes to: sentences, tune.json and tune.html."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.errors import require
from lesionseg.evaluation.statistics.bootstrap import wilson_interval
from lesionseg.io.atomic import read_json, write_json
from lesionseg.pipeline.tune.search import TuneSettings
from lesionseg.report.tuning import (
    TuningSearch,
    TuningTrial,
    steadiest,
    write_tuning_page,
)

SCHEMA_VERSION = 1
TITLE = "Search for α and γ"


@dataclass(frozen=True)
class Circumstances:
    """What a search was made with: the validation cases, a trial's budget, the pair to beat.

    `first` is the pair taken without a search; None when the loss has no single one.
    `match_rule`: what the trials are judged by.
    """

    settings: TuneSettings
    seed: int
    budget: str
    n_cases: int
    n_lesions: int
    first: tuple[float, float] | None
    origin: Mapping[str, Any]
    match_rule: str = ""


def write_results(run: Path, trials: tuple[TuningTrial, ...], about: Circumstances) -> TuningSearch:
    """Write tune.json and tune.html into `run`, each whole, and return what they show."""
    search = describe(trials, about)
    write_json(run / "tune.json", _document(search, about))
    write_tuning_page(search, run / "tune.html")
    return search


def refuse_other_rule(run: Path, match_rule: str) -> None:
    """Raise `ConfigError` where earlier trials in `run` were judged by another match rule."""
    path = run / "tune.json"
    before = read_json(path).get("match_rule") if path.is_file() else match_rule
    require(
        before == match_rule,
        "The trials so far were judged by another match rule.",
        where=path,
        seen=before or "none recorded: a version before match rules had numbers",
        expected=match_rule,
        remedy="name another run_dir=: values of two rules do not compare.",
    )


def describe(trials: tuple[TuningTrial, ...], about: Circumstances) -> TuningSearch:
    """The trials with their rectangle and what can be said of them."""
    (a_low, a_high), (g_low, g_high) = about.settings.alpha, about.settings.gamma
    rate = about.settings.fp_per_case
    search = TuningSearch(
        alpha=(float(a_low), float(a_high)),
        gamma=(float(g_low), float(g_high)),
        trials=trials,
        objective=f"lesion recall at {rate:g} false positive{'s' if rate != 1 else ''} per case",
        title=TITLE,
    )
    return replace(search, notes=tuple(_notes(search, about)))


def _notes(search: TuningSearch, about: Circumstances) -> list[str]:
    states = [t.state for t in search.trials]
    running = f", {states.count('running')} still under way" if "running" in states else ""
    notes = [
        f"{states.count('complete')} trials trained to the end, {states.count('pruned')} stopped "
        f"early{running}. A trial is {about.budget}; all begin with the same weights (seed "
        f"{about.seed}) and see the same tiles. The value is recall plus a hundredth of the "
        "average precision, which decides between pairs that find the same lesions.",
    ]
    best = search.best
    if best is None or not best.value:
        return [*notes, "No trial has found a lesion: give a trial more time."]
    notes.append(f"Best: {_in_words(best, about)}{_against_first(search, about)}")
    steady = steadiest(search)
    if steady is not None and steady != best:
        notes.append(
            f"Best together with its neighbours, and the one to take: {_in_words(steady, about)}."
        )
    notes.append(
        f"Judged on {about.n_cases} validation cases with {about.n_lesions} lesions: one lesion is "
        f"{100 / about.n_lesions:.1f} points of recall. Pairs whose intervals overlap cannot be "
        "told apart, and the best of many noisy trials looks better than it is. These are "
        "development data, so none of these numbers is a result."
    )
    return notes


def _in_words(trial: TuningTrial, about: Circumstances) -> str:
    recall = trial.scores.get("recall", 0.0)
    low, high = wilson_interval(recall * about.n_lesions, about.n_lesions)
    return (
        f"α = {trial.alpha:.3f}, γ = {trial.gamma:.2f}, recall {recall:.3f} "
        f"(95 % interval {low:.2f} to {high:.2f}, taking lesions as independent)"
    )


def _against_first(search: TuningSearch, about: Circumstances) -> str:
    mine = [t for t in search.trials if about.first == (t.alpha, t.gamma) and "recall" in t.scores]
    if not mine or mine[0] == search.best:
        return "; it is the pair that is taken without a search." if mine else "."
    return f". The pair that is taken without a search: {_in_words(mine[0], about)}."


def _document(search: TuningSearch, about: Circumstances) -> dict[str, Any]:
    best, steady = search.best, steadiest(search)
    return {
        "schema_version": SCHEMA_VERSION,
        "objective": f"{search.objective} + 0.01 · average precision",
        "evaluated_on": "validation",
        "match_rule": about.match_rule,
        "n_cases": about.n_cases,
        "n_lesions": about.n_lesions,
        "budget": about.budget,
        "seed": about.seed,
        "search": asdict(about.settings),
        "first": None if about.first is None else list(about.first),
        "best": None if best is None else _entry(best),
        "steadiest": None if steady is None else _entry(steady),
        "trials": [_entry(trial) for trial in search.trials],
        "provenance": dict(about.origin),
    }


def _entry(trial: TuningTrial) -> dict[str, Any]:
    return {**asdict(trial), "scores": dict(trial.scores)}
