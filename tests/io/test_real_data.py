"""Walks over real scans, where they are: every case of every set must be read."""

import os
from pathlib import Path

import pytest

from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.ops.components import lesions_of

ROOT = Path(os.environ.get("LESIONSEG_DATA", Path(__file__).parents[3] / "shared" / "data"))

# set, convention, cases, of them for testing, groups, lesions (None: findings under two names)
SETS = [
    ("mri/ms_cs", "nnunet", 4, 0, 2, 122),
    ("mri/ms_flair_mini", "nnunet", 4, 2, 2, 122),
    ("mri/ms_change", "nnunet", 3, 0, 3, 110),
    ("mri/sts_mr", "nnunet", 16, 4, 16, 16),
    ("ct/lung_nodule_cubes", "nnunet", 104, 15, 104, 104),
    ("xray/lidc_drr", "coco", 230, 0, 228, 572),
    ("xray/nih_nodule_mass", "coco", 136, 0, 121, 96),
    ("xray/chestxdet_nih", "coco", 28, 0, 27, None),
    ("xray/mini_mias", "coco", 108, 0, 85, 89),
    ("xray/small/chestxdet_nih", "coco", 26, 0, 24, None),
    ("xray/small/nih_nodule_mass", "coco", 26, 0, 25, 20),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "convention", "n_cases", "n_test", "n_groups", "n_lesions"), SETS)
def test_every_case_is_read(name, convention, n_cases, n_test, n_groups, n_lesions):
    if not (ROOT / name).is_dir():
        pytest.skip(f"no {name} here")
    dataset = read_dataset(ROOT / name)
    assert (dataset.convention, len(dataset.cases)) == (convention, n_cases)
    assert sum(c.role == "test" for c in dataset.cases) == n_test
    assert len({c.group for c in dataset.cases}) == n_groups
    found = 0
    for files in dataset.cases:
        case = read_case(files, dataset)
        assert len(case.image.array) == len(dataset.channel_names)
        found += len(lesions_of(case.reference).ids)
    assert n_lesions is None or found == n_lesions
