"""`predict names=bids` writes a BIDS derivative, which the BIDS reader and `evaluate` read."""

import json
import os
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

import lesionseg
from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError
from lesionseg.io.layouts import read_dataset
from lesionseg.io.results.index import find_predictions, list_predictions
from lesionseg.io.results.names import mask_stem
from lesionseg.io.text import read_json
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.reporting.images import CaseFolders
from tests.commands import evaluate, predict
from tests.inference.networks import make_bright
from tests.pipeline.cases import boxes, statuses, write_array

SHAPE = (12, 18, 20)
ROOT = Path(__file__).parents[2]
PEERS = Path(os.environ.get("LESIONSEG_PEERS", ROOT / ".peers"))
VALIDATOR = PEERS / "bin" / "bids-validator-deno"


def run(bundle, source, output, **options):
    options = {"names": "bids", **options}
    return predict(bundle, source, output, architectures={"mine": make_bright}, **options)


@pytest.fixture
def scan(rng, tmp_path):
    """Return a volume with two bright lesions."""
    image = rng.normal(100, 3, SHAPE) + 70 * boxes(SHAPE, (3, 4, 5, 3), (8, 10, 12, 4))
    write_array(tmp_path / "scan.nii.gz", image.astype(np.float32))
    return read_volume(tmp_path / "scan.nii.gz")


CASES = ("sub-1_ses-a_FLAIR", "sub-1_ses-b_acq-3d_run-1_FLAIR", "sub-2_FLAIR", "sub-2_T2w")


@pytest.fixture
def bids(tmp_path, scan):
    """Write a BIDS folder of a subject with two sessions, and of a subject with two images."""
    root = tmp_path / "bids"
    for name in CASES:
        sessions = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
        folder = root.joinpath(*sessions, "anat")
        folder.mkdir(parents=True, exist_ok=True)
        write_volume(folder / f"{name}.nii.gz", scan)
    return root


def test_masks_are_a_bids_derivative_with_sidecars_that_state_the_scans(bundle, bids):
    out = bids / "derivatives" / "lesionseg"
    assert statuses(run(bundle, bids, out)) == dict.fromkeys(CASES, "done")
    description = read_json(out / "dataset_description.json")
    assert description["DatasetType"] == "derivative"
    made_by = {"Name": "lesionseg", "Version": lesionseg.__version__}
    assert description["GeneratedBy"] == [made_by]
    masks = sorted(file.relative_to(out).as_posix() for file in out.rglob("*_mask.nii.gz"))
    name = "space-orig_label-lesion_desc"
    assert masks == [
        f"sub-1/ses-a/anat/sub-1_ses-a_{name}-FLAIR_mask.nii.gz",
        f"sub-1/ses-b/anat/sub-1_ses-b_acq-3d_run-1_{name}-FLAIR_mask.nii.gz",
        f"sub-2/anat/sub-2_{name}-FLAIR_mask.nii.gz",
        f"sub-2/anat/sub-2_{name}-T2w_mask.nii.gz",
    ]
    place = "../../sub-2/anat/sub-2_T2w.nii.gz"  # from the folder of results
    sidecar = {"SpatialReference": place, "Sources": [place], "Type": "Lesion"}
    assert read_json(out / masks[-1].replace(".nii.gz", ".json")) == sidecar
    files = find_predictions(out)["sub-2_T2w"]
    assert files.mask == out / masks[-1]
    np.testing.assert_array_equal(read_volume(files.mask).array[0], files.read().mask())
    patterns = (out / ".bidsignore").read_text().split()
    others = [file.name for file in out.iterdir() if file.is_file() and file.name[0] != "."]
    others.remove("dataset_description.json")
    assert [name for name in others if not any(fnmatch(name, p) for p in patterns)] == []
    assert set(statuses(run(bundle, bids, out)).values()) == {"kept"}


def test_bids_reader_evaluate_and_pictures_take_the_results_as_those_of_a_session(
    out, bundle, bids, tmp_path
):
    shutil.rmtree(bids / "sub-1" / "ses-b")
    flair = f"{bids}/sub-*/**/*_FLAIR.nii.gz"
    run(bundle, flair, bids / "derivatives" / "lesionseg")
    first, second = read_dataset(bids).cases  # the predicted masks are its references
    assert (first.case, second.case) == ("sub-1_ses-a", "sub-2")
    assert first.reference.name.endswith("desc-FLAIR_mask.nii.gz")
    run(bundle, flair, out)
    scored = evaluate(bids, out, tmp_path / "scores", replicates=0)
    assert scored.scores["lesion_recall"].value == 1
    assert scored.scores["n_cases"].value == 2
    assert CaseFolders(bids, prediction=out).load("sub-2").prediction is not None


@pytest.mark.parametrize(
    ("reference", "names", "found"),
    [
        ("sub-1", "sub-1_FLAIR", "sub-1"),
        ("sub-1_ses-a", "sub-1_ses-a_FLAIR sub-1_ses-b_FLAIR", "sub-1_ses-a sub-1_ses-b_FLAIR"),
        ("sub-1_FLAIR", "sub-1_FLAIR", "sub-1_FLAIR"),
        # it is not known which one is meant
        ("sub-1", "sub-1_FLAIR sub-1_T2w", "sub-1_FLAIR sub-1_T2w"),
    ],
)
def test_only_prediction_of_a_session_gets_its_id(tmp_path, reference, names, found):
    for name in names.split():
        mask = tmp_path / f"{mask_stem(name, 'bids')}.nii.gz"
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.touch()
    by_case, _ = list_predictions(tmp_path, [CaseFiles(reference, ())])
    assert [*by_case] == found.split()


def test_scan_of_another_format_gets_a_nifti_mask(out, bundle, scan, tmp_path):
    (tmp_path / "in" / "sub-3").mkdir(parents=True)
    write_volume(tmp_path / "in" / "sub-3" / "FLAIR.mha", scan)
    run(bundle, tmp_path / "in", out)
    files = find_predictions(out)["sub-3_FLAIR"]
    assert files.mask.name == "sub-3_space-orig_label-lesion_desc-FLAIR_mask.nii.gz"
    assert any(candidate.accepted for candidate in files.read().candidates)


def test_bids_names_need_a_subject(out, bundle, scan, tmp_path):
    folder = tmp_path / "in"
    for name in ("a", "sub-P-1_FLAIR"):
        folder.mkdir(exist_ok=True)
        write_volume(folder / f"{name}.nii.gz", scan)
    outcome = run(bundle, folder, out)
    assert statuses(outcome) == dict.fromkeys(("a", "sub-P-1_FLAIR"), "failed")
    assert all("sub-<label>" in row.message for row in outcome.rows)


def test_patient_id_needs_names_of_bids(out, bundle, bids):
    with pytest.raises(ConfigError, match="needs names=bids"):
        run(bundle, bids, out, names="lesionseg", subject="PatientID")


@pytest.mark.slow
def test_validator_of_bids_finds_no_error(out, bundle, bids, tmp_path):
    if not VALIDATOR.exists():
        pytest.skip("the validator is not installed; make peers")
    run(bundle, bids, out, save_probabilities=True, preview=True)
    run(bundle, tmp_path / "scan.nii.gz", out)  # fails, and has a file that states it
    command = [VALIDATOR, "--format", "json", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    issues = found["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert sorted(found["summary"]["subjects"]) == ["1", "2"]
    # the description, and mask and sidecar of each scan
    assert found["summary"]["totalFiles"] == 1 + 2 * len(CASES)
