"""Each fault gives one clear message that names the file or key. No results are written."""

import nibabel as nib
import numpy as np
import pytest

from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import HEADS

IMAGE = "imagesTr/SIM_001_0000.nii.gz"
MASK = "labelsTr/SIM_001.nii.gz"


@pytest.fixture
def raw(tmp_path):
    """Write three simulated scans without a fault."""
    write_mri_phantoms(tmp_path / "raw", 3, seed=0, **HEADS)
    return tmp_path / "raw"


def cut_image(raw):
    (raw / IMAGE).write_bytes((raw / IMAGE).read_bytes()[:2000])


def shrink_mask(raw):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), raw / MASK)


def erase_masks(raw):
    for path in (raw / "labelsTr").iterdir():
        mask = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(mask.shape), mask.affine), path)


def remove_other_cases(raw):
    for path in raw.glob("*Tr/*"):
        if "SIM_001" not in path.name:
            path.unlink()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (cut_image, "SIM_001_0000.nii.gz"),
        (shrink_mask, "SIM_001"),
        (erase_masks, "no lesion"),
        (remove_other_cases, "no case is left"),
    ],
)
def test_a_fault_is_named_and_nothing_is_written(run_command, fault, named, raw, tmp_path):
    fault(raw)
    before = sorted(tmp_path.rglob("*"))
    printed = run_command("train", [f"data.root={raw}", f"run_dir={tmp_path / 'run'}"], 1).err
    assert named in printed
    assert printed.count("Error:") == 1
    # only facts about the other cases are kept, so the next start need not read them again
    facts = tmp_path / "cache" / "facts"
    left = {path for path in tmp_path.rglob("*") if facts not in (path, *path.parents)}
    assert sorted(left - {facts.parent}) == before
