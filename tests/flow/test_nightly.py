"""Nightly predictions of a growing archive keep every result unchanged.

Each result file is compared after each night. Folders are moved and renamed, patients
share names and numbers, a file is damaged, and a night is interrupted.
"""

import multiprocessing
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.index import TABLE
from lesionseg.io.text import read_csv, read_json, write_csv, write_json
from lesionseg.io.volumes import read_volume
from lesionseg.training.tile_stream import START_METHOD
from tests.inference.networks import Bright
from tests.pipeline.cases import predict_bright, write_array, write_dicom_series

SHAPE = (8, 12, 14)


def make_lesion(patient):
    """Make the mask of a patient's only lesion. Its place identifies the patient in a result."""
    mask = np.zeros(SHAPE, dtype=bool)
    z, y, x = np.unravel_index(patient, (3, 4, 5))
    mask[2 * z : 2 * z + 2, 2 * y + 1 : 2 * y + 4, 2 * x + 1 : 2 * x + 4] = True
    return mask


def make_image(patient):
    """Make an image of noise in which the patient's lesion is bright."""
    noise = np.random.default_rng(patient).normal(100, 3, SHAPE)
    return noise + 90 * make_lesion(patient)


def write_nifti(path, patient):
    """Write the patient's image as a NIfTI file. Return the path."""
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    write_array(path, make_image(patient).astype(np.float32), geometry)
    return path


def write_series(folder, patient):
    """Write the patient's image as a DICOM series.

    Series number and file names are the same for all patients.
    """
    facts = {"PatientID": f"secret{patient}", "StudyInstanceUID": f"1.2.{patient}"}
    facts |= {"SeriesDescription": "FLAIR", "StudyDate": f"202601{patient + 1:02d}"}
    facts |= {"Manufacturer": "ACME", "StationName": f"MR{patient}"}
    write_dicom_series(folder, make_image(patient), f"1.2.{patient}.3", "IM", **facts)


@dataclass
class NightlyOutput:
    """An output folder, and the results that it must contain after each night.

    Attributes:
        bundle: folder of the model.
        folder: output folder.
        architecture: type of the model's network.
        patients: the patient of each case with results.
        files: the content of each result file by name.
    """

    bundle: Path
    folder: Path
    architecture: type[Bright] = Bright
    patients: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def predict_night(self, source, *, new=(), gone=(), failed=(), status=0):
        """Predict a folder. Check the statuses of its cases, and that older results are unchanged.

        Args:
            source: folder of the scans.
            new: pairs of case and patient that are predicted for the first time.
            gone: cases with results whose scans are gone. The results of the others are kept.
            failed: cases that fail.
            status: expected exit status.
        """
        outcome = self.predict(source)
        expected = dict.fromkeys(self.patients.keys() - {*gone}, "kept")
        expected |= dict.fromkeys(dict(new), "done") | dict.fromkeys(failed, "failed")
        assert {row.case: row.status for row in outcome.rows} == expected
        assert outcome.exit_status == status
        self.store_results(new)
        self.check_results()

    def predict(self, source):
        """Predict a folder. Return the outcome."""
        own = {"mine": lambda _: self.architecture()}
        return predict_bright(self.bundle, source, self.folder, architectures=own)

    def store_results(self, new):
        """Store the files of new results, given as pairs of case and patient."""
        for case, patient in new:
            assert case not in self.patients
            self.patients[case] = patient
            for kind in ("mask.*", "instances.*", "candidates.json"):
                (file,) = self.folder.glob(f"{case}_{kind}")
                self.files[file.name] = file.read_bytes()

    def check_results(self):
        """Check that the folder and its table contain exactly the stored results."""
        results = {
            f.name: f.read_bytes() for f in self.folder.iterdir() if "_failed." not in f.name
        }
        results = {n: file for n, file in results.items() if not n.startswith("predictions")}
        assert results == self.files
        rows = [row for row in read_csv(self.folder / TABLE) if row["status"] != "failed"]
        assert {row["case"] for row in rows} == self.patients.keys()
        for row in rows:
            case = row["case"]
            mask = read_volume(next(self.folder.glob(f"{case}_mask.*"))).array[0] > 0
            lesion = make_lesion(self.patients[case])
            dice = 2 * (mask & lesion).sum() / (mask.sum() + lesion.sum())
            assert dice > 0.5, f"{case} is not of patient {self.patients[case]}"
            source = read_json(self.folder / f"{case}_candidates.json")["source"]
            assert (source["digest"], source.get("series_uid", "")) == (
                row["digest"],
                row["series_uid"],
            )


@pytest.fixture
def output(plan, tmp_path):
    """Write a bundle. Return an empty output folder for it."""
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "bundle", Bright(), mine, "")
    return NightlyOutput(tmp_path / "bundle", tmp_path / "results")


class StopsAfterFirstCase(Bright):
    """A network that predicts the only tile of the first case and never ends the second one."""

    n_tiles = 0

    def forward(self, image):
        self.n_tiles += 1
        if self.n_tiles > 1:
            time.sleep(3600)
        return super().forward(image)


def kill_after_first_case(output, source):
    """Start a prediction in a separate process. Kill it when its first case is written."""
    before = {*output.folder.glob("*_candidates.json")}
    stopping = replace(output, architecture=StopsAfterFirstCase)
    context = multiprocessing.get_context(START_METHOD)
    process = context.Process(target=stopping.predict, args=(source,))
    process.start()
    deadline = time.monotonic() + 900
    while {*output.folder.glob("*_candidates.json")} == before and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()


