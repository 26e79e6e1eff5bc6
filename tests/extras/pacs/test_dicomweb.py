"""DICOMweb: addresses, and wrong answers of a server in a thread.

`test_orthanc.py` runs the commands with a real server.
"""

import gc
import json
import logging
import warnings
from http.server import BaseHTTPRequestHandler
from itertools import count, repeat
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from lesionseg.config import PredictConfig
from lesionseg.errors import ConfigError, DatasetError, OutputError, ResourceError
from lesionseg.extras.pacs import DicomWeb, dicomweb
from tests.io.dicom_files import CT, write_dicom_file
from tests.io.hub_store import running_server

# dicomweb-client does not close an answer of another type
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

UID = "1.2.840.1"
STUDY = "1.2.3"
SERIES = "1.2.3.4"
IMAGES = [f"1.2.3.4.{number}" for number in range(3)]
JSON = "application/dicom+json"
PARTS = 'multipart/related; type="application/dicom"; boundary=part'


class Handler(BaseHTTPRequestHandler):
    """Answer by `answer(path, query)` of the server, or by `store(body)`. Both return a tuple.

    The tuple contains the body (bytes, blocks of bytes that are sent in chunks, or an object that
    is sent as JSON), the content type, the status and further headers. All but the body may lack.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.path)
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.send(*self.server.answer(parts.path, query))

    def do_POST(self):
        self.server.requests.append(self.path)
        self.send(*self.server.store(self.rfile.read(int(self.headers["Content-Length"]))))

    def send(self, body, kind=JSON, status=200, headers=()):
        if isinstance(body, list | dict | None):
            body = json.dumps(body).encode()
        is_whole = isinstance(body, bytes)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if is_whole:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for block in [] if is_whole else body:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            self.wfile.write(body if is_whole else b"0\r\n\r\n")
        except OSError:  # the client has left
            self.close_connection = True

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def pacs(monkeypatch):
    """Run a server without series. The client does not repeat a failed request."""
    pytest.importorskip("dicomweb_client")
    monkeypatch.setattr(dicomweb, "_ATTEMPTS", 1)
    with running_server(Handler) as server:
        server.answer = lambda path, query: ([],)
        server.handle_error = lambda *_: None  # the client has left
        server.clients = []
        yield server
        for client in server.clients:
            client._client._session.close()


@pytest.fixture(scope="module", autouse=True)
def collect():
    """Free unclosed answers before the tests of another module, which warnings fail."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def client_of(server):
    client = DicomWeb("input", f"dicomweb+http://{server.url.removeprefix('http://')}/rs")
    server.clients.append(client)
    return client


def ask(server, level, folder):
    """Search for series or images, or fetch images."""
    if level == "image":
        fetch(server, folder)
    elif level == "series":
        client_of(server).search_series()
    else:
        client_of(server).search_instances(item())


def item(series=SERIES, image=None, study=STUDY, **values):
    """Return what a server states of a series or an image."""
    uids = {"0020000D": study, "0020000E": series, "00080018": image}
    elements = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items() if uid}
    return {**elements, "00080060": {"vr": "CS", "Value": ["MR"]}, **values}


def write_image(tmp_path, uid, n_rows=1, **elements):
    """Write a DICOM file with 8 columns of pixels. Return its path."""
    elements = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES} | elements
    pixels = np.zeros((n_rows, 8), np.int16)
    path = tmp_path / f"made/{uid}.dcm"
    elements = {"SOPInstanceUID": uid, "PatientID": "P1", **elements}
    return write_dicom_file(path, pixels, CT, **elements)


def image_bytes(tmp_path, uid, **elements):
    """Return the content of a DICOM file."""
    return write_image(tmp_path, uid, **elements).read_bytes()


def as_parts(images):
    head = b"\r\n--part\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + image for image in images) + b"\r\n--part--\r\n"


def fetch(server, folder, images=IMAGES, client=None):
    files = [folder / f"{uid}.dcm" for uid in images]
    (client or client_of(server)).fetch(STUDY, SERIES, files)
    return files


