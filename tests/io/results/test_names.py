"""Names of results: masks of BIDS lead back to their case ids."""

from pathlib import Path

import pytest

from lesionseg.errors import DatasetError
from lesionseg.io.case_ids import MAX_ID_BYTES
from lesionseg.io.results.names import bids_case_id, case_and_kind, mask_stem


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("sub-01_FLAIR", "sub-01_FLAIR"),
        ("sub-01", "sub-01"),
        ("p_sub-01_ses-2_anat_sub-01_ses-2_acq-3d_run-1_T2w", "sub-01_ses-2_acq-3d_run-1_T2w"),
        ("sub-01_ses-2_FLAIR_3_5c1f03ab", "sub-01_ses-2_FLAIR35c1f03ab"),
        ("sub-01_space-MNI_desc-preproc_T1w", "sub-01_space-MNI_T1w"),
        ("sub-01_space-orig_label-brain_T1w", "sub-01_T1w"),
        # BIDS does not allow these entities in the name of a mask
        ("sub-01_dir-AP_res-2_dwi", "sub-01_dirAPres2dwi"),
    ],
)
def test_mask_of_bids_has_all_of_the_case_id(name, case):
    assert bids_case_id(name) == bids_case_id(case) == case
    mask = Path(f"{mask_stem(case, 'bids')}.nii.gz")
    assert case_and_kind(mask) == (case, "mask")
    assert mask.parts[0] == "sub-01"
    assert mask.parent.name == "anat"


@pytest.mark.parametrize("name", ["a_FLAIR", "sub-", "sub-P-1_FLAIR", "xsub-1_FLAIR"])
def test_case_id_without_a_subject_is_an_error(name):
    with pytest.raises(DatasetError, match="no subject"):
        bids_case_id(name)


def test_longest_case_id_has_a_mask_that_file_systems_can_store():
    case = "sub-1_" + "x" * (MAX_ID_BYTES - 6)
    mask = Path(f"{mask_stem(case, 'bids')}.nii.gz").name
    assert len(f".xxxxxxxx-{mask}") <= 255
