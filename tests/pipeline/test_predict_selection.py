"""Selection of the scans of an archive, and of the results that get a DICOM report."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import ConfigError
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.input_check import InputCheck
from lesionseg.io.results.index import TABLE
from lesionseg.io.text import read_csv
from tests.commands import predict
from tests.inference.networks import Bright, make_bright
from tests.io.dicom_files import CT, DX, grid_of, slice_elements, write_dicom_file
from tests.pipeline.cases import boxes, write_array, write_scan

SHAPE = (12, 18, 20)
GRID = grid_of("SPL", spacing=(2.0, 1.0, 1.0), shape=SHAPE)
VOXELS = np.random.default_rng(0).normal(100, 3, SHAPE) + 70 * boxes(SHAPE, (3, 4, 5, 3))


def write_series(folder, uid, n_slices=12, modality="MR", description="", **elements):
    for z in range(n_slices):
        write_dicom_file(
            folder / f"{z:03d}.dcm",
            VOXELS[z].astype(np.int16),
            CT,
            Modality=modality,
            SeriesInstanceUID=uid,
            SeriesNumber=3,
            SeriesDescription=description,
            RescaleSlope=1,
            RescaleIntercept=0,
            **slice_elements(GRID, z),
            **elements,
        )


def run(bundle, source, output, dicom_output=False, **options):
    """Run `predict`. Return its outcome and its rows by case."""
    outcome = predict(
        bundle,
        source,
        output,
        architectures={"mine": make_bright},
        device="cpu",
        dicom_output=dicom_output,
        **options,
    )
    return outcome, {row.case: row for row in outcome.rows}


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "archive" / "P1"
    write_series(root / "t1", "1.1", description="T1 mprage")
    write_series(root / "flair", "1.2", description="t2_FLAIR_tra")
    write_series(root / "short", "1.3", n_slices=5, description="T2 space")
    write_series(root / "ct", "1.4", modality="CT", description="Head")
    write_series(root / "loc", "1.5", n_slices=3, description="3-plane loc")
    write_series(root / "scout", "1.6", n_slices=3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(root / "lone", "1.7", n_slices=1, description="T1")
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    write_dicom_file(
        root / "film.dcm", pixels, DX, Modality="DX", SeriesInstanceUID="1.8", PixelSpacing=[1, 1]
    )
    write_array(root / "nifti.nii", VOXELS.astype(np.float32))
    flat = Geometry.from_spacing((1, 18, 20), (2.0, 1.0, 1.0))
    write_scan(root / "slice.nii.gz", flat)
    return tmp_path / "archive"


def test_localisers_single_slices_and_films_of_an_archive_are_skipped(bundle, archive, tmp_path):
    outcome, rows = run(bundle, archive, tmp_path / "out")
    predicted = {case for case, row in rows.items() if row.status == "done"}
    assert predicted == {"P1_t1", "P1_flair", "P1_short", "P1_ct", "P1_nifti"}
    skipped = {case: row.message for case, row in rows.items() if row.status == "skipped"}
    words = {
        "P1_loc": "3-plane loc",
        "P1_scout": "A localiser.",
        "P1_lone_000": "1 of at least 2 slices",
        "P1_film": "A radiograph",
        "P1_slice": "1 of at least 2 slices",
    }
    assert skipped.keys() == words.keys()
    assert all(words[case] in message for case, message in skipped.items())
    assert outcome.exit_status == 0
    assert "Skipped: 5 scans" in "\n".join(outcome.summary())
    table = {row["case"]: row for row in read_csv(tmp_path / "out" / TABLE)}
    assert table["P1_loc"]["status"] == "skipped"
    assert table["P1_loc"]["series_uid"] == "1.5"
    # A report in the archive is counted. A scan that is skipped again is logged only once.
    write_dicom_file(
        archive / "P1" / "t1" / "report.dcm", None, "1.2.840.10008.5.1.4.1.1.88.11", Modality="SR"
    )
    outcome, _ = run(bundle, archive, tmp_path / "out")
    assert any("DICOM, objects that are not images" in line for line in outcome.summary())
    log = (tmp_path / "out" / "predictions.log").read_text()
    assert log.count("P1_loc: skipped. A localiser by its description, '3-plane loc'.") == 1
    (archive / "P1" / "t1" / "report.dcm").unlink()
    run(bundle, archive, tmp_path / "out")
    assert "DICOM" not in {row["case"] for row in read_csv(tmp_path / "out" / TABLE)}


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({"modality": "mr"}, {"t1", "flair", "short", "nifti"}),
        ({"modality": ("CT", "PT")}, {"ct", "nifti"}),
        ({"description": "flair"}, {"flair", "nifti"}),
        ({"description": "^t[12] "}, {"t1", "short", "nifti"}),
        ({"description": "loc", "min_slices": 1}, {"loc", "nifti", "slice"}),
        ({"min_slices": 6}, {"t1", "flair", "ct", "nifti"}),
        ({"modality": ["MR"], "description": "t2", "min_slices": 6}, {"flair", "nifti"}),
    ],
)
def test_series_are_chosen_by_modality_description_and_slices(
    bundle, archive, tmp_path, monkeypatch, series, expected
):
    # The rows show which scans are not skipped, so no prediction is needed.
    monkeypatch.setattr(Bright, "forward", lambda *_: 1 / 0)
    _, rows = run(bundle, archive, tmp_path / "out", series=series)
    tried = {case.removeprefix("P1_") for case, row in rows.items() if row.status != "skipped"}
    assert tried == expected
    given = [key for key in series if series[key] is not None]
    messages = [row.message for row in rows.values() if "(series." in row.message]
    assert all(any(f"series.{key}" in message for message in messages) for key in given[:1])


def test_named_scan_is_predicted_even_if_it_is_a_localiser(bundle, archive, tmp_path):
    for name in ("P1/loc/series=3", "P1/lone/000.dcm"):
        _, rows = run(bundle, archive / name, tmp_path / "out")
        assert [row.status for row in rows.values()] == ["done"]
    (archive / "list.csv").write_text("case,image\nA,P1/loc\nB,P1/t1\n")
    _, rows = run(bundle, archive / "list.csv", tmp_path / "out")
    assert {case: row.status for case, row in rows.items()} == {"A": "done", "B": "done"}
    _, rows = run(bundle, archive / "list.csv", tmp_path / "other", series={"min_slices": 5})
    assert {case: row.status for case, row in rows.items()} == {"A": "skipped", "B": "done"}


def test_folder_of_skipped_scans_gives_a_table_and_status_1(bundle, archive, tmp_path):
    outcome, _ = run(bundle, archive / "P1" / "loc", tmp_path / "out")
    assert outcome.exit_status == 1
    assert [row["status"] for row in read_csv(tmp_path / "out" / TABLE)] == ["skipped"]


def test_invalid_regular_expression_is_a_wrong_setting(bundle, archive, tmp_path):
    with pytest.raises(ConfigError, match="regular expression"):
        run(bundle, archive, tmp_path / "out", series={"description": "("})


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
    make_checked_bundle, archive, tmp_path
):
    pytest.importorskip("highdicom")
    scan = archive / "P1" / "t1"
    out = tmp_path / "out"
    _, rows = run(make_checked_bundle(24.0), scan, tmp_path / "like", dicom_output=True)
    assert rows["t1"].status == "done"
    assert (tmp_path / "like" / "t1_sr.dcm").is_file()
    outcome, rows = run(make_checked_bundle(240.0), scan, out, dicom_output=True)
    assert (rows["t1"].status, outcome.exit_status) == ("warned", 0)
    assert "unlike" in rows["t1"].warning
    assert "dicom_output=all" in rows["t1"].message
    assert (out / "t1_mask.nii.gz").is_file()
    assert not list(out.glob("*.dcm"))
    # the warning remains if the result is kept
    outcome, rows = run(make_checked_bundle(240.0), scan, out, dicom_output=True)
    assert (rows["t1"].status, rows["t1"].is_unchanged) == ("warned", True)
    assert "1 kept" in outcome.summary()[0]
    _, rows = run(make_checked_bundle(240.0), scan, out, dicom_output="all")
    assert rows["t1"].status == "warned"
    assert {f.name for f in out.glob("*.dcm")} == {"t1_sr.dcm", "t1_seg.dcm"}
    # results that are no longer requested are removed
    run(make_checked_bundle(240.0), scan, out, dicom_output=True)
    assert not list(out.glob("*.dcm"))


def test_scan_without_contrast_is_blank_and_has_no_detection(bundle, tmp_path):
    folder = tmp_path / "in"
    out = tmp_path / "out"
    write_array(folder / "zero.nii", np.zeros(SHAPE, np.float32))
    write_array(folder / "hundred.nii", np.full(SHAPE, 100, np.int16))
    write_array(folder / "fine.nii", VOXELS.astype(np.float32))
    outcome, rows = run(bundle, folder, out)
    statuses = {case: row.status for case, row in rows.items()}
    assert statuses == {"zero": "blank", "hundred": "blank", "fine": "done"}
    for case in ("zero", "hundred"):
        assert rows[case].n_candidates == rows[case].n_accepted == 0
        assert rows[case].volume_ml == 0
        assert "T1 is empty" in rows[case].warning
    assert any(line.startswith("Blank: 2 scans") for line in outcome.summary())
    again, _ = run(bundle, folder, out)
    assert again.exit_status == 0
    assert {row.case: row.status for row in again.rows} == {**statuses, "fine": "kept"}


def test_a_blank_series_gets_no_dicom_results(bundle, tmp_path):
    folder = tmp_path / "in"
    for z in range(4):
        write_dicom_file(
            folder / f"{z}.dcm",
            np.full((18, 20), 7, np.int16),
            CT,
            Modality="MR",
            RescaleSlope=1,
            RescaleIntercept=0,
            **slice_elements(GRID, z),
        )
    _, rows = run(bundle, folder, tmp_path / "out", dicom_output="all")
    assert rows["in"].status == "blank"
    assert not list((tmp_path / "out").glob("*.dcm"))


def test_series_whose_headers_allow_no_dicom_results_gets_its_other_results(bundle, tmp_path):
    pytest.importorskip("highdicom")
    write_series(tmp_path / "in" / "P1", "1.1", SOPInstanceUID=None)
    out = tmp_path / "out"
    outcome, rows = run(bundle, tmp_path / "in", out, dicom_output=True)
    assert (rows["P1"].status, outcome.exit_status) == ("done", 0)
    assert rows["P1"].message.startswith("No DICOM results: P1: the headers do not allow")
    assert (out / "P1_mask.nii.gz").is_file()
    assert not list(out.glob("*.dcm"))
    _, rows = run(bundle, tmp_path / "in", out, dicom_output=True)
    assert rows["P1"].status == "kept"


def test_spacing_in_micrometres_fails_and_is_stated(bundle, tmp_path):
    micro = Geometry.from_spacing(SHAPE, (0.0015, 0.0015, 0.0015))
    write_array(tmp_path / "in" / "a.nii", VOXELS.astype(np.float32), micro)
    write_array(tmp_path / "in" / "b.nii", VOXELS.astype(np.float32))
    outcome, rows = run(bundle, tmp_path / "in", tmp_path / "out")
    assert (rows["a"].status, rows["b"].status, outcome.exit_status) == ("failed", "done", 3)
    assert "0.0015 × 0.0015 × 0.0015 mm" in rows["a"].message
    assert rows["a"].message.startswith("a.nii: ")