@pytest.mark.parametrize(
    ("address", "url", "study_uid", "filters"),
    [
        ("dicomweb://pacs/dicom-web", "https://pacs/dicom-web", None, {}),
        ("dicomweb+https://pacs:8443/rs/", "https://pacs:8443/rs", None, {}),
        ("dicomweb+http://10.0.0.7:8042", "http://10.0.0.7:8042", None, {}),
        (f"dicomweb://pacs/rs/studies/{UID}", "https://pacs/rs", UID, {}),
        (
            f"dicomweb://pacs/rs/studies/{UID}/series/{UID}.2/",
            "https://pacs/rs",
            UID,
            {"SeriesInstanceUID": f"{UID}.2"},
        ),
        (
            "dicomweb://pacs/rs?Modality=MR&StudyDate=20260101-20260107&00081030=HEAD%20*",
            "https://pacs/rs",
            None,
            {"Modality": "MR", "StudyDate": "20260101-20260107", "00081030": "HEAD *"},
        ),
    ],
)
def test_address_states_service_study_and_filters(address, url, study_uid, filters):
    pytest.importorskip("dicomweb_client")
    service = DicomWeb("input", address)
    assert (service.address, service.url) == (address, url)
    assert (service.study_uid, service.filters) == (study_uid, filters)


@pytest.mark.parametrize(
    ("setting", "address", "word"),
    [
        ("input", "dicomweb://me:hidden@pacs/rs", "password"),
        ("input", "dicomweb://hidden@pacs/rs", "user"),
        ("send", "dicomweb://me:hidden@pacs/rs", "password"),
        ("input", "dicomweb:///rs", "address"),
        ("input", "dicomweb://:8080/rs", "address"),
        ("input", "dicomweb://me:hidden@[::1/rs", "address"),
        ("input", "dicomweb://pacs/rs#part", "address"),
        ("input", "dicomweb://pacs/rs/studies/", "address"),
        ("input", f"dicomweb://pacs/rs/studies/{UID}/instances/{UID}", "address"),
        ("send", f"dicomweb://pacs/rs/studies/{UID}", "only the service"),
        ("send", "dicomweb://pacs/rs?Modality=MR", "only the service"),
        ("input", "dicomweb://pacs/rs?modality=MR", "'Modality'"),
    ],
)
def test_unusable_address_is_refused_without_its_password(setting, address, word):
    pytest.importorskip("dicomweb_client")
    with pytest.raises(ConfigError, match=word) as error:
        DicomWeb(setting, address)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "words"), [(404, "Check path, UIDs"), (403, "refuses access"), (500, "Its log")]
)
def test_failure_of_the_server_is_not_blamed_on_the_address(pacs, status, words):
    pacs.answer = lambda path, query: ([], JSON, status)
    with pytest.raises(ResourceError, match=words):
        ask(pacs, "series", None)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"output": "dicomweb://pacs/rs"}, "output must be a folder"),
        ({"send": "https://pacs/rs"}, "send must be"),
        ({"send": "dicomweb://pacs/rs", "dicom_output": False}, "dicom_output"),
        ({"send": "dicomweb://pacs/rs", "output": "s3://bucket/results"}, "local folder"),
        ({"input": "dicomweb://pacs/rs", "engine": "ray"}, "engine=local"),
        ({"input": "dicomweb://pacs/rs", "names": "bids"}, "names"),
    ],
)
def test_settings_that_do_not_go_with_a_pacs_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        PredictConfig.of(**{"bundle": "b", "input": "i", "output": "o"} | settings)


@pytest.mark.parametrize(
    ("address", "is_warned"),
    [
        ("dicomweb+http://pacs.hospital/rs", True),
        ("dicomweb+http://localhost.hospital/rs", True),
        ("dicomweb+http://localhost:8042/rs", False),
        ("dicomweb+http://127.0.0.1/rs", False),
        ("dicomweb+http://[::1]:8042/rs", False),
        ("dicomweb://pacs.hospital/rs", False),
    ],
)
def test_connection_without_encryption_gives_a_warning(address, is_warned, caplog):
    pytest.importorskip("dicomweb_client")
    DicomWeb("input", address)
    assert ("not encrypted" in caplog.text) == is_warned


