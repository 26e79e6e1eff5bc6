"""Tasks on a small Ray cluster of this machine: killed workers, errors, and the search on it."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from lesionseg.pipeline.tune.search import OpenTrial, Search, TuneSettings

from lesionseg.core import CaseFiles
from lesionseg.errors import DatasetError, LesionsegError, TrainingError
from lesionseg.pipeline.run.cluster import run_tasks, spread

ray = pytest.importorskip("ray")


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def die_once(folder: Path, name: str) -> str:
    """Goes on from what a killed worker has left, as a training does."""
    left = folder / name
    if not left.exists():
        left.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{left.read_text()} and half of {name}"


def refuse() -> str:
    raise DatasetError("There is no case.", where="somewhere")


def die() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_tasks_outlive_their_workers_and_errors_come_back(cluster, tmp_path):
    once = [partial(die_once, tmp_path, name) for name in ("a", "b")]
    assert run_tasks(once) == ["half and half of a", "half and half of b"]
    ends = run_tasks([refuse, die])
    assert isinstance(ends[0], DatasetError)
    assert "somewhere" in str(ends[0])
    assert isinstance(ends[1], TrainingError)


def value_of(killed: Path, trial: OpenTrial) -> float:
    if trial.number == 1 and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return trial.alpha


def take_part(folder: Path, settings: TuneSettings) -> None:
    Search(folder, settings, seed=0).run(partial(value_of, folder / "killed"))


def test_a_search_is_shared_by_workers_and_a_killed_one_is_replaced(cluster, tmp_path):
    pytest.importorskip("optuna")
    settings = TuneSettings(n_trials=6, prune=False)
    ends = run_tasks([partial(take_part, tmp_path, settings)] * 2)
    assert not any(isinstance(end, LesionsegError) for end in ends)
    found = Search(tmp_path, settings, seed=0).trials()
    assert [trial.state for trial in found] == ["complete"] * 6
    assert all(trial.value == pytest.approx(trial.alpha) for trial in found)
    assert (tmp_path / "killed").exists()


def named(*names: str) -> list[CaseFiles]:
    return [CaseFiles(name, (Path(name),)) for name in names]


def keep_names(folder: Path, cases: Sequence[CaseFiles]) -> None:
    """The worker dies of some cases, so many times; each begin is a letter in the case's file."""
    for files in cases:
        name = folder / files.case
        n_before = len(name.read_text()) if name.exists() else 0
        name.write_text("x" * (n_before + 1))
        if n_before < {"a": 1, "hard": 3, "deadly": 99}.get(files.case, 0):
            os.kill(os.getpid(), signal.SIGKILL)


def refuse_names(cases: Sequence[CaseFiles]) -> None:
    refuse()


def test_cases_are_spread_though_workers_die_and_no_machine_has_the_room(cluster, tmp_path):
    spread("Writing", partial(keep_names, tmp_path), named("a", "b"), n_bytes=10**15)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["xx", "x"]
    with pytest.raises(DatasetError, match="no case"):
        spread("Refusing", refuse_names, named("a"))
    spread("Nothing", refuse_names, [])


def test_cases_of_a_call_that_killed_three_workers_go_one_by_one(cluster, tmp_path):
    spread("Writing", partial(keep_names, tmp_path), named("hard"))
    assert (tmp_path / "hard").read_text() == "xxxx"
    with pytest.raises(TrainingError, match="Case deadly: 3 workers died"):
        spread("Writing", partial(keep_names, tmp_path), named("deadly"))
