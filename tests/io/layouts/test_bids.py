"""BIDS derivatives: written, recognised, read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset

Write = Callable[..., Path]
SHAPE = (5, 4, 3)  # x, y, z in the file
MASK = np.zeros(SHAPE, np.uint8)
MASK[1, 2, 0] = MASK[4, 0, 2] = 1


@pytest.fixture
def bids(tmp_path: Path, write_nifti: Write) -> Path:
    for session in ("sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a"):
        folder = Path(*session.split("_")) / "anat"
        for suffix in ("FLAIR", "T1w"):
            write_nifti(tmp_path / folder / f"{session}_{suffix}.nii.gz", np.ones(SHAPE, np.int16))
        place = tmp_path / "derivatives" / "lesions" / folder
        write_nifti(place / f"{session}_label-lesion_mask.nii.gz", MASK)
    return tmp_path


def test_sessions_are_cases_and_subjects_groups(bids: Path) -> None:
    dataset = read_dataset(bids)
    assert (dataset.convention, dataset.channel_names) == ("bids", ("FLAIR", "T1w"))
    groups = {c.case: c.group for c in dataset.cases}
    assert set(groups.values()) == {"sub-01", "sub-02"}
    assert groups["sub-01_ses-b"] == "sub-01"
    for files in dataset.cases:
        case = read_case(files, dataset)
        assert case.image.array.shape == (2, 3, 4, 5)
        assert case.reference is not None
        assert case.reference.labels is not None
        assert case.reference.labels.sum() == 2


def test_channels_are_shared_and_on_the_masks_grid(
    bids: Path, write_nifti: Write, caplog: pytest.LogCaptureFixture
) -> None:
    anat = bids / "sub-01" / "ses-a" / "anat"
    write_nifti(anat / "sub-01_ses-a_T1w.nii.gz", np.ones((2, 2, 2), np.int16))
    write_nifti(anat / "sub-01_ses-a_T2w.nii.gz", np.ones(SHAPE, np.int16))
    assert read_dataset(bids).channel_names == ("FLAIR",)
    assert "T1w, T2w" in caplog.text


def test_images_beside_the_mask_go_first(tmp_path: Path, write_nifti: Write) -> None:
    place = tmp_path / "sub-1" / "anat"
    write_nifti(place / "sub-1_space-MNI_FLAIR.nii.gz", np.ones(SHAPE, np.int16))
    write_nifti(place / "sub-1_space-MNI_label-lesion_mask.nii.gz", MASK)
    assert [c.case for c in read_dataset(tmp_path).cases] == ["sub-1"]


def test_two_masks_of_a_session_are_an_error(bids: Path, write_nifti: Write) -> None:
    write_nifti(bids / "derivatives" / "other" / "sub-02_ses-a_label-lesion_mask.nii.gz", MASK)
    with pytest.raises(DatasetError, match=r"second lesion mask.*sub-02_ses-a"):
        read_dataset(bids)
