"""BIDS derivatives: sessions, channels, masks, and errors in them."""

from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import list_dataset, read_dataset

SESSIONS = ("sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a")
SHAPE = (5, 4, 3)  # x, y, z in the file
MASK = np.zeros(SHAPE, np.uint8)
MASK[1, 2, 0] = MASK[4, 0, 2] = 1


@pytest.fixture
def bids(tmp_path, write_nifti):
    """Write three sessions of two subjects, with two images and a lesion mask each."""
    for session in SESSIONS:
        folder = Path(*session.split("_")) / "anat"
        for suffix in ("FLAIR", "T1w"):
            write_nifti(tmp_path / folder / f"{session}_{suffix}.nii.gz", np.ones(SHAPE, np.int16))
        masks = tmp_path / "derivatives" / "lesions" / folder
        write_nifti(masks / f"{session}_label-lesion_mask.nii.gz", MASK)
    return tmp_path


def test_sessions_are_cases_and_subjects_groups(bids):
    dataset = read_dataset(bids)
    assert (dataset.layout, dataset.channel_names) == ("bids", ("FLAIR", "T1w"))
    assert [(c.case, c.group) for c in dataset.cases] == [(case, case[:6]) for case in SESSIONS]
    for files in dataset.cases:
        case = read_case(files, dataset)
        assert (case.image.array.shape, case.reference.labels.sum()) == ((2, 3, 4, 5), 2)


def test_images_not_in_all_sessions_or_on_another_grid_are_no_channels(bids, write_nifti, caplog):
    session = bids / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a"
    write_nifti(Path(f"{session}_T1w.nii.gz"), np.ones((2, 2, 2), np.int16))
    write_nifti(Path(f"{session}_T2w.nii.gz"), np.ones(SHAPE, np.int16))
    assert read_dataset(bids).channel_names == ("FLAIR",)
    assert "T1w, T2w" in caplog.text


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["space-MNI_FLAIR"], ["space-MNI_label-L_desc-T1lesion", "space-MNI_label-lung"]),
        (["acq-fast_FLAIR", "FLAIR"], ["label-lesion_desc-expert"]),
    ],
)
def test_image_with_the_entities_of_the_mask_is_preferred(tmp_path, write_nifti, images, masks):
    """The mask of a lung is not a lesion mask."""
    folder = tmp_path / "sub-1" / "anat"
    for name in images:
        write_nifti(folder / f"sub-1_{name}.nii.gz", np.ones(SHAPE, np.int16))
    for name in masks:
        write_nifti(folder / f"sub-1_{name}_mask.nii.gz", MASK)
    (case,) = read_dataset(tmp_path).cases
    assert (case.case, case.images) == ("sub-1", (folder / f"sub-1_{images[-1]}.nii.gz",))


@pytest.fixture
def last(bids):
    """Return the folders of the images and of the mask of the last session."""
    place = Path("sub-02", "ses-a", "anat")
    return bids / place, bids / "derivatives" / "lesions" / place


def test_mask_of_a_run_belongs_to_the_image_of_this_run(bids, last, write_nifti):
    folder, masks = last
    session = SESSIONS[-1]
    (folder / f"{session}_FLAIR.nii.gz").rename(folder / f"{session}_run-1_FLAIR.nii.gz")
    write_nifti(folder / f"{session}_run-2_FLAIR.nii.gz", np.full(SHAPE, 7, np.int16))
    with pytest.raises(DatasetError, match=r"several images.*run-1_FLAIR.*run-2_FLAIR"):
        read_dataset(bids)
    mask = masks / f"{session}_label-lesion_mask.nii.gz"
    mask = mask.rename(masks / f"{session}_run-2_label-lesion_mask.nii.gz")
    names = [file.name for file in read_dataset(bids).cases[-1].images]
    assert names == [f"{session}_run-2_FLAIR.nii.gz", f"{session}_T1w.nii.gz"]
    mask.rename(masks / f"{session}_run-3_label-lesion_mask.nii.gz")
    assert read_dataset(bids).channel_names == ("T1w",)  # the third run has no FLAIR


@pytest.mark.parametrize("entity", ["run", "acq", "ce", "rec", "dir"])
def test_scans_of_a_session_with_a_mask_each_are_cases_of_one_group(
    bids, last, write_nifti, entity
):
    folder, masks = last
    (folder / "sub-02_ses-a_FLAIR.nii.gz").unlink()
    (masks / "sub-02_ses-a_label-lesion_mask.nii.gz").unlink()
    scans = [f"sub-02_ses-a_{entity}-{number}" for number in (1, 2)]
    for value, scan in enumerate(scans, start=1):
        write_nifti(folder / f"{scan}_FLAIR.nii.gz", np.full(SHAPE, value, np.int16))
        write_nifti(masks / f"{scan}_label-lesion_desc-x_mask.nii.gz", MASK)
    dataset = read_dataset(bids)
    assert [c.case for c in dataset.cases] == [*SESSIONS[:2], *scans]
    for value, files in enumerate(dataset.cases[2:], start=1):
        assert (files.group, files.images[1].name) == ("sub-02", "sub-02_ses-a_T1w.nii.gz")
        assert read_case(files, dataset).image.array[0].max() == value


@pytest.mark.parametrize(
    "name", ["run-2_label-lesion", "label-lesion_desc-b", "label-L", "other/label-lesion"]
)
def test_two_masks_of_the_same_images_are_an_error(last, bids, write_nifti, name):
    place, _, entities = name.rpartition("/")
    write_nifti(last[1] / place / f"sub-02_ses-a_{entities}_mask.nii.gz", MASK)
    with pytest.raises(DatasetError, match=r"second lesion mask.*sub-02_ses-a.*manifest\.csv"):
        read_dataset(bids)


def test_check_lists_all_faults_despite_a_damaged_first_mask(bids, write_nifti):
    write_nifti(bids / "derivatives" / "other" / "sub-02_ses-a_label-lesion_mask.nii.gz", MASK)
    next((bids / "derivatives" / "lesions").rglob("sub-01_ses-a_label*")).write_bytes(b"damaged")
    messages = "\n".join(p.message for p in list_dataset(bids).errors)
    for words in ("second lesion mask", "not a NIfTI image", "no labelled case"):
        assert words in messages
