"""The example package, installed beside lesionseg: its layout and its experiment are found."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process that sees the package, which this one does not."""
    place = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(["cp", "-r", ROOT / "examples" / "plugin", source], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--target", place, source], check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}


def said(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "lesionseg", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_its_layout_is_read_and_its_experiment_composed(
    environment: dict[str, str], tmp_path: Path, rng: np.random.Generator
) -> None:
    for number in range(4):
        folder = tmp_path / "data" / f"case_{number}"
        folder.mkdir(parents=True)
        scan = rng.normal(100, 20, (24, 24, 24)).astype(np.float32)
        mask = np.zeros(scan.shape, np.uint8)
        mask[8:12, 8:12, 8:12] = 1
        for name, array in (("scan", scan), ("lesions", mask)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    root = f"data.root={tmp_path / 'data'}"
    assert "layout pairs: 4 cases" in said(
        environment, "prepare", root, "check=true", f"run_dir={tmp_path / 'check'}"
    )
    assert "max_minutes: 5" in said(
        environment,
        "train",
        "--config-dir",
        "pkg://lesionseg_example.conf",
        "experiment=short",
        "--cfg",
    )
