"""Each fault gives one clear message that names the file or key, before anything is written."""

import nibabel as nib
import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms

IMAGE, MASK = "imagesTr/SIM_001_0000.nii.gz", "labelsTr/SIM_001.nii.gz"


@pytest.fixture
def raw(tmp_path):
    folder, grid = tmp_path / "raw", {"shape": (16, 18, 16), "spacing_mm": (8.0, 8.0, 8.0)}
    write_mri_phantoms(folder, 3, seed=0, **grid)
    return folder


def rewrite(path, place, value):
    """Set some voxels of a NIfTI."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[place] = value
    nib.save(nib.Nifti1Image(voxels, image.affine), path)


def truncate(raw):
    (raw / IMAGE).write_bytes((raw / IMAGE).read_bytes()[:2000])


def shrink(raw):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), raw / MASK)


def erase(raw):
    for path in (raw / "labelsTr").iterdir():
        rewrite(path, ..., 0)


def remove(raw):
    for path in raw.glob("*Tr/*"):
        if "SIM_001" not in path.name:
            path.unlink()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (truncate, "SIM_001_0000.nii.gz"),
        (shrink, "SIM_001"),
        (lambda raw: rewrite(raw / IMAGE, (2, 3, 4), np.nan), "SIM_001_0000.nii.gz"),
        (lambda raw: rewrite(raw / MASK, (2, 3, 4), 7), "SIM_001.nii.gz"),
        (erase, "no lesion"),
        (remove, "no case is left"),
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
    # but for what was learnt of the other cases, which the next start need not read again
    facts = tmp_path / "cache" / "facts"
    left = {path for path in tmp_path.rglob("*") if facts not in (path, *path.parents)}
    assert sorted(left - {facts.parent}) == before


def test_every_bad_case_is_named_at_once(raw, tmp_path, capsys):
    truncate(raw)
    rewrite(raw / "imagesTr" / "SIM_002_0000.nii.gz", (2, 3, 4), np.nan)
    checked = [f"data.root={raw}", f"run_dir={tmp_path / 'run'}", "check=true"]
    assert run("prepare", checked) == 1
    printed = capsys.readouterr().out
    assert "SIM_001_0000.nii.gz" in printed
    assert "SIM_002_0000.nii.gz" in printed


@pytest.mark.parametrize(("folder", "named"), [("nowhere", "nowhere"), (".", "dataset.json")])
def test_a_missing_folder_and_one_without_a_dataset(tmp_path, capsys, folder, named):
    assert run("train", [f"data.root={tmp_path / folder}"]) == 1
    assert named in capsys.readouterr().err
