"""The commands work with the oldest packages that pyproject.toml allows, see `make oldest`."""

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.pipeline.cases import small_training

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = PROJECT["dependencies"]
PYTHON = Path(os.environ.get("LESIONSEG_OLDEST", ROOT / ".oldest")) / "bin" / "python"


def python(*words):
    """Run the interpreter of the old packages, and return what it prints last."""
    done = subprocess.run([PYTHON, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_oldest_packages_train_predict_evaluate_and_report(tmp_path):
    if not PYTHON.exists():
        pytest.skip("the oldest packages are not installed; make oldest")
    for name in ("numpy", "pandas", "monai"):  # that this environment is the one of `make oldest`
        (wanted,) = [one for one in map(Requirement, DEPENDENCIES) if one.name == name]
        code = f"import importlib.metadata as m, json; print(json.dumps(m.version('{name}')))"
        assert python("-c", code).startswith(str(wanted.specifier).removeprefix(">="))
    run = tmp_path / "run"
    scores = tmp_path / "scores"
    images = tmp_path / "raw" / "images"
    found = tmp_path / "found"
    page = tmp_path / "page"
    commands = f"""predict bundle={run} input={images} output={found}
        evaluate reference={tmp_path / "raw"} prediction={found} output={scores} replicates=10
        report scores={scores} images={images} output={page}"""
    python("-m", "lesionseg", "train", *small_training(tmp_path, n_cases=6), "--json")
    for command in commands.splitlines():
        python("-m", "lesionseg", *command.split(), "--json")
    assert (page / "report.html").is_file()
