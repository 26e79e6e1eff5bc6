"""Example files that pages show: they are what the page prints, and they work."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lesionseg.cli import run
from tests.flow.cases import SMALL, TILE, write_raw

ROOT = Path(__file__).parents[2]


@pytest.fixture
def raw(tmp_path):
    """Six cases, P01 to P06, as in the examples."""
    rng = np.random.default_rng(0)
    cases = {}
    for number in range(1, 7):
        mask = np.zeros((16, 16, 16))
        mask[4:8, 4:8, 2 + number : 6 + number] = 1
        cases[f"P{number:02d}"] = ("Tr", rng.normal(100, 5, mask.shape) + 50 * mask, mask)
    return write_raw(tmp_path / "raw", {"background": 0, "lesion": 1}, cases, file_ending=".nii.gz")


def roles(raw, folder, *settings):
    given = [f"data.root={raw}", f"run_dir={folder}", TILE, *SMALL, *settings]
    assert run("prepare", given) == 0
    found: dict[str, set[str]] = {}
    for case, role in json.loads((folder / "splits.json").read_text())["roles"].items():
        found.setdefault(role, set()).add(case)
    return found


def test_the_split_files_are_printed_on_their_page():
    page = (ROOT / "docs" / "splits.md").read_text(encoding="utf-8")
    printed = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    names = ("splits.json", "splits_folds.json")
    assert printed == [json.loads((ROOT / "examples" / name).read_text()) for name in names]


def test_the_split_files_are_followed(raw, tmp_path):
    single, folds = (ROOT / "examples" / name for name in ("splits.json", "splits_folds.json"))
    assert roles(raw, tmp_path / "runs" / "a", f"data.splits={single}") == {
        "train": {"P01", "P02", "P03", "P04"},
        "validation": {"P05"},
        "test": {"P06"},
    }
    assert roles(raw, tmp_path / "runs" / "b", f"data.splits={folds}", "data.fold=1") == {
        "train": {"P01", "P02", "P05", "P06"},
        "validation": {"P03", "P04"},
    }
    again = tmp_path / "runs" / "a" / "splits.json"  # of another run
    assert roles(raw, tmp_path / "runs" / "c", f"data.splits={again}")["validation"] == {"P05"}