@pytest.fixture
def slow_clock(monkeypatch):
    """Let a minute pass between two blocks of an answer."""
    times = count(step=60.0)
    monkeypatch.setattr(dicomweb, "monotonic", lambda: next(times))


def pages(items, size, ignores_offset=False, overlap=0):
    """Return a search that answers with `size` objects. Later pages begin `overlap` earlier."""

    def answer(path, query):
        start = 0 if ignores_offset else max(0, int(query.get("offset", 0)) - overlap)
        return (items[start : start + size],)

    return answer


@pytest.mark.parametrize(
    ("settings", "n_found"),
    [
        ({"size": 100}, 5),
        ({"size": 2}, 5),
        ({"size": 2, "overlap": 1}, 5),
        ({"size": 100, "ignores_offset": True}, 5),
        ({"size": 2, "ignores_offset": True}, 2),
    ],
)
def test_search_ends_when_a_page_has_nothing_new(pacs, settings, n_found):
    images = [item(image=f"1.2.3.4.{number}") for number in range(5)]
    pacs.answer = pages(images, **settings)
    assert len(client_of(pacs).search_instances(item())) == n_found
    assert len(pacs.requests) <= 5


@pytest.mark.parametrize(
    "value",
    [
        {"00200011": {"vr": "IS", "Value": ["A1"]}},
        {"0008103E": 7},
        {"0020000D": {"vr": "UI", "Value": ["../x"]}},
        {"0020000D": {"vr": "UI"}},
    ],
)
def test_series_with_a_damaged_value_fails_alone(pacs, tmp_path, value):
    bad = item("1.2.3.9", **value)

    def answer(path, query):
        if int(query["offset"]):
            return ([],)
        return ([item(), bad],) if path.endswith("/series") else ([item(image=IMAGES[0])],)

    pacs.answer = answer
    scans = client_of(pacs).find_scans(tmp_path, lambda scan: "").scans
    failed = {scan.case: scan.findings for scan in scans if scan.findings}
    assert [*failed] == ["1.2.3.9"]
    assert {scan.path for scan in scans} - {*failed} == {f"{SERIES}/{IMAGES[0]}.dcm"}
    assert "Error(" not in str(failed)
    assert "literal" not in str(failed)


@pytest.mark.parametrize("uids", [{}, {"0020000D": "1.2.8", "0020000E": "1.2.9"}])
def test_answer_need_not_repeat_the_uids_of_the_request(pacs, tmp_path, uids):
    stated = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}
    pacs.answer = lambda path, query: (
        [
            {**stated, "00080018": {"vr": "UI", "Value": [IMAGES[0]]}}
            if path.endswith("/instances")
            else {tag: value for tag, value in item().items() if tag != "0020000D"}
        ],
    )
    service = DicomWeb("input", f"dicomweb+{pacs.url}/rs/studies/{STUDY}")
    pacs.clients.append(service)
    (scan,) = service.find_scans(tmp_path, lambda scan: "").scans
    assert not scan.findings
    assert (scan.dicom.study_uid, scan.dicom.series_uid) == (STUDY, SERIES)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"<html>log in</html>", JSON, "HTML page"),
        (b"\n <!DOCTYPE html><html>log in</html>", "text/html; charset=utf-8", "HTML page"),
        (None, JSON, "not one of DICOMweb"),
        ([[1, 2], 3, "x"], JSON, "not one of DICOMweb"),
        (b"{", JSON, "not one of DICOMweb"),
        (b"[" * 100_000, JSON, "not one of DICOMweb"),
        (b"[" + b"9" * 5000 + b"]", JSON, "not one of DICOMweb"),
    ],
)
@pytest.mark.parametrize("level", ["series", "instances", "image"])
def test_other_answer_is_described_without_python(pacs, tmp_path, level, body, kind, words):
    pacs.answer = lambda path, query: (body, kind)
    with pytest.raises(ResourceError) as error:
        ask(pacs, level, tmp_path)
    if level != "image" or kind != JSON:
        assert words in str(error.value)
    assert "Error(" not in str(error.value)


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize(
    "other",
    [{"StudyInstanceUID": "1.2.9"}, {"SeriesInstanceUID": "1.2.9"}, {"PatientID": "P2"}],
)
def test_image_of_another_study_series_or_patient_is_refused(pacs, tmp_path, other, n_images):
    uids = IMAGES[:n_images]
    sent = [image_bytes(tmp_path, uid) for uid in uids]
    stated = item(**{"00100020": {"vr": "LO", "Value": ["P1"]}})

    def answer(path, query):
        if path.endswith("/instances"):
            return ([item(image=uid) for uid in uids],)
        return as_parts(sent), PARTS

    pacs.answer = answer
    client = client_of(pacs)
    client.search_instances(stated)
    assert all(file.is_file() for file in fetch(pacs, tmp_path / "right", uids, client))
    sent[-1] = image_bytes(tmp_path, uids[-1], **other)
    with pytest.raises(ResourceError, match=f"1 of {n_images} image"):
        fetch(pacs, tmp_path / "wrong", uids, client)
    assert not (tmp_path / f"wrong/{uids[-1]}.dcm").exists()


