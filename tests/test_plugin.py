"""The example package is installed next to lesionseg. Its layout and its experiment are found."""

import logging
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from lesionseg.cli import run
from tests.commands import python
from tests.pipeline.cases import boxes, write_array

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the package into a folder and return it."""
    place = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    copytree(ROOT / "examples" / "plugin", source)
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    assert python(*pip, "--target", place, source).returncode == 0
    return place


@pytest.fixture
def with_plugin(installed, monkeypatch):
    """Make the installed package available to imports."""
    monkeypatch.syspath_prepend(installed)


def write_pairs(root, rng):
    """Write four cases in the layout of the package."""
    for number in range(4):
        folder = root / f"case_{number}"
        scan = rng.normal(100, 20, (24, 24, 24)).astype(np.float32)
        write_array(folder / "scan.nii.gz", scan)
        write_array(folder / "lesions.nii.gz", boxes(scan.shape, (8, 8, 8, 4)))


@pytest.mark.usefixtures("with_plugin")
def test_layout_of_the_plugin_is_used(tmp_path, rng, caplog):
    write_pairs(tmp_path / "data", rng)
    caplog.set_level(logging.INFO, "lesionseg")
    settings = [f"data.root={tmp_path / 'data'}", "check=true", f"run_dir={tmp_path / 'check'}"]
    assert run("prepare", settings) == 0
    assert "layout pairs: 4 cases" in caplog.text


@pytest.mark.usefixtures("with_plugin")
def test_experiment_of_the_plugin_is_used(run_command):
    experiment = ["--config-dir", "pkg://lesionseg_example.conf", "experiment=short", "--cfg"]
    assert "max_minutes: 5" in run_command("train", experiment).out


def test_layout_of_a_package_that_is_not_installed_is_unknown(run_command, tmp_path, rng):
    write_pairs(tmp_path / "data", rng)
    settings = [f"data.root={tmp_path / 'data'}", "check=true"]
    assert "layout" in run_command("prepare", settings, 1).err
