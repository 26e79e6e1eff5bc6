"""A DICOM study in, DICOM results out, and the patient named in nothing else."""

import csv
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from lesionseg.core import Geometry
from lesionseg.errors import ConfigError
from lesionseg.inference.decision import NOT_CHECKED
from lesionseg.io.predictions import find_predictions
from lesionseg.io.volumes import read_volume
from lesionseg.pipeline.evaluate.recipe import evaluate
from lesionseg.pipeline.predict.case_writing import NO_SEGMENTATION
from lesionseg.pipeline.predict.predictions_table import PredictOutcome
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.pipeline.report.recipe import ReportSettings, report
from tests.inference.networks import Bright
from tests.io.dicom_files import CT, place, save

hd = pytest.importorskip("highdicom")

SHAPE = (10, 18, 20)
MINE = {"mine": lambda _: Bright()}
SECRET = {
    "PatientName": "SECRET^NAME",
    "PatientID": "SECRET123",
    "PatientBirthDate": "SECRET",  # what is no date is quoted by libraries
    "PatientComments": "SECRET",
    "AccessionNumber": "SECRET7",
    "StudyDate": "20240131",
}
RESULTS = ("_candidates.json", "_instances.nii.gz", "_mask.nii.gz", "_seg.dcm", "_sr.dcm")


@pytest.fixture
def scans(tmp_path: Path, rng: np.random.Generator) -> Path:
    """One oblique series, its files in no order, with two bright lesions unlike each other."""
    a = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -0.9], [0, -1.1, 0], [1.5, 0, 0]])
    grid = Geometry(SHAPE, affine)
    image = rng.normal(100, 3, SHAPE)
    image[2:5, 3:7, 4:9] += 80
    image[4, 3, 4:14] += 80
    image[7, 12:15, 15:18] += 80
    for z in range(SHAPE[0]):
        name = f"{(z * 7) % SHAPE[0]:02}.dcm"
        elements = {"Modality": "CT", **place(grid, z), **SECRET}
        with pytest.warns(UserWarning, match="Invalid value"):
            save(tmp_path / "scans" / "p01" / name, image[z].astype(np.int16), CT, **elements)
    return tmp_path / "scans"


def run(bundle: Path, scans: Path, output: Path, **options: object) -> PredictOutcome:
    return predict(bundle, scans, output, architectures=MINE, device="cpu", **options)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".csv"))


def who_writes(folder: Path, word: str, does: bool) -> list[Path]:
    """The files, scans left out, that hold a word, or those that do not."""
    files = (p for p in folder.rglob("*") if p.is_file() and "scans" not in p.parts)
    return [p for p in files if (word.encode() in p.read_bytes()) == does]


def test_segmentation_report_and_mask_agree(bundle: Path, scans: Path, tmp_path: Path) -> None:
    (row,) = run(bundle, scans, tmp_path / "out")
    assert (row.status, row.message) == ("done", "")
    assert names(tmp_path / "out") == [f"p01{name}" for name in RESULTS]
    mask = read_volume(tmp_path / "out" / "p01_mask.nii.gz")
    seg = hd.seg.segread(tmp_path / "out" / "p01_seg.dcm")
    volume = seg.get_volume(combine_segments=True)
    found = np.argwhere(volume.array)
    mm = (np.c_[found, np.ones(len(found))] @ volume.affine.T)[:, :3] * (-1, -1, 1)
    expected = mask.geometry.to_mm(np.argwhere(mask.array[0]))
    assert len(expected) > 60
    np.testing.assert_allclose(mm[np.lexsort(mm.T)], expected[np.lexsort(expected.T)], atol=0.01)
    groups = hd.sr.srread(tmp_path / "out" / "p01_sr.dcm").content
    assert len(groups.get_volumetric_roi_measurement_groups()) == row.n_accepted
    assert seg.PatientID == SECRET["PatientID"]