def test_patient_that_the_search_does_not_state_is_the_same_in_all_images(pacs, tmp_path):
    sent = [image_bytes(tmp_path, "1.2.9", PatientID="P3", StudyInstanceUID="1.2.9")]
    patients = "P1", "", "P2"  # an image without an ID contradicts none
    for uid, patient in zip(IMAGES, patients, strict=True):
        sent.append(image_bytes(tmp_path, uid, PatientID=patient))
    pacs.answer = lambda path, query: (as_parts(sent), PARTS)
    with pytest.raises(ResourceError, match="1 of 3 images"):
        fetch(pacs, tmp_path)


def test_missing_image_is_an_error_and_a_double_or_further_one_is_not(pacs, tmp_path):
    sent = [image_bytes(tmp_path, uid) for uid in [*IMAGES, IMAGES[0], "1.2.3.4.9"]]
    pacs.answer = lambda path, query: (as_parts(sent), PARTS)
    assert len([file for file in fetch(pacs, tmp_path / "a") if file.is_file()]) == 3
    del sent[1]
    with pytest.raises(ResourceError, match="1 of 3 images"):
        fetch(pacs, tmp_path / "b")


@pytest.mark.parametrize("kind", [PARTS.replace("; boundary=part", ""), "multipart/related"])
def test_answer_without_boundary_is_an_error(pacs, tmp_path, kind, capfd):
    sent = [image_bytes(tmp_path, uid) for uid in IMAGES]
    pacs.answer = lambda path, query: (as_parts(sent), kind)
    with pytest.raises(ResourceError, match="not one of DICOMweb"):
        fetch(pacs, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("urllib3.connection").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize("n_images", [1, 3])
def test_body_without_an_end_is_cut_at_the_limit(pacs, tmp_path, monkeypatch, n_images):
    sent = [image_bytes(tmp_path, uid) for uid in IMAGES[:n_images]]
    maximum = len(as_parts(sent[:1])) + 100
    monkeypatch.setattr(dicomweb, "_MAX_SLICE_BYTES", maximum)
    monkeypatch.setattr(dicomweb, "_MAX_FILE_BYTES", maximum)

    def flood():
        yield as_parts(sent)[:200]
        while True:
            yield bytes(2**16)

    pacs.answer = lambda path, query: (flood(), PARTS)
    with pytest.raises(ResourceError, match="sent more than"):
        fetch(pacs, tmp_path, IMAGES[:n_images])


def test_limit_of_a_body_concerns_one_image_and_not_their_sum(pacs, tmp_path, monkeypatch):
    sent = [image_bytes(tmp_path, uid) for uid in IMAGES]
    monkeypatch.setattr(dicomweb, "_MAX_SLICE_BYTES", int(2.5 * len(sent[0])))
    pacs.answer = lambda path, query: (
        (as_parts([image])[: -len("\r\n--part--\r\n")] for image in sent),
        PARTS,
    )
    assert all(file.is_file() for file in fetch(pacs, tmp_path))


def test_answer_of_a_search_has_a_limit(pacs):
    pacs.answer = lambda path, query: (repeat(b" " * 2**20),)
    with pytest.raises(ResourceError, match="sent more than"):
        ask(pacs, "series", None)


@pytest.mark.parametrize("level", ["series", "instances", "image"])
def test_answer_that_drips_ends_at_the_total_time(pacs, tmp_path, slow_clock, level):
    pacs.answer = lambda path, query: (repeat(b" "), PARTS if level == "image" else JSON)
    with pytest.raises(ResourceError, match="1800 s"):
        ask(pacs, level, tmp_path)


def test_search_without_an_end_ends_at_the_total_time(pacs, slow_clock):
    pacs.answer = lambda path, query: ([item(f"1.2.{query['offset']}")],)
    with pytest.raises(ResourceError, match="1800 s"):
        ask(pacs, "series", None)


def stored(*uids, failed=()):
    """Return the answer to a request that stores these files."""

    def sequence(values):
        items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in values]
        return {"vr": "SQ", "Value": items}

    answer = {"00081199": sequence(uids)} if uids else {}
    return answer | ({"00081198": sequence(failed)} if failed else {})


