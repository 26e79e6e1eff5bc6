"""A month of nightly predictions: no result is lost, renamed or exchanged, by digest.

An inbox is filled and emptied, an archive grows, its folders are moved and renamed, series of one
name and number come from several patients, a file is broken, a night is interrupted.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.files import read_csv
from lesionseg.io.sources import content_digest
from lesionseg.io.volumes import read_volume
from lesionseg.pipeline.predict_tables import TABLE
from tests.commands import predict
from tests.inference.networks import Bright
from tests.io.dicom_files import CT, grid_of, slice_elements, write_dicom_file
from tests.pipeline.cases import write_array

SHAPE = (8, 12, 14)
GRID = grid_of("SPL", spacing=(2.0, 1.0, 1.0), shape=SHAPE)


def lesion(patient):
    """Each patient has a lesion of its own: by its place in the mask a result is recognised."""
    mask = np.zeros(SHAPE, dtype=bool)
    z, y, x = np.unravel_index(patient, (3, 4, 5))
    mask[2 * z : 2 * z + 2, 2 * y + 1 : 2 * y + 4, 2 * x + 1 : 2 * x + 4] = True
    return mask


def voxels(patient):
    noise = np.random.default_rng(patient).normal(100, 3, SHAPE)
    return noise + 90 * lesion(patient)


def write_nifti(path, patient):
    write_array(path, voxels(patient).astype(np.float32), Geometry.from_spacing(SHAPE, (1.0,) * 3))
    return path


def write_series(folder, patient, prefix="IM"):
    """Series number 3 of everybody, in files of the same names."""
    for z, pixels in enumerate(voxels(patient)):
        header = {"Modality": "MR", "SeriesInstanceUID": f"1.2.{patient}.3", "SeriesNumber": 3}
        header |= {"StudyInstanceUID": f"1.2.{patient}", "SeriesDescription": "FLAIR"}
        header |= {"RescaleSlope": 1, "RescaleIntercept": 0, "PatientID": f"secret{patient}"}
        header |= {"SOPInstanceUID": f"1.2.{patient}.3.{z}", **slice_elements(GRID, z)}
        write_dicom_file(folder / f"{prefix}{z:03d}.dcm", pixels.astype(np.int16), CT, **header)
    return folder


@dataclass
class Archive:
    """An output folder, and all that it must hold, by what was predicted until now."""

    bundle: Path
    output: Path
    # of each case: the patient, and the digests of its results
    results: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    n_nights: int = 0

    def night(self, source, new=(), kept=(), failed=(), status=0, **options):
        """Predict a folder; check what is new, and that nothing else has changed.

        `new`: pairs of case and patient.
        """
        outcome = self.predict(source, **options)
        found = {(row.case, row.status) for row in outcome.rows}
        expected = {(case, "done") for case, _ in new} | {(case, "kept") for case in kept}
        assert found == expected | {(case, "failed") for case in failed}
        assert outcome.exit_status == status
        self.check(new)

    def predict(self, source, **options):
        self.n_nights += 1
        how = {"device": "cpu", "dicom_output": False, **options}
        architectures = {"mine": lambda _: Bright()}
        return predict(self.bundle, source, self.output, architectures=architectures, **how)

    def check(self, new=()):
        """Check every result that was ever written by its digest, and the table."""
        for case, patient in new:
            assert case not in self.results
            self.results[case] = patient, self.digests(case)
        for case, (patient, digests) in self.results.items():
            assert self.digests(case) == digests, case
            assert len(digests) == 3
            mask = read_volume(next(self.output.glob(f"{case}_mask.*"))).array[0] > 0
            truth = lesion(patient)[: len(mask)]  # the last slice may still be on its way
            overlap = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
            assert overlap > 0.5, f"{case} is not of patient {patient}"
        known = {f"{case}_{kind}" for case in self.results for kind in ("mask", "instances")}
        known |= {f"{case}_candidates" for case in self.results}
        there = [file for file in self.output.iterdir() if not file.name.startswith("predictions")]
        assert {file.name.partition(".")[0] for file in there} == known
        done = {r["case"]: r for r in read_csv(self.output / TABLE) if r["status"] != "failed"}
        assert done.keys() == self.results.keys()
        for case, row in done.items():
            source = json.loads((self.output / f"{case}_candidates.json").read_text())["source"]
            assert source["digest"] == row["digest"]
            assert source.get("series_uid", "") == row["series_uid"]

    def digests(self, case):
        kinds = ("mask.*", "instances.*", "candidates.json")
        files = [file for kind in kinds for file in self.output.glob(f"{case}_{kind}")]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def archive(plan, tmp_path):
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "bundle", Bright(), mine, "")
    return Archive(tmp_path / "bundle", tmp_path / "results")


INTERRUPTED = """
import sys, time
from tests.commands import predict
from tests.inference.networks import Bright
class Slow(Bright):
    def forward(self, image):
        time.sleep(0.3)
        return super().forward(image)
