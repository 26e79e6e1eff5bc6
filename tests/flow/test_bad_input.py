"""Each fault gives one clear message that names the file or key. No results are written."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import HEADS

IMAGE = "imagesTr/SIM_001_0000.nii.gz"
MASK = "labelsTr/SIM_001.nii.gz"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Write three simulated scans without a fault."""
    folder = tmp_path_factory.mktemp("healthy")
    write_mri_phantoms(folder, 3, seed=0, **HEADS)
    return folder


@pytest.fixture
def raw(healthy, tmp_path):
    """Copy the scans, so that a test may damage them."""
    return shutil.copytree(healthy, tmp_path / "raw")


def rewrite(path, place, value):
    """Set some voxels of a NIfTI."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[place] = value
    nib.save(nib.Nifti1Image(voxels, image.affine), path)


def cut_image(raw):
    (raw / IMAGE).write_bytes((raw / IMAGE).read_bytes()[:2000])


def shrink_mask(raw):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), raw / MASK)


def erase_masks(raw):
    for path in (raw / "labelsTr").iterdir():
        rewrite(path, ..., 0)


def remove_other_cases(raw):
    for path in raw.glob("*Tr/*"):
        if "SIM_001" not in path.name:
            path.unlink()


def insert_nan(raw):
    rewrite(raw / IMAGE, (2, 3, 4), np.nan)


def insert_unknown_label(raw):
    rewrite(raw / MASK, (2, 3, 4), 7)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (cut_image, "SIM_001_0000.nii.gz"),
        (shrink_mask, "SIM_001"),
        (insert_nan, "SIM_001_0000.nii.gz"),
        (insert_unknown_label, "SIM_001.nii.gz"),
        (erase_masks, "no lesion"),
        (remove_other_cases, "no case is left"),
    ],
)
def test_a_fault_is_named_and_nothing_is_written(fault, named, raw, tmp_path, capsys):
    fault(raw)
    before = sorted(tmp_path.rglob("*"))
    assert run("train", [f"data.root={raw}", f"run_dir={tmp_path / 'run'}"]) == 1
    printed = capsys.readouterr().err
    assert named in printed
    assert printed.count("Error:") == 1
    assert "Traceback" not in printed
    # only facts about the other cases are kept, so the next start need not read them again
    facts = tmp_path / "cache" / "facts"
    left = {path for path in tmp_path.rglob("*") if facts not in (path, *path.parents)}
    assert sorted(left - {facts.parent}) == before