@pytest.mark.parametrize(
    ("answer", "in_pacs", "is_sent"),
    [
        ((stored(*IMAGES),), (), True),
        ((b"",), IMAGES, True),
        ((stored(IMAGES[0]),), IMAGES[1:2], True),
        (([stored(*IMAGES[:2])],), IMAGES[:2], True),
        ((stored(failed=IMAGES[:2]), JSON, 409), IMAGES[:2], True),  # they were stored before
        ((b"",), (), False),
        (({},), IMAGES[:1], False),
        ((stored("1.2.9", "1.2.8"),), (), False),
        ((stored(IMAGES[0], failed=IMAGES[1:2]), JSON, 202), (), False),
        ((stored(failed=IMAGES[:2]), JSON, 409), (), False),
        ((b"<html>welcome</html>", "text/html"), (), False),
        ((None,), (), False),
    ],
)
def test_results_are_sent_if_the_server_lists_or_finds_them(
    pacs, tmp_path, answer, in_pacs, is_sent
):
    files = [write_image(tmp_path, uid) for uid in IMAGES[:2]]
    pacs.store = lambda body: answer
    pacs.answer = pages([item(image=uid) for uid in in_pacs], 10)
    if is_sent:
        assert client_of(pacs).store(files) == IMAGES[:2]
        return
    with pytest.raises((OutputError, ResourceError)) as error:
        client_of(pacs).store(files)
    assert "Error(" not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_results_are_not_redirected_to_another_host(pacs, tmp_path, status):
    file = write_image(tmp_path, IMAGES[0])
    with running_server(Handler) as other:
        other.store = lambda body: (stored(IMAGES[0]),)
        for host in (other.url, other.url.replace("127.0.0.1", "localhost")):
            location = {"Location": f"{host}/rs/studies"}
            pacs.store = lambda body: (b"", JSON, status, location)  # noqa: B023
            with pytest.raises(ResourceError, match="another host"):
                client_of(pacs).store([file])
        assert not other.requests


@pytest.mark.parametrize(("status", "n_rows"), [(307, 1), (308, 1), (307, 65_000)])
def test_results_are_redirected_within_the_host(pacs, tmp_path, status, n_rows):
    file = write_image(tmp_path, IMAGES[0], n_rows)
    bodies = []

    def store(body):
        bodies.append(body)
        if len(bodies) == 1:
            return b"", JSON, status, {"Location": "/other/studies"}
        return (stored(IMAGES[0]),)

    pacs.store = store
    assert client_of(pacs).store([file]) == IMAGES[:1]
    assert pacs.requests == ["/rs/studies", "/other/studies"]
    assert bodies[0] == bodies[1] != b""


def test_search_without_series_is_an_error(pacs, tmp_path):
    with pytest.raises(DatasetError, match="no series"):
        client_of(pacs).find_scans(tmp_path, lambda scan: "")
