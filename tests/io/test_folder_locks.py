"""Locks on folders: who is kept out, and what is removed."""

from importlib import import_module
from pathlib import Path

import pytest

from lesionseg import config
from lesionseg.errors import OutputError
from lesionseg.io.files import locked_folder


def test_m3_a_locked_folder_is_refused_to_others_until_it_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with locked_folder(folder):
        with pytest.raises(OutputError, match="out: another process is writing"):
            locked_folder(folder).__enter__()
        with locked_folder(folder, ".other"):
            pass
        (folder / "a").touch()
    with locked_folder(folder):
        pass
    assert [p.name for p in folder.iterdir()] == ["a"]


def test_m3_who_locks_a_folder_removes_what_killed_processes_left(tmp_path: Path) -> None:
    halves = [tmp_path / ".5f85e7d9-report.pdf", tmp_path / "run" / "test" / ".00000000-a.csv"]
    kept = [tmp_path / ".hidden-file", tmp_path / "5f85e7d9-report.pdf"]
    for file in [*halves, *kept]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with locked_folder(tmp_path, ".part"):
        assert all(file.exists() for file in halves)
    with locked_folder(tmp_path):
        assert not any(file.exists() for file in halves)
    assert all(file.exists() for file in kept)


COMMANDS: dict[str, dict[str, str]] = {
    "prepare": {"run_dir": "out"},
    "evaluate": {"reference": "r", "prediction": "p", "output": "out"},
    "follow": {"before": "b", "after": "a", "output": "out"},
    "export": {"bundle": "b", "output": "out"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_m3_two_commands_never_write_into_one_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = getattr(import_module(f"lesionseg.pipeline.{name}"), name)
    cfg = config.COMMANDS[name].of(**COMMANDS[name])
    with locked_folder(Path("out")), pytest.raises(OutputError, match="another process is writing"):
        command(cfg)


def test_a_lock_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="out: cannot be written"):
        locked_folder(tmp_path / "out").__enter__()
