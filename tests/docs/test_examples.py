"""Example files are the same as on their pages, and they work."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lesionseg.config import DataConfig
from lesionseg.io.text import read_json
from lesionseg.pipeline.dataset_inspection import inspect_dataset
from tests.flow.cases import write_raw

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


def cases_of_roles(survey):
    roles = ("train", "validation", "test")
    return [{files.case for files in survey.of_role(role)} for role in roles]


def test_split_files_are_printed_on_their_page():
    page = (ROOT / "docs" / "splits.md").read_text(encoding="utf-8")
    printed = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    names = ("splits.json", "splits_folds.json")
    assert printed == [read_json(ROOT / "examples" / name) for name in names]


def test_split_files_are_followed(raw, tmp_path):
    def survey_by(file, **settings):
        return inspect_dataset(DataConfig.of(root=str(raw), splits=str(file), **settings), seed=0)

    single = survey_by(ROOT / "examples" / "splits.json")
    assert cases_of_roles(single) == [{"P01", "P02", "P03", "P04"}, {"P05"}, {"P06"}]
    folds = survey_by(ROOT / "examples" / "splits_folds.json", fold=1)
    assert cases_of_roles(folds) == [{"P01", "P02", "P05", "P06"}, {"P03", "P04"}, set()]
    of_another_run = tmp_path / "splits.json"
    of_another_run.write_text(single.splits.to_json())
    assert cases_of_roles(survey_by(of_another_run)) == cases_of_roles(single)
