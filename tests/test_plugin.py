"""The example package is installed next to lesionseg. Its layout and its experiment are found."""

import os
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from tests.commands import python
from tests.pipeline.cases import boxes, write_array

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of a process that can import the package."""
    place = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    copytree(ROOT / "examples" / "plugin", source)
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    assert python(*pip, "--target", place, source).returncode == 0
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}


def test_layout_and_experiment_of_the_plugin_are_used(
    environment: dict[str, str], tmp_path: Path, rng: np.random.Generator
) -> None:
    for number in range(4):
        folder = tmp_path / "data" / f"case_{number}"
        scan = rng.normal(100, 20, (24, 24, 24)).astype(np.float32)
        write_array(folder / "scan.nii.gz", scan)
        write_array(folder / "lesions.nii.gz", boxes(scan.shape, (8, 8, 8, 4)))
    root = f"data.root={tmp_path / 'data'}"
    run_dir = f"run_dir={tmp_path / 'check'}"
    done = python("-m", "lesionseg", "prepare", root, "check=true", run_dir, env=environment)
    assert "layout pairs: 4 cases" in done.stdout + done.stderr
    experiment = ("--config-dir", "pkg://lesionseg_example.conf", "experiment=short", "--cfg")
    done = python("-m", "lesionseg", "train", *experiment, env=environment)
    assert "max_minutes: 5" in done.stdout
