import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lesionseg.errors import ConfigError
from lesionseg.pipeline.dataset.survey import SETTINGS, simulate_once


def write(folder: Path, n_cases: int, *, progress: Callable[[str, int, int], None]) -> None:
    folder.mkdir()
    for done in range(n_cases):
        (folder / str(done)).touch()
        progress(str(done), done + 1, n_cases)


def interrupted(folder: Path, *, progress: Callable[[str, int, int], None]) -> None:
    folder.mkdir()
    raise KeyboardInterrupt


def test_a_dataset_is_simulated_once(tmp_path: Path) -> None:
    root = tmp_path / "new" / "set"
    simulate_once(root, partial(write, n_cases=2))
    assert sorted(p.name for p in root.iterdir()) == ["0", "1", SETTINGS]
    (root / "0").unlink()
    simulate_once(root, partial(write, n_cases=2))
    assert not (root / "0").exists()


def test_an_interrupted_simulation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate_once(tmp_path / "set", partial(interrupted))
    assert list(tmp_path.iterdir()) == []
    simulate_once(tmp_path / "set", partial(write, n_cases=1))
    assert json.loads((tmp_path / "set" / SETTINGS).read_text()) == {"n_cases": 1}


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    simulate_once(tmp_path / "set", partial(write, n_cases=1))
    with pytest.raises(ConfigError, match="n_cases: 1 → 3"):
        simulate_once(tmp_path / "set", partial(write, n_cases=3))


def test_a_dataset_without_settings_is_taken_as_it_is(tmp_path: Path) -> None:
    simulate_once(tmp_path, partial(write, n_cases=3))
    assert list(tmp_path.iterdir()) == []