def test_a_second_run_keeps_both_and_a_third_makes_a_missing_one_anew(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(bundle, scans, output)
    first = {name: (output / f"p01{name}").read_bytes() for name in RESULTS[3:]}
    assert [r.status for r in run(bundle, scans, output)] == ["kept"]
    for name in first:
        (output / f"p01{name}").unlink()
        assert [r.status for r in run(bundle, scans, output)] == ["done"]
        assert (output / f"p01{name}").read_bytes() == first[name]


def test_without_a_candidate_the_table_says_why_there_is_no_segmentation(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (row,) = run(bundle, scans, output, operating_point="score:1")
    assert (row.status, row.n_accepted, row.message) == ("done", 0, NO_SEGMENTATION)
    assert (row.warning, row.input_score) == (NOT_CHECKED, None)
    assert NOT_CHECKED.encode() in (output / "p01_sr.dcm").read_bytes()
    assert "p01_seg.dcm" not in names(output)
    assert "p01_sr.dcm" in names(output)
    assert [r.status for r in run(bundle, scans, output, operating_point="score:1")] == ["kept"]
    # what an earlier run accepted does not stay
    run(bundle, scans, output)
    run(bundle, scans, output, operating_point="score:1")
    assert "p01_seg.dcm" not in names(output)


def test_dicom_results_can_be_left_out(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r'pip install .*"pydicom>=3".*dicom_output=false'):
        run(bundle, scans, tmp_path / "out")
    run(bundle, scans, tmp_path / "out", dicom_output=False)
    assert names(tmp_path / "out") == [f"p01{name}" for name in RESULTS[:3]]


def test_the_results_are_no_further_predictions(bundle: Path, scans: Path, tmp_path: Path) -> None:
    run(bundle, scans, tmp_path / "out")
    assert list(find_predictions(tmp_path / "out")) == ["p01"]


def test_the_patient_is_named_in_the_dicom_results_alone(
    bundle: Path,
    scans: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    for library in ("lesionseg", "pydicom", "highdicom"):
        caplog.set_level(logging.DEBUG, library)
    run(bundle, scans, tmp_path / "out")
    # the segmentation as the reference of its own prediction
    root = tmp_path / "dataset"
    root.mkdir()
    (root / "labels.json").write_text('{"1": "lesion"}')
    image, seg = scans / "p01", tmp_path / "out" / "p01_seg.dcm"
    (root / "manifest.csv").write_text(f"case,image,reference\np01,{image},{seg}\n")
    scores = evaluate(
        root, tmp_path / "out", tmp_path / "scores", replicates=5, images="dataset"
    ).scores
    assert scores["dice"]["mean"] == 1
    page = report(tmp_path / "scores", tmp_path / "page", report=ReportSettings(pdf=False)).page
    assert page in who_writes(tmp_path, "SECRET", False)
    told = {p.name for p in who_writes(tmp_path, "SECRET", True)}
    assert told == {"p01_seg.dcm", "p01_sr.dcm"}
    # a case that fails says why, and not who
    broken = image / "05.dcm"  # a slice from the middle
    broken.write_bytes(broken.read_bytes()[:600])
    (row,) = run(bundle, scans, tmp_path / "out")
    assert row.status == "failed"
    assert names(tmp_path / "out") == []
    assert not who_writes(tmp_path, "SECRET", True)
    assert "SECRET" not in caplog.text + "".join(capfd.readouterr())


def test_headers_that_no_result_can_be_made_from_fail_the_case_alone(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    for path in (scans / "p01").iterdir():
        header = dcmread(path)
        header.SOPClassUID = "1.2.3.4.5"
        header.save_as(path)
    (row,) = run(bundle, scans, tmp_path / "out")
    assert row.status == "failed"
    assert "dicom_output=false" in row.message
    assert names(tmp_path / "out") == []
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert "SECRET" not in str(list(csv.DictReader(file)))
