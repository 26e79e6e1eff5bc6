"""BIDS, MONAI datalists and instance masks: written, recognised, read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Case, Dataset
from lesionseg.errors import DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset

Write = Callable[..., Path]
SHAPE = (5, 4, 3)  # x, y, z in the file


def mask() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[1, 2, 0] = 1
    array[4, 0, 2] = 2
    return array


def cases_of(root: Path, convention: str) -> tuple[Dataset, dict[str, Case]]:
    dataset = read_dataset(root)
    assert dataset.convention == convention
    return dataset, {files.case: read_case(files, dataset) for files in dataset.cases}


def bids(root: Path, write_nifti: Write) -> None:
    for session in ("sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a"):
        folder = Path(*session.split("_")) / "anat"
        for suffix in ("FLAIR", "T1w"):
            write_nifti(root / folder / f"{session}_{suffix}.nii.gz", np.ones(SHAPE, np.int16))
        place = root / "derivatives" / "lesions" / folder
        write_nifti(place / f"{session}_label-lesion_mask.nii.gz", (mask() > 0).astype(np.uint8))


def test_bids_sessions_are_cases_and_subjects_groups(tmp_path: Path, write_nifti: Write) -> None:
    bids(tmp_path, write_nifti)
    dataset, cases = cases_of(tmp_path, "bids")
    assert dataset.channel_names == ("FLAIR", "T1w")
    assert {c.case: c.group for c in dataset.cases} == {
        "sub-01_ses-a": "sub-01",
        "sub-01_ses-b": "sub-01",
        "sub-02_ses-a": "sub-02",
    }
    for case in cases.values():
        assert case.image.array.shape == (2, 3, 4, 5)
        assert case.reference is not None
        assert case.reference.labels is not None
        assert case.reference.labels.sum() == 2


def test_bids_channels_are_shared_and_on_the_masks_grid(
    tmp_path: Path, write_nifti: Write, caplog: pytest.LogCaptureFixture
) -> None:
    bids(tmp_path, write_nifti)
    anat = tmp_path / "sub-01" / "ses-a" / "anat"
    write_nifti(anat / "sub-01_ses-a_T1w.nii.gz", np.ones((2, 2, 2), np.int16))
    write_nifti(anat / "sub-01_ses-a_T2w.nii.gz", np.ones(SHAPE, np.int16))
    assert read_dataset(tmp_path).channel_names == ("FLAIR",)
    assert "T1w, T2w" in caplog.text


def test_bids_images_beside_the_mask_go_first(tmp_path: Path, write_nifti: Write) -> None:
    place = tmp_path / "sub-1" / "anat"
    write_nifti(place / "sub-1_space-MNI_FLAIR.nii.gz", np.ones(SHAPE, np.int16))
    write_nifti(place / "sub-1_space-MNI_label-lesion_mask.nii.gz", mask() // 2)
    _, cases = cases_of(tmp_path, "bids")
    assert set(cases) == {"sub-1"}


def test_two_bids_masks_of_a_session_are_refused(tmp_path: Path, write_nifti: Write) -> None:
    bids(tmp_path, write_nifti)
    other = tmp_path / "derivatives" / "other" / "sub-02_ses-a_label-lesion_mask.nii.gz"
    write_nifti(other, mask())
    with pytest.raises(DatasetError, match=r"two lesion masks.*sub-02_ses-a"):
        read_dataset(tmp_path)


def datalist(root: Path, write_nifti: Write, **entry: object) -> None:
    for name in ("a", "b"):
        for channel in ("t1", "t2"):
            write_nifti(root / "scans" / name / f"{name}_{channel}.nii.gz", np.ones(SHAPE))
        write_nifti(root / "masks" / f"{name}.nii.gz", mask() // 2)
    entries = [
        {
            "image": [f"scans/{name}/{name}_{channel}.nii.gz" for channel in ("t1", "t2")],
            "label": f"masks/{name}.nii.gz",
            "fold": fold,
            **entry,
        }
        for fold, name in enumerate(("a", "b"))
    ]
    content = {"training": entries[:1], "testing": entries[1:]}
    (root / "datalist.json").write_text(json.dumps(content))


def test_a_datalist_gives_channels_folds_and_roles(tmp_path: Path, write_nifti: Write) -> None:
    datalist(tmp_path, write_nifti)
    dataset, cases = cases_of(tmp_path, "datalist")
    assert [(c.case, c.role, c.fold) for c in dataset.cases] == [
        ("a_t1", None, 0),
        ("b_t1", "test", 1),
    ]
    assert cases["a_t1"].image.array.shape == (2, 3, 4, 5)
    assert cases["a_t1"].reference is not None


def test_a_datalist_of_missing_files_is_refused(tmp_path: Path, write_nifti: Write) -> None:
    datalist(tmp_path, write_nifti)
    (tmp_path / "masks" / "a.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"masks/a\.nii\.gz.* does not exist"):
        read_dataset(tmp_path)


def test_a_manifest_may_name_instance_masks_between_semicolons(
    tmp_path: Path, write_nifti: Write
) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.ones(SHAPE))
    write_nifti(tmp_path / "ids.nii.gz", mask() * 5)
    (tmp_path / "manifest.csv").write_text("case;image;instances;age\nA;a.nii.gz;ids.nii.gz;61\n")
    dataset, cases = cases_of(tmp_path, "manifest")
    assert dataset.cases[0].columns == {"age": "61"}
    reference = cases["A"].reference
    assert reference is not None
    assert reference.instances is not None
    assert reference.instance_labels == (1, 1)
    assert set(np.unique(reference.instances)) == {0, 1, 2}
    text = "case,image,reference,instances\nA,a.nii.gz,ids.nii.gz,ids.nii.gz\n"
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DatasetError, match="not both"):
        read_dataset(tmp_path)
