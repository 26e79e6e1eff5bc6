"""`predict` writes the DICOM results of a case with its other files, and sends them to a PACS."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.errors import SOME_FAILED, ConfigError, DatasetError, ResourceError
from lesionseg.extras.pacs import DicomOutputs, DicomWeb
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.input_check import InputCheck
from lesionseg.io.results import PredictionFolder
from lesionseg.io.text import read_csv
from lesionseg.io.volumes import read_volume
from tests.commands import predict
from tests.inference.networks import Bright
from tests.inference.nnunet.small_models import SmallModel
from tests.pipeline.cases import write_array, write_dicom_series
from tests.pipeline.test_predict_selection import VOXELS, run, write_series

hd = pytest.importorskip("highdicom")

ADDRESS = "dicomweb://pacs.example.org/dicom-web"
FILES = ["P1_seg.dcm", "P1_sr.dcm", "P2_seg.dcm", "P2_sr.dcm"]


@pytest.fixture
def predict_series(bundle, tmp_path):
    """Return a function that predicts the folder `in`, by default into `out` with DICOM results.

    It returns the outcome and its rows by case.
    """

    def run_in(source="in", output="out", **settings):
        settings = {"dicom_output": True, **settings}
        return run(bundle, tmp_path / source, tmp_path / output, **settings)

    return run_in


@pytest.fixture
def stored(monkeypatch):
    """Replace the server by a list of the names of the files that it gets."""
    pytest.importorskip("dicomweb_client")
    names = []

    def store(_, files):
        names.extend(file.name for file in files)
        return [file.name for file in files]

    monkeypatch.setattr(DicomWeb, "store", store)
    return names


def write_patients(folder, *cases):
    """Write a series of each patient."""
    for case in cases:
        write_series(folder / case, f"1.{case[1]}")


@pytest.fixture
def make_checked_bundle(bundle, plan, tmp_path):
    """Return a function that writes a bundle trained on scans of the given extent along S."""

    def make(middle):
        name = "log extent along S in mm"
        check = InputCheck(medians={name: np.log(middle)}, tolerances={name: 0.5})
        mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
        folder = tmp_path / f"bundle{middle}"
        write_bundle(folder, Bright(), mine, "", check)
        return folder

    return make


def test_scan_unlike_the_training_scans_gets_dicom_results_only_on_request(
    make_checked_bundle, tmp_path
):
    scan = tmp_path / "t1"
    write_series(scan, "1.1")
    out = tmp_path / "out"
    _, rows = run(make_checked_bundle(24.0), scan, tmp_path / "like", dicom_output=True)
    assert rows["t1"].status == "done"
    assert (tmp_path / "like/t1_sr.dcm").is_file()
    unlike = make_checked_bundle(240.0)
    files = ["t1_seg.dcm", "t1_sr.dcm"]
    # the warning remains if the result is kept; results that are no longer requested are removed
    for dicom_output, written, is_kept in (
        (True, [], False),
        (True, [], True),
        ("all", files, False),
        (True, [], False),
    ):
        outcome, rows = run(unlike, scan, out, dicom_output=dicom_output)
        assert (rows["t1"].status, outcome.exit_status) == ("warned", 0)
        assert rows["t1"].is_unchanged == is_kept
        assert "unlike" in rows["t1"].warning
        assert ("dicom_output=all" in rows["t1"].message) == (not written)
        assert (out / "t1_mask.nii.gz").is_file()
        assert sorted(file.name for file in out.glob("*.dcm")) == written


def test_night_of_scans_unlike_the_training_scans_ends_with_3_once(make_checked_bundle, tmp_path):
    unlike = make_checked_bundle(240.0)
    archive = tmp_path / "in"
    out = tmp_path / "out"
    write_patients(archive, "P1", "P2", "P3")
    outcome, _ = run(unlike, archive, out, dicom_output=True)
    assert outcome.exit_status == 3
    assert outcome.summary()[-1] in (out / "predictions.log").read_text()
    outcome, _ = run(unlike, archive, out, dicom_output=True)  # the same night again
    assert outcome.exit_status == 0
    for case in "abc":
        write_array(tmp_path / f"nifti/{case}.nii", VOXELS.astype(np.float32))
    for source, dicom_output in (("in", False), ("nifti", True)):
        other = tmp_path / f"{source} {dicom_output}"
        outcome, _ = run(unlike, tmp_path / source, other, dicom_output=dicom_output)
        assert outcome.exit_status == 0


def test_a_blank_series_gets_no_dicom_results(predict_series, tmp_path):
    write_dicom_series(tmp_path / "in", np.full((4, 18, 20), 7), "1.1")
    _, rows = predict_series(dicom_output="all")
    assert rows["in"].status == "blank"
    assert not list((tmp_path / "out").glob("*.dcm"))


def test_series_whose_headers_allow_no_dicom_results_gets_its_other_results(
    predict_series, tmp_path
):
    write_series(tmp_path / "in/P1", "1.1", SOPInstanceUID=None)
    outcome, rows = predict_series()
    assert (rows["P1"].status, outcome.exit_status) == ("done", 0)
    assert rows["P1"].message.startswith("No DICOM results: P1: the headers do not allow")
    assert (tmp_path / "out/P1_mask.nii.gz").is_file()
    assert not list(tmp_path.glob("out/*.dcm"))
    _, rows = predict_series()
    assert rows["P1"].status == "kept"


def test_series_segmented_by_an_nnunet_model_gives_a_dicom_segmentation(tmp_path):
    model = SmallModel().write(tmp_path / "results")
    write_series(tmp_path / "in/P1", "1.2")
    predict(model, tmp_path / "in", tmp_path / "out", device="cpu")
    mask = read_volume(tmp_path / "out/P1_mask.nii.gz").array[0]
    assert mask.any()
    written = hd.seg.segread(tmp_path / "out" / FILES[0]).get_volume(combine_segments=True)
    assert (written.array > 0).sum() == (mask > 0).sum()


@pytest.mark.parametrize(("settings", "sent"), [({"send": ADDRESS}, ()), ({}, None)])
def test_sending_of_scans_that_are_not_dicom_states_that_nothing_was_sent(
    predict_series, tmp_path, settings, sent
):
    pytest.importorskip("dicomweb_client")
    write_array(tmp_path / "in/a.nii", VOXELS.astype(np.float32))
    outcome, _ = predict_series(**settings)
    assert (outcome.sent, outcome.unsent) == (sent, ())
    assert ("Sent: the DICOM results of 0 cases." in outcome.summary()) == (sent is not None)


def test_results_that_wait_are_sent_although_no_scan_is_found(predict_series, tmp_path, stored):
    write_patients(tmp_path / "in", "P1", "P2")
    predict_series()
    (tmp_path / "night").mkdir()
    with pytest.raises(DatasetError, match="no image found"):
        predict_series("night", send=ADDRESS)
    assert stored == FILES


def test_results_of_new_and_kept_cases_are_sent_once_although_a_night_failed(
    predict_series, tmp_path, stored, monkeypatch
):
    def fail(*_):
        raise ResourceError("The server cannot be reached.")

    write_patients(tmp_path / "in", "P1")
    with monkeypatch.context() as patch:
        patch.setattr(DicomWeb, "store", fail)
        outcome, rows = predict_series(send=ADDRESS)
    assert (outcome.unsent, outcome.exit_status) == (("P1",), SOME_FAILED)
    assert rows["P1"].is_done
    (row,) = read_csv(tmp_path / "out/predictions.csv")
    assert "reached" in row["message"]
    write_patients(tmp_path / "in", "P2")
    for sent in (("P1", "P2"), ()):
        outcome, _ = predict_series(send=ADDRESS)
        assert (outcome.sent, outcome.exit_status, stored) == (sent, 0, FILES)


def test_results_that_another_process_wrote_are_sent(predict_series, tmp_path, stored):
    """The processes of Ray write the results, and the one that started them sends them."""
    write_patients(tmp_path / "in", "P1")
    predict_series()
    DicomOutputs(True, ADDRESS).after_commit("P1", PredictionFolder(tmp_path / "out"))
    assert stored == FILES[:2]


@pytest.mark.slow
def test_results_of_a_cluster_are_those_of_one_machine_and_sent(
    cluster, predict_series, tmp_path, stored
):
    write_patients(tmp_path / "in", "P1", "P2")
    predict_series(output="here")
    outcome, _ = predict_series(output="there", send=ADDRESS, engine="ray")
    assert (sorted(outcome.sent), sorted(stored)) == (["P1", "P2"], FILES)
    for name in FILES:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_dicom_results_are_part_of_the_files_of_a_case(predict_series, tmp_path, monkeypatch):
    """A run that ends after they were written and before the candidate file leaves none."""
    write_patients(tmp_path / "in", "P1")
    out = tmp_path / "out"
    add_files = DicomOutputs.add_files

    def stop(self, *values):
        add_files(self, *values)
        assert {*FILES[:2]} == {file.name for file in (out / ".P1.part").iterdir()}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DicomOutputs, "add_files", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_series()
    assert not [*out.rglob("P1_*"), *out.rglob("*.dcm")]
    predict_series()
    assert {file.name for file in out.glob("*.dcm")} == {*FILES[:2]}


def test_missing_package_is_an_error_before_the_first_case(predict_series, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom.sr", None)
    write_patients(tmp_path / "in", "P1")
    with pytest.raises(ConfigError, match=r"need the package highdicom.*dicom_output=false"):
        predict_series()
    assert not [*tmp_path.glob("out/P1*")]


def test_results_without_the_extra_are_written_again_with_it(predict_series, tmp_path, monkeypatch):
    write_patients(tmp_path / "in", "P1")
    for lacks_extra, files in ((True, set()), (False, {*FILES[:2]})):
        with monkeypatch.context() as patch:
            if lacks_extra:
                patch.setattr("lesionseg.extra.find_spec", lambda _: None)
            outcome, _ = predict_series()
        assert not outcome.rows[0].is_unchanged
        assert {file.name for file in tmp_path.glob("out/*.dcm")} == files
