"""Selection of the scans of an archive, and of the results that get a DICOM report."""

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import ConfigError
from lesionseg.io.results.index import TABLE
from lesionseg.io.text import read_csv
from tests.inference.networks import Bright
from tests.io.dicom_files import DX, grid_of, write_dicom_file
from tests.pipeline.cases import (
    boxes,
    predict_bright,
    write_array,
    write_dicom_series,
    write_scan,
)

SHAPE = (12, 18, 20)
GRID = grid_of("SPL", spacing=(2.0, 1.0, 1.0), shape=SHAPE)
VOXELS = np.random.default_rng(0).normal(100, 3, SHAPE) + 70 * boxes(SHAPE, (3, 4, 5, 3))


def write_series(folder, uid, n_slices=12, modality="MR", description="", **elements):
    facts = {"Modality": modality, "SeriesDescription": description, **elements}
    write_dicom_series(folder, VOXELS[:n_slices], uid, **facts)


def run(*paths, **options):
    """Run `predict`. Return its outcome and its rows by case."""
    outcome = predict_bright(*paths, **options)
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


def test_localisers_single_slices_and_films_of_an_archive_are_skipped(out, bundle, archive):
    outcome, rows = run(bundle, archive, out)
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
    table = {row["case"]: row for row in read_csv(out / TABLE)}
    assert (table["P1_loc"]["status"], table["P1_loc"]["series_uid"]) == ("skipped", "1.5")
    # a report in the archive is counted, and a scan that is skipped again is logged only once
    report = archive / "P1" / "t1" / "report.dcm"
    write_dicom_file(report, None, "1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    outcome, _ = run(bundle, archive, out)
    assert any("DICOM, objects that are not images" in line for line in outcome.summary())
    assert (out / "predictions.log").read_text().count("P1_loc: skipped.") == 1
    report.unlink()
    run(bundle, archive, out)
    assert "DICOM" not in {row["case"] for row in read_csv(out / TABLE)}


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({"modality": "mr"}, {"t1", "flair", "short", "nifti"}),
        ({"modality": ("CT", "PT")}, {"ct", "nifti"}),
        ({"description": "^t[12] "}, {"t1", "short", "nifti"}),
        ({"description": "loc", "min_slices": 1}, {"loc", "nifti", "slice"}),
        ({"min_slices": 6}, {"t1", "flair", "ct", "nifti"}),
        ({"modality": ["MR"], "description": "t2", "min_slices": 6}, {"flair", "nifti"}),
    ],
)
def test_series_are_chosen_by_modality_description_and_slices(
    out, bundle, archive, monkeypatch, series, expected
):
    # The rows show which scans are not skipped, so no prediction is needed.
    monkeypatch.setattr(Bright, "forward", lambda *_: 1 / 0)
    _, rows = run(bundle, archive, out, series=series)
    tried = {case.removeprefix("P1_") for case, row in rows.items() if row.status != "skipped"}
    assert tried == expected
    assert any(f"series.{next(iter(series))}" in row.message for row in rows.values())


def test_named_scan_is_predicted_even_if_it_is_a_localiser(bundle, archive, tmp_path):
    (archive / "list.csv").write_text("case,image\nA,P1/loc\nB,P1/t1\n")
    five = {"min_slices": 5}
    for number, (name, series, expected) in enumerate(
        (
            ("P1/loc/series=3", {}, ["done"]),
            ("P1/lone/000.dcm", {}, ["done"]),
            ("list.csv", {}, ["done", "done"]),
            ("list.csv", five, ["skipped", "done"]),
        )
    ):
        _, rows = run(bundle, archive / name, tmp_path / str(number), series=series)
        assert [row.status for row in rows.values()] == expected


def test_folder_of_skipped_scans_gives_a_table_and_status_1(out, bundle, archive):
    with pytest.raises(ConfigError, match="regular expression"):
        run(bundle, archive, out, series={"description": "("})
    outcome, _ = run(bundle, archive / "P1" / "loc", out)
    assert outcome.exit_status == 1
    assert [row["status"] for row in read_csv(out / TABLE)] == ["skipped"]


def test_scan_without_contrast_is_blank_and_has_no_detection(out, bundle, tmp_path):
    folder = tmp_path / "in"
    write_array(folder / "zero.nii", np.zeros(SHAPE, np.float32))
    write_array(folder / "hundred.nii", np.full(SHAPE, 100, np.int16))
    write_array(folder / "fine.nii", VOXELS.astype(np.float32))
    for fine in ("done", "kept"):
        outcome, rows = run(bundle, folder, out)
        statuses = {case: row.status for case, row in rows.items()}
        assert statuses == {"zero": "blank", "hundred": "blank", "fine": fine}
        assert outcome.exit_status == 0
    assert any(line.startswith("Blank: 2 scans") for line in outcome.summary())
    for case in ("zero", "hundred"):
        row = rows[case]
        assert (row.n_candidates, row.n_accepted, row.volume_ml) == (0, 0, 0)
        assert "T1 is empty" in row.warning
