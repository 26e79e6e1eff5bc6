"""Each fault gives one clear message that names the file or key, before anything is written."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "raw"
    write_mri_phantoms(folder, 3, seed=0, shape=(16, 18, 16), spacing_mm=(8.0, 8.0, 8.0))
    return folder


@pytest.fixture
def raw(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "raw"))


def _change(path: Path, change: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Rewrite a NIfTI after `change(voxels, affine)` in place."""
    image = nib.load(path)
    voxels, affine = np.asarray(image.dataobj).astype(np.float32), image.affine.copy()
    change(voxels, affine)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def _image(raw: Path) -> Path:
    return raw / "imagesTr" / "SIM_001_0000.nii.gz"


def _mask(raw: Path) -> Path:
    return raw / "labelsTr" / "SIM_001.nii.gz"


def _truncate(raw: Path) -> None:
    _image(raw).write_bytes(_image(raw).read_bytes()[:2000])


def _no_nifti(raw: Path) -> None:
    _image(raw).write_bytes(gzip.compress(b"hello"))


def _other_shape(raw: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), _mask(raw))


def _shifted(raw: Path) -> None:
    _change(_mask(raw), lambda _, affine: affine.__setitem__((0, 3), affine[0, 3] + 2))


def _voxel(path: Callable[[Path], Path], value: float) -> Callable[[Path], None]:
    return lambda raw: _change(path(raw), lambda x, _: x.__setitem__((2, 3, 4), value))


def _no_lesion(raw: Path) -> None:
    for path in (raw / "labelsTr").iterdir():
        _change(path, lambda voxels, _: voxels.fill(0))


def _one_case(raw: Path) -> None:
    for path in [*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()]:
        if "SIM_001" not in path.name:
            path.unlink()


FAULTS = [
    (_truncate, "SIM_001_0000.nii.gz"),
    (_no_nifti, "SIM_001_0000.nii.gz"),
    (_other_shape, "SIM_001"),
    (_shifted, "2"),
    (_voxel(_image, np.nan), "SIM_001_0000.nii.gz"),
    (_voxel(_image, np.inf), "SIM_001_0000.nii.gz"),
    (_voxel(_mask, 0.5), "SIM_001.nii.gz"),
    (_voxel(_mask, 7), "SIM_001.nii.gz"),
    (_no_lesion, "no lesion"),
    (_one_case, "no case is left to validate on"),
]


@pytest.mark.parametrize(("fault", "named"), FAULTS)
def test_a_fault_is_named_and_nothing_is_written(
    fault: Callable[[Path], None],
    named: str,
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
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


def test_every_bad_case_is_named_at_once(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _truncate(raw)
    other = raw / "imagesTr" / "SIM_002_0000.nii.gz"
    _change(other, lambda voxels, _: voxels.__setitem__((2, 3, 4), np.nan))
    checked = [f"data.root={raw}", f"run_dir={raw.parent}/run", "check=true"]
    assert run("prepare", checked) == 1
    assert "SIM_00" not in capsys.readouterr().out  # unless asked to, it names nobody
    assert run("prepare", [*checked, "identifiers=true"]) == 1
    printed = capsys.readouterr().out
    assert "SIM_001_0000.nii.gz" in printed
    assert "SIM_002_0000.nii.gz" in printed
    assert "2 cannot be used" in printed


def test_a_missing_folder_and_one_without_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", [f"data.root={tmp_path / 'nowhere'}"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert run("train", [f"data.root={tmp_path}"]) == 1
    assert "dataset.json" in capsys.readouterr().err
