"""Example files are the same as on their pages, and they work."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.io.text import read_json
from tests.flow.cases import SMALL, TILE, write_raw

ROOT = Path(__file__).parents[2]


@pytest.fixture
def raw(tmp_path):
    """Write the six cases of the examples, P01 to P06."""
    rng = np.random.default_rng(0)
    cases = {}
    for number in range(1, 7):
        mask = np.zeros((16, 16, 16))
        mask[4:8, 4:8, 2 + number : 6 + number] = 1
        cases[f"P{number:02d}"] = ("Tr", rng.normal(100, 5, mask.shape) + 50 * mask, mask)
    return write_raw(tmp_path / "raw", {"background": 0, "lesion": 1}, cases, file_ending=".nii.gz")


def prepare_roles(raw, folder, *settings):
    """Run `prepare`. Return the cases of each role."""
    given = [f"data.root={raw}", f"run_dir={folder}", TILE, *SMALL, *settings]
    assert run("prepare", given) == 0
    found = {}
    for case, role in read_json(folder / "splits.json")["roles"].items():
        found.setdefault(role, set()).add(case)
    return found


def test_split_files_are_printed_on_their_page():
    page = (ROOT / "docs" / "splits.md").read_text(encoding="utf-8")
    printed = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    names = ("splits.json", "splits_folds.json")
    assert printed == [read_json(ROOT / "examples" / name) for name in names]


def test_split_files_are_followed(raw, tmp_path):
    single = ROOT / "examples" / "splits.json"
    folds = ROOT / "examples" / "splits_folds.json"
    assert prepare_roles(raw, tmp_path / "runs" / "a", f"data.splits={single}") == {
        "train": {"P01", "P02", "P03", "P04"},
        "validation": {"P05"},
        "test": {"P06"},
    }
    assert prepare_roles(raw, tmp_path / "runs" / "b", f"data.splits={folds}", "data.fold=1") == {
        "train": {"P01", "P02", "P05", "P06"},
        "validation": {"P03", "P04"},
    }
    of_another_run = tmp_path / "runs" / "a" / "splits.json"
    again = prepare_roles(raw, tmp_path / "runs" / "c", f"data.splits={of_another_run}")
    assert again["validation"] == {"P05"}
