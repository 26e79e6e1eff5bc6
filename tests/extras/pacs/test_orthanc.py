"""Predict the series of a real PACS: Orthanc with its DICOMweb plugin, on free ports.

On Debian: apt-get install orthanc orthanc-dicomweb dcmtk.
"""

import json
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lesionseg.errors import SOME_FAILED, ResourceError
from lesionseg.extras.pacs.dicomweb import PASSWORD, USER, DicomWeb
from lesionseg.extras.pacs.outputs import read_sent
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.volumes import read_volume
from tests.commands import predict
from tests.inference.networks import Bright, make_bright
from tests.io.dicom_files import DX, write_dicom_file
from tests.pipeline.cases import write_dicom_series

pytestmark = pytest.mark.slow

SECRET = "s3cret-word"
SHAPE = (8, 12, 14)
FETCH = r"GET /dicom-web/studies/[\d.]+/series/[\d.]+"
STORE = "POST /dicom-web/studies"
PLUGINS = Path("/usr/share/orthanc/plugins")


@dataclass
class Pacs:
    """A PACS in a folder. `start` may follow `stop`; the images stay."""

    folder: Path
    http_port: int
    dicom_port: int
    process: subprocess.Popen | None = None

    @property
    def address(self):
        """The address of its DICOMweb service."""
        return f"dicomweb+http://localhost:{self.http_port}/dicom-web"

    def start(self):
        """Start the server and wait until it answers."""
        settings = {
            "StorageDirectory": str(self.folder / "images"),
            "IndexDirectory": str(self.folder / "images"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "PACS",
            "MaximumStorageCacheSize": 0,
            "RemoteAccessAllowed": True,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {"night": SECRET},
            "Plugins": [str(PLUGINS)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self.folder.mkdir(exist_ok=True)
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "log").open("a") as log:
            command = ["Orthanc", "--verbose", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for port in (self.http_port, self.dicom_port):
            deadline = time.monotonic() + 600
            while not is_listening(port):
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.1)

    def stop(self):
        """Stop the server."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def receive(self, folder):
        """Send the DICOM files of a folder to the PACS by C-STORE."""
        receiver = ["-aec", "PACS", "localhost", str(self.dicom_port)]
        command = ["storescu", *receiver, "+sd", "+r", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    def client(self):
        """Return a client of dicomweb-client."""
        return DicomWeb("input", self.address)._client

    def instances(self, modality):
        """Fetch all instances of a modality. Return them by SOP Instance UID."""
        client = self.client()
        instances = {}
        for item in client.search_for_series(search_filters={"Modality": modality}):
            study = item["0020000D"]["Value"][0]
            series = item["0020000E"]["Value"][0]
            for instance in client.retrieve_series(study, series):
                instances[instance.SOPInstanceUID] = instance
        return instances

    def requests(self, pattern):
        """Return the requests in the server's log that match a pattern."""
        log = (self.folder / "log").read_text(errors="replace")
        return re.findall(rf"\(http\) {pattern}$", log, re.MULTILINE)


def is_listening(port):
    """Return True if a program listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def find_free_ports(n):
    """Return ports that no program uses."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def pacs(tmp_path, monkeypatch):
    """Start an empty PACS. The environment has the password."""
    for program in ("Orthanc", "storescu"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install orthanc dcmtk")
    if not (PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("Orthanc has no DICOMweb: apt-get install orthanc-dicomweb")
    pytest.importorskip("dicomweb_client")
    monkeypatch.setenv(USER, "night")
    monkeypatch.setenv(PASSWORD, SECRET)
    server = Pacs(tmp_path / "pacs", *find_free_ports(2))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def predict_night(plan, tmp_path):
    """Return a function that predicts an input into the folder `results`."""
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "bundle", Bright(), mine, "")

    def run(source, **settings):
        return predict(
            tmp_path / "bundle",
            source,
            tmp_path / "results",
            device="cpu",
            architectures={"mine": make_bright},
            **{"dicom_output": "all"} | settings,
        )

    return run


def make_image(patient):
    """Make an image of noise with one bright lesion, whose place depends on the patient."""
    image = np.random.default_rng(patient).normal(100, 3, SHAPE)
    image[2:4, 2 : 2 + patient + 3, 3:8] += 90
    return image


def write_series(folder, patient, modality="MR"):
    """Write a patient's series. Return its UID."""
    uid = f"1.2.{patient}.{'3' if modality == 'MR' else '4'}"
    write_dicom_series(
        folder,
        make_image(patient),
        uid,
        prefix=f"{uid}_",
        Modality=modality,
        PatientID=f"ID{patient}",
        PatientName=f"Miller^{patient}",
        StudyDate="20260107",
        StudyInstanceUID=f"1.2.{patient}",
    )
    return uid


def test_results_of_a_night_are_in_the_pacs_once(pacs, predict_night, tmp_path):
    uids = [write_series(tmp_path / "scans", patient) for patient in (1, 2)]
    write_series(tmp_path / "scans", 1, modality="CT")
    for n in range(2):
        write_dicom_file(
            tmp_path / f"scans/film{n}.dcm",
            np.ones((9, 9), np.uint16),
            DX,
            Modality="DX",
            PatientID="ID9",
            StudyInstanceUID="1.2.9",
            SeriesInstanceUID="1.2.9.1",
        )
    pacs.receive(tmp_path / "scans")
    night = f"{pacs.address}?Modality=MR&StudyDate=20260101-20260131"
    outcome = predict_night(night, send=pacs.address)
    assert {row.case for row in outcome.rows} == {*uids}
    assert all(row.is_done and not row.message for row in outcome.rows)
    assert outcome.exit_status == 0
    assert {*outcome.sent} == {*uids}

    # the fetched images equal those that were sent, and none of them is left
    results = tmp_path / "results"
    mask = read_volume(results / f"{uids[0]}_mask.nii.gz").array[0]
    assert mask[2:4, 3:4, 4:7].all()
    assert not [*results.rglob("*.fetched")]
    local = {each.SOPInstanceUID: each for each in map(pydicom.dcmread, results.glob("*.dcm"))}
    segmentations = pacs.instances("SEG")
    assert segmentations.keys() | pacs.instances("SR").keys() == local.keys()
    for uid, segmentation in segmentations.items():
        assert np.array_equal(segmentation.pixel_array, local[uid].pixel_array)
    record = read_sent(results / f"{uids[0]}_sent.json")
    assert {*record[pacs.address]} <= local.keys()
    assert len(record[pacs.address]) == 2

    # the same night again: nothing is fetched, predicted or stored
    fetched = pacs.requests(FETCH)
    stored = pacs.requests(STORE)
    assert len(stored) == len(uids)
    files = {file: file.read_bytes() for file in results.glob("1.2.*")}
    again = predict_night(night, send=pacs.address)
    assert all(row.is_unchanged for row in again.rows)
    assert again.sent == again.unsent == ()
    assert pacs.requests(FETCH) == fetched
    assert pacs.requests(STORE) == stored
    assert {file: file.read_bytes() for file in results.glob("1.2.*")} == files

    # all series: results are not scans, radiographs are known without fetching them
    rows = predict_night(pacs.address, send=pacs.address).rows
    assert {row.case: row.status for row in rows if row.case.startswith("1.2.9")} == {
        row.case: "skipped" for row in rows if "radiograph" in row.message
    }
    assert sum(row.case.startswith("1.2.9.1_") for row in rows) == 2
    assert sum(row.is_done for row in rows) == 3

    for file in (results / "predictions.csv", results / "predictions.log"):
        assert SECRET not in file.read_text()
        assert "Miller" not in file.read_text()


def test_series_with_a_later_slice_is_predicted_and_stored_again(pacs, predict_night, tmp_path):
    uid = write_series(tmp_path / "scans", 1)
    late = (tmp_path / f"scans/{uid}_007.dcm").rename(tmp_path / "late.dcm")
    pacs.receive(tmp_path / "scans")
    predict_night(pacs.address, send=pacs.address)
    pacs.receive(late)
    outcome = predict_night(f"{pacs.address}/studies/1.2.1/series/{uid}", send=pacs.address)
    assert outcome.sent == (uid,)
    assert not outcome.rows[0].is_unchanged
    assert len(pacs.instances("SEG")) == 2
    record = read_sent(tmp_path / f"results/{uid}_sent.json")
    new = pydicom.dcmread(tmp_path / f"results/{uid}_seg.dcm").SOPInstanceUID
    assert new in record[pacs.address]
    assert len(record[pacs.address]) == 2


def test_wrong_password_is_refused_and_not_shown(pacs, predict_night, tmp_path, monkeypatch):
    write_series(tmp_path / "scans", 1)
    pacs.receive(tmp_path / "scans")
    monkeypatch.setenv(PASSWORD, "wr0ng")
    with pytest.raises(ResourceError, match=USER) as error:
        predict_night(pacs.address)
    assert "wr0ng" not in str(error.value)
    # a netrc file is used if the environment has no password
    monkeypatch.delenv(PASSWORD)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine localhost login night password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert predict_night(pacs.address).exit_status == 0


def test_stopped_server_fails_the_remaining_scans_and_the_command_continues(
    pacs, predict_night, tmp_path
):
    uids = {write_series(tmp_path / "scans", patient) for patient in range(1, 6)}
    pacs.receive(tmp_path / "scans")

    def stop(*_):
        pacs.stop()

    outcome = predict_night(pacs.address, send=pacs.address, progress=stop)
    assert {row.case for row in outcome.rows} == uids
    done = {row.case for row in outcome.rows if row.is_done}
    failed = {row.case for row in outcome.rows if row.status == "failed"}
    assert 0 < len(done) < len(uids)
    assert done | failed == uids
    assert outcome.exit_status == SOME_FAILED
    with pytest.raises(ResourceError, match="reached"):
        predict_night(pacs.address)
    pacs.start()
    outcome = predict_night(pacs.address, send=pacs.address)
    assert outcome.exit_status == 0
    assert {row.case for row in outcome.rows if row.is_unchanged} == done
    assert len(pacs.instances("SEG")) == len(uids)
    assert not [*(tmp_path / "results").glob("*_failed.json")]


def test_scan_that_cannot_be_fetched_fails_alone(pacs, predict_night, tmp_path):
    bad, good = (write_series(tmp_path / "scans", patient) for patient in (1, 2))
    pacs.receive(tmp_path / "scans")
    identifier = pydicom.dcmread(tmp_path / f"scans/{bad}_003.dcm").SOPInstanceUID
    for file in (pacs.folder / "images").rglob("*-*-*"):
        if file.is_file() and identifier.encode() in file.read_bytes():
            file.unlink()  # the index of the PACS still states the image
    outcome = predict_night(pacs.address)
    assert {row.case: row.status for row in outcome.rows} == {bad: "failed", good: "done"}