predict(sys.argv[1], sys.argv[2], sys.argv[3], device="cpu", dicom_output=False,
        architectures={"mine": lambda _: Slow()})
"""


def interrupt(archive, source, repository):
    """Kill a run once it has written its first case."""
    before = {*archive.output.glob("*_candidates.json")}
    command = [sys.executable, "-c", INTERRUPTED, archive.bundle, source, archive.output]
    process = subprocess.Popen([str(word) for word in command], cwd=repository)
    end = time.monotonic() + 900
    while {*archive.output.glob("*_candidates.json")} == before and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_an_archive_that_grows_and_is_put_in_order(archive, tmp_path, repository):
    root = tmp_path / "archive"
    # nights 1 to 4: folders are added, with series of the same names
    write_series(root / "2026-01-01" / "P001" / "FLAIR", 1)
    archive.night(root, new=[("2026-01-01_P001_FLAIR", 1)])
    write_series(root / "2026-01-02" / "P002" / "FLAIR", 2)
    write_nifti(root / "2026-01-02" / "P003" / "FLAIR.nii.gz", 3)
    second = [("2026-01-02_P002_FLAIR", 2), ("2026-01-02_P003_FLAIR", 3)]
    archive.night(root, new=second, kept=["2026-01-01_P001_FLAIR"])
    archive.night(root, kept=archive.results)
    write_series(root / "2026-01-04" / "P001" / "FLAIR", 4)  # P001 comes again
    archive.night(root, new=[("2026-01-04_P001_FLAIR", 4)], kept=[*archive.results])

    # night 5: the first day is moved away; 6: a patient comes back under the same path
    shutil.move(root / "2026-01-01", tmp_path / "old")
    kept = archive.results.keys() - {"2026-01-01_P001_FLAIR"}
    archive.night(root, kept=kept)
    write_series(root / "2026-01-01" / "P001" / "FLAIR", 5)
    archive.night(root, kept=kept, failed=["2026-01-01_P001_FLAIR"], status=3)
    archive.night(root, kept=kept, failed=["2026-01-01_P001_FLAIR"])  # known by now
    shutil.rmtree(root / "2026-01-01")
    shutil.move(tmp_path / "old", root / "2026-01-01")
    archive.night(root, kept=archive.results)

    # night 9: a folder is renamed: a new id, and the old result stays
    (root / "2026-01-02" / "P002").rename(root / "2026-01-02" / "P020")
    kept = archive.results.keys() - {"2026-01-02_P002_FLAIR"}
    archive.night(root, new=[("2026-01-02_P020_FLAIR", 2)], kept=kept)
    # night 10: and another patient comes to its place
    write_series(root / "2026-01-02" / "P002" / "FLAIR", 6)
    kept = archive.results.keys() - {"2026-01-02_P002_FLAIR"}
    archive.night(root, kept=kept, failed=["2026-01-02_P002_FLAIR"], status=3)
    shutil.rmtree(root / "2026-01-02" / "P002")

    # night 11: a broken file; 12: it is known; 13: it was copied again
    broken = root / "2026-01-11" / "P007" / "FLAIR.nii.gz"
    whole = write_nifti(broken, 7).read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    write_series(root / "2026-01-11" / "P008" / "FLAIR", 8)
    name = "2026-01-11_P007_FLAIR"
    archive.night(root, new=[("2026-01-11_P008_FLAIR", 8)], kept=kept, failed=[name], status=3)
    kept = archive.results.keys() - {"2026-01-02_P002_FLAIR"}
    archive.night(root, kept=kept, failed=[name])
    broken.write_bytes(whole)
    archive.night(root, new=[(name, 7)], kept=kept)
    kept = archive.results.keys() - {"2026-01-02_P002_FLAIR"}
    assert [r["status"] for r in read_csv(archive.output / TABLE) if r["case"] == name] == ["done"]

    # night 14: interrupted by a kill, and the inbox of the night is gone before the next one
    for patient in (9, 10, 11):
        write_series(root / "2026-01-14" / f"P{patient:03d}" / "FLAIR", patient)
    interrupt(archive, root, repository)
    found = archive.output.glob("2026-01-14*_candidates.json")
    written = [file.name.removesuffix("_candidates.json") for file in found]
    assert 0 < len(written) < 3
    for patient in (9, 10, 11):
        if f"2026-01-14_P{patient:03d}_FLAIR" in written:
            shutil.rmtree(root / "2026-01-14" / f"P{patient:03d}")
    new = [(f"2026-01-14_P{patient:03d}_FLAIR", patient) for patient in (9, 10, 11)]
    for case, patient in new:
        if case in written:  # it is there, whole, though its row may be lost
            archive.results[case] = patient, archive.digests(case)
    archive.night(root, new=[pair for pair in new if pair[0] not in written], kept=kept)

    # night 16: the table is deleted: what is there is predicted again, what is not has a row
    (archive.output / TABLE).unlink()
    rows = archive.predict(root).rows
    assert {row.status for row in rows} == {"done"}
    assert 0 < len(rows) < len(archive.results)
    archive.check()
    for file in archive.output.iterdir():
        assert b"secret" not in file.read_bytes()


def test_an_inbox_that_is_emptied_each_night(archive, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()

    def empty():
        shutil.rmtree(inbox)
        inbox.mkdir()

    # scans of one name: only the first may have it, the others are not predicted and said
    write_nifti(inbox / "FLAIR.nii.gz", 1)
    archive.night(inbox, new=[("FLAIR", 1)])
    for night, patient in enumerate((2, 3, 2), start=1):
        empty()
        write_nifti(inbox / "FLAIR.nii.gz", patient)
        archive.night(inbox, failed=["FLAIR"], status=3 if night < 3 else 0)
    table = read_csv(archive.output / TABLE)
    failed = {row["digest"] for row in table if row["status"] == "failed"}
    digests = {content_digest([[write_nifti(tmp_path / "x.nii.gz", p)]]) for p in (2, 3)}
    assert failed == digests
    # the same scan again is known, whatever its date
    empty()
    write_nifti(inbox / "FLAIR.nii.gz", 1)
    os.utime(inbox / "FLAIR.nii.gz", (1, 1))
    archive.night(inbox, kept=["FLAIR"])

    # a folder per patient; names that join to the same id
    empty()
    write_series(inbox / "P1" / "FLAIR", 4)
    archive.night(inbox, new=[("P1_FLAIR", 4)])
    empty()
    write_nifti(inbox / "P1_FLAIR.nii", 5)
    write_nifti(inbox / "p1" / "flair.nii", 6)
    write_nifti(inbox / "P2" / "FLAIR.nii", 7)
    failed = ["P1_FLAIR", "p1_flair"]
    archive.night(inbox, new=[("P2_FLAIR", 7)], failed=failed, status=3)
    # alone each of them still meets the results of the other patient
    for name, case in (("P1_FLAIR.nii", "P1_FLAIR"), ("p1/flair.nii", "p1_flair")):
        empty()
        write_nifti(inbox / name, 8)
        archive.night(inbox, failed=[case], status=3)

    # DICOM files of several patients in one flat folder
    empty()
    write_series(inbox, 9, prefix="a")
    write_series(inbox, 10, prefix="b")
    rows = archive.predict(inbox).rows
    cases = {row.series_uid: row.case for row in rows}
    archive.check([(cases["1.2.9.3"], 9), (cases["1.2.10.3"], 10)])
    empty()
    write_series(inbox, 10, prefix="a")
    write_series(inbox, 11, prefix="b")
    rows = {row.series_uid: row for row in archive.predict(inbox).rows}
    assert rows["1.2.10.3"].status == "kept"
    archive.check([(rows["1.2.11.3"].case, 11)])

    # one series is sent again, complete this time
    empty()
    write_series(inbox / "P9" / "FLAIR", 12)
    last = sorted((inbox / "P9" / "FLAIR").iterdir())[-1]
    late = last.read_bytes()
    last.unlink()
    archive.night(inbox, new=[("P9_FLAIR", 12)])
    last.write_bytes(late)
    del archive.results["P9_FLAIR"]
    archive.night(inbox, new=[("P9_FLAIR", 12)])
    # overwrite=true replaces another patient's result, once and on purpose
    empty()
    write_nifti(inbox / "FLAIR.nii.gz", 13)
    del archive.results["FLAIR"]
    archive.night(inbox, new=[("FLAIR", 13)], overwrite=True)
    assert archive.n_nights >= 12
