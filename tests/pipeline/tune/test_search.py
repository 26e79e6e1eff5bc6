"""The search itself, with objectives that cost nothing."""

import errno
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.errors import ConfigError, OutputError
from lesionseg.pipeline.tune.search import (
    INTERRUPTIONS,
    JOURNAL,
    OpenTrial,
    Search,
    TuneSettings,
)

FIRST = (0.25, 2.0)


def hill_top(trial: OpenTrial) -> float:
    return 1 - (trial.alpha - 0.3) ** 2 - (trial.gamma / 5 - 0.4) ** 2


def hill(trial: OpenTrial) -> float:
    """Highest at α = 0.3, γ = 2; told in three parts, as validations would."""
    value = hill_top(trial)
    for part in (1, 2, 3):
        trial.report(value * part / 3, {"recall": value})
    return value


def search(folder: Path, n_trials: int, seed: int = 0, **settings: object) -> Search:
    return Search(folder, TuneSettings(n_trials=n_trials, **settings), seed=seed, first=FIRST)  # type: ignore[arg-type]


def test_the_known_pair_comes_first_and_the_search_finds_the_hill(tmp_path: Path) -> None:
    found = search(tmp_path, 20)
    found.run(hill)
    trials = found.trials()
    assert (trials[0].alpha, trials[0].gamma) == FIRST
    assert [t.number for t in trials] == list(range(20))
    best = max(trials, key=lambda t: t.value or 0)
    assert abs(best.alpha - 0.3) < 0.15
    assert abs(best.gamma - 2) < 0.8


def test_both_are_searched_over_their_whole_ranges(tmp_path: Path) -> None:
    found = search(tmp_path, 8, alpha=[0.4, 0.6], gamma=[1.0, 3.0])  # FIRST is outside
    found.run(hill)
    alphas = sorted(t.alpha for t in found.trials())
    gammas = sorted(t.gamma for t in found.trials())
    assert 0.4 <= alphas[0] < 0.43 < 0.57 < alphas[-1] <= 0.6
    assert 1.0 <= gammas[0] < 1.25 < 2.75 < gammas[-1] <= 3.0


def test_a_search_goes_on_where_it_stopped_and_proposes_the_same(tmp_path: Path) -> None:
    whole = search(tmp_path / "a", 12)
    whole.run(hill)
    for n_trials in (5, 12):
        parts = search(tmp_path / "b", n_trials)
        parts.run(hill)
    assert [(t.alpha, t.gamma) for t in parts.trials()] == [
        (t.alpha, t.gamma) for t in whole.trials()
    ]
    parts.run(hill)
    assert len(parts.trials()) == 12


def test_hopeless_trials_are_stopped_at_the_second_validation(tmp_path: Path) -> None:
    reports: dict[int, int] = {}

    def objective(trial: OpenTrial) -> float:
        value = 1.0 - trial.number / 10
        for done in (1, 2, 3):
            reports[trial.number] = done
            trial.report(value, {})
        return value

    found = search(tmp_path, 6)
    found.run(objective)
    assert [t.state for t in found.trials()] == ["complete"] * 4 + ["pruned"] * 2
    assert reports == {0: 3, 1: 3, 2: 3, 3: 3, 4: 2, 5: 2}
    without = search(tmp_path / "no", 6, prune=False)
    without.run(objective)
    assert {t.state for t in without.trials()} == {"complete"}


def test_what_an_objective_raises_frees_its_trial(tmp_path: Path) -> None:
    def broken(trial: OpenTrial) -> float:
        raise ValueError

    found = search(tmp_path, 3)
    with pytest.raises(ValueError):  # noqa: PT011
        found.run(broken)
    assert found.trials() == ()
    found.run(hill)
    assert len(found.trials()) == 3


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_an_interrupted_search_ends_like_an_undisturbed_one(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    def disturbed(trial: OpenTrial) -> float:
        trial.report(0.0 if trial.number in seen else hill_top(trial) / 3, {})
        if trial.number not in seen:
            seen.append(trial.number)
            raise interruption("")
        trial.n_reported = 0  # it began again
        return hill(trial)

    whole, parts, seen = search(tmp_path / "a", 10), search(tmp_path / "b", 10), []
    whole.run(hill)
    while len(seen) < 10:
        with pytest.raises(interruption):
            parts.run(disturbed)
    parts.run(disturbed)
    assert seen == list(range(10))
    assert [replace(t, seconds=0) for t in parts.trials()] == [
        replace(t, seconds=0) for t in whole.trials()
    ]


def test_a_trial_whose_process_is_gone_goes_on_and_one_elsewhere_is_left(tmp_path: Path) -> None:
    found = search(tmp_path, 4)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    whose = ((socket.gethostname(), int(gone.stdout)), ("elsewhere", os.getpid()))
    for trial, (host, process) in zip([found._next(), found._next()], whose, strict=True):
        trial.set_user_attr("host", host)
        trial.set_user_attr("process", process)
    again = search(tmp_path, 4)
    again.run(hill)
    states = [t.state for t in again.trials()]
    assert states == ["complete", "running", "complete", "complete"]


def test_a_full_disk_is_said_and_the_half_line_it_leaves_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(tmp_path, 2)
    found.run(hill)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OutputError, match=JOURNAL):
            search(tmp_path, 3).run(hill)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_co')
    again = search(tmp_path, 4)
    again.run(hill)
    assert [t.state for t in again.trials()] == ["complete"] * 4


WORKER = """
import os, sys, time
from pathlib import Path
from lesionseg.pipeline.tune.search import Search, TuneSettings
search = Search(Path(sys.argv[1]), TuneSettings(n_trials=11), seed=0, first=(0.25, 2.0))
def objective(trial):
    time.sleep(0.15)
    return trial.alpha
Path(sys.argv[1], f"{os.getpid()}.ready").touch()
while len(list(Path(sys.argv[1]).glob("*.ready"))) < 2:
    time.sleep(0.01)
search.run(objective, lambda trial: print(trial.number))
"""


def test_processes_share_a_search_and_count_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    mine = [sorted(map(int, worker.communicate()[0].split())) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    trials = search(tmp_path, 11).trials()
    assert sorted(mine[0] + mine[1]) == [t.number for t in trials]
    assert len(trials) == 11
    assert len({(t.alpha, t.gamma) for t in trials}) == 11
    assert min(map(len, mine)) > 0


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"alpha": [0.5, 0.5]}, "tune.alpha"),
        ({"alpha": [0.5, 1.5]}, "tune.alpha"),
        ({"gamma": [-1.0, 2.0]}, "tune.gamma"),
        ({"gamma": [0.0, float("inf")]}, "tune.gamma"),
        ({"gamma": [1.0]}, "tune.gamma"),
        ({"n_trials": 0}, "tune.n_trials"),
        ({"fp_per_case": 0.0}, "tune.fp_per_case"),
    ],
)
def test_settings_that_search_nothing_are_refused(settings: dict, where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        TuneSettings(**settings)


def test_without_optuna_the_way_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match='pip install "optuna>=4"'):
        search(tmp_path, 1)