def test_results_stay_unchanged_while_an_archive_grows_and_is_reorganised(output, tmp_path):
    root = tmp_path / "archive"
    first, second = "2026-01-01_P001_FLAIR", "2026-01-02_P002_FLAIR"
    # nights 1 to 4: folders are added, and their series have the same names
    write_series(root / "2026-01-01" / "P001" / "FLAIR", 1)
    output.predict_night(root, new=[(first, 1)])
    write_series(root / "2026-01-02" / "P002" / "FLAIR", 2)
    write_nifti(root / "2026-01-02" / "P003" / "FLAIR.nii.gz", 3)
    output.predict_night(root, new=[(second, 2), ("2026-01-02_P003_FLAIR", 3)])
    output.predict_night(root)
    write_series(root / "2026-01-04" / "P001" / "FLAIR", 4)  # the second visit of P001
    output.predict_night(root, new=[("2026-01-04_P001_FLAIR", 4)])

    # nights 5 to 8: the first day is moved away, another patient gets its path, and it returns
    shutil.move(root / "2026-01-01", tmp_path / "old")
    output.predict_night(root, gone=[first])
    write_series(root / "2026-01-01" / "P001" / "FLAIR", 5)
    output.predict_night(root, failed=[first], status=3)
    output.predict_night(root, failed=[first])  # a known failure
    shutil.rmtree(root / "2026-01-01")
    shutil.move(tmp_path / "old", root / "2026-01-01")
    output.predict_night(root)

    # night 9: a renamed folder has a new id, and the old result stays
    (root / "2026-01-02" / "P002").rename(root / "2026-01-02" / "P020")
    output.predict_night(root, new=[("2026-01-02_P020_FLAIR", 2)], gone=[second])
    # night 10: another patient gets the old path
    write_series(root / "2026-01-02" / "P002" / "FLAIR", 6)
    output.predict_night(root, failed=[second], status=3)
    shutil.rmtree(root / "2026-01-02" / "P002")

    # nights 11 to 13: a file is damaged, is a known failure, and is copied again
    damaged = write_nifti(root / "2026-01-11" / "P007" / "FLAIR.nii.gz", 7)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    name = "2026-01-11_P007_FLAIR"
    for status in (3, 0):
        output.predict_night(root, gone=[second], failed=[name], status=status)
    damaged.write_bytes(content)
    output.predict_night(root, new=[(name, 7)], gone=[second])
    rows = [row for row in read_csv(output.folder / TABLE) if row["case"] == name]
    assert [row["status"] for row in rows] == ["done"]

    # night 14: the prediction is killed; its finished scans are gone before night 15
    started = {f"2026-01-14_P{patient:03d}_FLAIR": patient for patient in (9, 10, 11)}
    for patient in started.values():
        write_series(root / "2026-01-14" / f"P{patient:03d}" / "FLAIR", patient)
    kill_after_first_case(output, root)
    PredictionFolder(output.folder).recover_all()  # a complete result may not yet be in its place
    (file,) = output.folder.glob("2026-01-14*_candidates.json")
    finished = file.name.removesuffix("_candidates.json")
    # all its files are written, but the table may lack its row
    output.store_results([(finished, started.pop(finished))])
    shutil.rmtree(root / "2026-01-14" / finished.split("_")[1])
    output.predict_night(root, new=started.items(), gone=[second, finished])

    # night 16: the table is deleted; the next run writes it again and predicts nothing
    before = read_lasting_cells(output.folder)
    assert {row["status"] for row in before} == {"kept", "failed"}
    (output.folder / TABLE).unlink()
    rows = output.predict(root).rows
    assert {row.status for row in rows} == {"kept"}
    assert 0 < len(rows) < len(output.patients)
    output.check_results()
    assert read_lasting_cells(output.folder) == before
    for file in output.folder.iterdir():
        assert b"secret" not in file.read_bytes()


def read_lasting_cells(folder):
    """Read a table without the cells that only the run itself knows. `done` becomes `kept`."""
    rows = read_csv(folder / TABLE)
    for row in rows:
        for column in ("seconds", "peak_memory_mb", "state"):
            del row[column]
        row["status"] = row["status"].replace("done", "kept")
    return rows


def test_results_of_a_version_without_date_and_scanner_are_kept(output, tmp_path):
    write_series(tmp_path / "in" / "P1", 1)
    output.predict_night(tmp_path / "in", new=[("P1", 1)])
    file = output.folder / "P1_candidates.json"
    content = read_json(file)
    assert content["row"].pop("acquired") == "2026-01-02"
    assert content["row"].pop("scanner") == "ACME, MR1"
    write_json(file, content)
    table = output.folder / TABLE
    earlier = [
        {name: cell for name, cell in row.items() if name not in ("acquired", "scanner")}
        for row in read_csv(table)
    ]
    write_csv(table, earlier, list(earlier[0]))
    (row,) = output.predict(tmp_path / "in").rows
    assert (row.status, row.is_unchanged) == ("kept", True)
    (cells,) = read_csv(table)
    assert (cells["acquired"], cells["scanner"], cells["seconds"] != "") == ("", "", True)
    assert read_json(file) == content
