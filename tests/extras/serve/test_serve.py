"""The server returns the mask of a scan, enforces limits, and keeps nothing."""

import asyncio
import base64
import email
import errno
import gzip
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesionseg.cli.command import run_recipe
from lesionseg.core import Geometry
from lesionseg.errors import (
    BundleError,
    ConfigError,
    ContentError,
    OutputError,
    ReadError,
    ResourceError,
)
from lesionseg.extras.serve import ServeConfig
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.read_ahead import needed_bytes
from lesionseg.io import limits as io_limits
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.models.build import build_network
from tests.extras.serve.serve_app import InThisProcess, app_of
from tests.inference.networks import Bright, make_bright
from tests.pipeline.cases import write_array
from tests.pipeline.stall import LARGE, wait_for_file

pytest.importorskip("fastapi")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette recommends httpx2
    from fastapi.testclient import TestClient

import httpx
from fastapi import FastAPI, HTTPException, UploadFile

from lesionseg.extras.serve import slicer, uploads
from lesionseg.extras.serve.app import ROUTES
from lesionseg.extras.serve.home import server_folder
from lesionseg.extras.serve.model_process import ModelProcess, load_model
from lesionseg.extras.serve.uploads import InferenceQueue, store

SHAPE = (12, 18, 20)
GRID = Geometry.from_spacing(SHAPE, (1, 1, 1))
NAME = "Doe_Jane_1970.nii.gz"
FORM = "multipart/form-data; boundary=a"


@pytest.fixture
def predictor(bundle):
    return Predictor(bundle, device="cpu", architectures={"mine": make_bright})


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Return the folder of all temporary files. NiiVue is hidden."""
    for module in ("answer", "app"):
        monkeypatch.setattr(f"lesionseg.extras.serve.{module}.NIIVUE", tmp_path / "none")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def scan(tmp_path, rng):
    image = rng.normal(100, 3, SHAPE).astype(np.float32)
    image[3:6, 4:8, 5:9] += 60
    image[8:11, 10:14, 12:17] += 80
    affine = np.array([[0, 0, -1, 9], [0, 1, 0, -4], [2, 0, 0, 3], [0, 0, 0, 1.0]])
    write_array(tmp_path / NAME, image, Geometry(SHAPE, affine))
    return (tmp_path / NAME).read_bytes()


@pytest.fixture
def serve(bundle, predictor, temporary):
    """Return a function that makes a client of a server with these settings."""

    def start(**settings):
        cfg = ServeConfig.of(bundle=bundle, **settings)
        return TestClient(app_of(predictor, cfg, temporary), base_url="http://localhost")

    return start


@pytest.fixture
def client(serve):
    with serve(max_upload_mb=0.5, max_waiting=1) as client:
        yield client


@pytest.fixture
def without_model(monkeypatch):
    """Let the recipe start a server without a model."""
    monkeypatch.setattr("lesionseg.extras.serve.recipe.running_model", nullcontext)
    monkeypatch.setattr("lesionseg.extras.serve.app.make_app", lambda *_: FastAPI())


@pytest.fixture
def upload(scan):
    """Return a form with the scan."""
    return {"file": (NAME, scan)}


def zip_files(contents):
    """Return a zip of files, given by their names and contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def list_files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def test_scan_gives_its_mask_and_leaves_no_files(
    client, predictor, scan, upload, tmp_path, temporary
):
    own = predictor(tmp_path / NAME)
    answer = client.post("/predict", files=upload)
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="scan_mask.nii.gz"'
    others = {f"__MACOSX/scans/._{NAME}": b"\0", "scans/scan.json": b"{}"}  # of Macs and dcm2niix
    zipped = zip_files({f"scans/{NAME}": scan, **others})
    assert client.post("/predict", files={"file": ("a.zip", zipped)}).content == answer.content
    (tmp_path / "m.nii.gz").write_bytes(answer.content)
    np.testing.assert_array_equal(read_volume(tmp_path / "m.nii.gz").array[0], own.mask())
    found = client.post("/predict?result=all", files=upload)
    with zipfile.ZipFile(io.BytesIO(found.content)) as archive:
        assert len(archive.namelist()) == 3
        listed = json.loads(archive.read("scan_candidates.json"))
    assert listed["case"] == "scan"
    assert len(listed["candidates"]) == len(own.candidates) == 2
    assert "Doe" not in found.text
    view = client.post("/predict?result=view", files=upload).json()
    assert (view["warning"], view["channels"]) == ("", [])
    assert set(view["volumes"]) == {"image", "candidates"}
    assert len(view["slices"]) > max(one["slice"] for one in view["candidates"])
    assert zipfile.is_zipfile(io.BytesIO(base64.b64decode(view["zip"])))
    assert not list_files(temporary)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_uploads_are_private_under_any_umask(bundle, temporary, monkeypatch, without_model):
    modes = list[int]()

    def record_modes(*_, **__):
        (shared,) = temporary.iterdir()
        (home,) = (path for path in shared.iterdir() if path.is_dir())
        (home / "scan.nii.gz").touch()
        for path in (shared, home, home / "scan.nii.gz"):
            modes.append(path.stat().st_mode & 0o777)

    monkeypatch.setattr("uvicorn.run", record_modes)
    before = os.umask(0)
    try:
        run_recipe("serve", ServeConfig.of(bundle=bundle))
    finally:
        os.umask(before)
    assert modes == [0o700, 0o700, 0o600]


def test_port_that_is_in_use_is_a_wrong_setting(bundle, temporary, without_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port}"):
            run_recipe("serve", ServeConfig.of(bundle=bundle, port=port))
    assert not [path for path in temporary.glob("*/*") if path.is_dir()]


def test_scans_of_a_killed_server_are_removed_at_the_next_start(temporary):
    code = (
        "import os, sys, tempfile\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "from lesionseg.extras.serve.home import server_folder\n"
        "with server_folder() as home:\n"
        "    (home / 'scan.nii.gz').touch()\n"
        "    os._exit(9)\n"
    )
    with server_folder() as running:
        (running / "scan.nii.gz").touch()
        killed = subprocess.run([sys.executable, "-c", code, str(temporary)], check=False)
        assert killed.returncode == 9
        (left,) = (p for p in running.parent.iterdir() if p.is_dir() and p != running)
        assert (left / "scan.nii.gz").is_file()
        with server_folder() as started:
            assert not left.exists()
            assert (running / "scan.nii.gz").is_file()
    assert not running.exists()
    assert not started.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a temporary folder per user")
def test_link_in_place_of_the_folder_of_scans_is_refused(temporary, tmp_path):
    (temporary / f"lesionseg-serve-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="TMPDIR"), server_folder():
        pass


def test_page_names_the_model_and_offers_an_example(client):
    page = client.get("/").text
    assert "make viewer" in page
    assert "looks for: lesion" in page
    assert zipfile.is_zipfile(io.BytesIO(client.post("/example").content))
    assert client.get("/health").json()["labels"] == {"lesion": 1}


def test_requests_are_logged_without_names(client, scan, upload, caplog):
    caplog.set_level(logging.INFO, "lesionseg.extras.serve.access_log")
    client.post("/predict?result=candidates", files=upload)
    client.put("/datastore/?image=Doe_Jane", files=upload)
    client.get("/Doe_Jane_1970.nii.gz")
    client.get("/", headers={"host": "elsewhere.example"})
    client.post("/predict", files={"file": ("a.nii", b"no scan")})
    client.get("/health")
    lines = [record.getMessage() for record in caplog.records]
    assert "Doe" not in caplog.text
    line = re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} testclient (.+) (\d+) bytes (\d+) \d+\.\d{3} s"
    )
    found = [match.groups() for match in map(line.fullmatch, lines) if match]
    assert [(what, status) for what, _, status in found] == [
        ("POST /predict", "200"),
        ("PUT /datastore/", "200"),
        ("GET (another address)", "404"),
        ("GET (another address)", "400"),
        ("POST /predict", "422"),
    ]
    assert int(found[0][1]) > len(scan)
    assert len(lines) == len(found)  # checks of health are not logged


def test_every_address_is_described_on_a_page_that_loads_nothing(client):
    page = client.get("/docs").text
    router = slicer.slicer_router({}, None, None, None)
    served = {
        (method, route.path)
        for route in (*client.app.routes, *router.routes)
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    assert served == {(method, path) for method, path, _ in ROUTES}
    for method, path in served:
        assert re.search(rf"<td>{method}</td>\s*<td>{path}</td>", page)
    assert not re.findall(r"""(?:src|href)=["'](?!\./|data:)""", page)
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"file": ("a.nii.gz", b"no image")}, 422),
        ({"file": ("a.zip", b"PK\3\4 cut")}, 422),
        ({"other": ("a.nii.gz", b"")}, 422),
        ({"file": ("a.nii", b"0" * 2**20)}, 413),
        ({"file": ("a." + 300 * "b", b"no image")}, 422),
        ({"file": ("a." + 300 * "7", b"no image")}, 422),
    ],
)
def test_unusable_upload_is_refused_and_leaves_no_files(client, files, status, temporary):
    answer = client.post("/predict", files=files)
    assert answer.status_code == status
    assert str(temporary) not in answer.text
    assert not list(temporary.iterdir())


def test_zip_bomb_foreign_origin_and_endless_body_are_refused(client):
    bomb = zip_files({"../../a.dcm": bytes(2**21)})
    assert client.post("/predict", files={"file": ("a.zip", bomb)}).status_code == 422
    assert client.post("/example", headers={"origin": "http://evil.example"}).status_code == 403
    endless = client.post(
        "/predict", content=iter([b"a" * 2**18] * 9), headers={"content-type": FORM}
    )
    assert endless.status_code == 413


@pytest.mark.parametrize(
    ("seconds_between_bytes", "request_seconds", "stalled_seconds"),
    [(60.0, 60.0, 0.05), (0.01, 0.1, 60.0)],
    ids=["stalled", "slow"],
)
def test_upload_that_stalls_or_takes_too_long_gets_408(
    serve, temporary, monkeypatch, seconds_between_bytes, request_seconds, stalled_seconds
):
    monkeypatch.setattr(uploads, "STALLED_SECONDS", stalled_seconds)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", FORM.encode())],
    }
    body = iter(b"--a\r\nContent-Disposition: form-data; name=file; filename=a.nii\r\n\r\n")
    statuses = list[int]()

    async def receive():
        await asyncio.sleep(seconds_between_bytes)
        return {"type": "http.request", "body": bytes([next(body, 0)]), "more_body": True}

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asyncio.run(serve(request_seconds=request_seconds).app(scope, receive, send))
    assert statuses == [408]
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("is_large", [False, True])
def test_probabilities_of_a_large_scan_are_in_a_file(
    serve, predictor, upload, temporary, tmp_path, monkeypatch, is_large
):
    n_bytes = needed_bytes(read_geometry(tmp_path / NAME), predictor.plan, is_on_disk=is_large)
    folders = list[Path | None]()
    infer = predictor.infer

    def record_folder(*args, folder, **settings):
        folders.append(folder)
        return infer(*args, folder=folder, **settings)

    monkeypatch.setattr(predictor, "infer", record_folder)
    with serve(inference={"max_memory_gb": (n_bytes + 1) / 1e9}) as client:
        answer = client.post("/predict", files=upload)
    assert answer.status_code == 200
    assert [folder is not None for folder in folders] == [is_large]
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("shape", "mm", "words"),
    [((100, 100, 100), 1.0, "inference.max_memory_gb"), ((99, 9, 9), 60.0, "extent")],
)
def test_too_large_or_implausible_scan_is_refused_before_it_is_decoded(
    serve, predictor, tmp_path, monkeypatch, shape, mm, words
):
    files = []
    # the second one shows only if it is opened
    for number, grid in enumerate((GRID, Geometry.from_spacing(shape, (mm,) * 3))):
        path = tmp_path / f"a_000{number}.nii.gz"
        write_array(path, np.zeros(grid.shape, np.uint8), grid)
        files.append(("file", (path.name, path.read_bytes())))
    plan = replace(predictor.plan, channel_names=("T1", "FLAIR"))
    monkeypatch.setattr(predictor, "plan", plan)
    monkeypatch.setattr(predictor, "read", None)  # it would decode the voxels
    with serve(inference={"max_memory_gb": 0.005}) as client:
        answer = client.post("/predict", files=files)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_memory_limit_applies_to_pictures_after_the_model_is_loaded(
    bundle, predictor, tmp_path, monkeypatch
):
    picture = tmp_path / "large.png"
    write_array(picture, np.zeros((400, 400), np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr("lesionseg.inference.predictor.Predictor", lambda *_, **__: predictor)
        patch.setattr(io_limits, "_limits", io_limits.limits())  # `undo` restores the limits
        load_model(ServeConfig.of(bundle=bundle, inference={"max_memory_gb": 0.001}))
        with pytest.raises(ReadError, match=re.escape("inference.max_memory_gb")):
            read_volume(picture)
    assert read_volume(picture).array.shape == (1, 400, 400)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("[fd00::7]:8000", 200),
        ("[FD00::8]", 200),
        ("[::1]:8000", 200),
        ("a.example.org", 200),
        ("example.org", 400),
        ("evil.example", 400),
        ("fd00::7", 400),
        ("localhost:8000@evil.example", 400),
        ("", 400),
    ],
)
def test_server_answers_only_to_its_names(serve, host, status):
    with serve(host="[fd00::7]", hosts=["[fd00::8]", "*.example.org"]) as client:
        answer = client.get("/health", headers={"host": host})
    assert answer.status_code == status
    assert ("hosts=[NAME]" in answer.text) == (status == 400)


def test_port_0_is_a_wrong_setting_and_a_host_is_that_of_a_socket(bundle):
    assert ServeConfig.of(bundle=bundle, host="[fd00::7]").host == "fd00::7"
    with pytest.raises(ConfigError, match="port"):
        ServeConfig.of(bundle=bundle, port=0)


def test_zip_with_a_large_directory_is_refused_before_it_is_read(monkeypatch, tmp_path):
    (large,) = make_zip(*map(str, range(9)))
    monkeypatch.setattr(uploads, "_DIRECTORY_BYTES", 100)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # it would read the whole directory
    with pytest.raises(ContentError, match="at most 5000 files"):
        store([large], tmp_path, ("T1",), 2**20)


def test_slicer_sends_a_volume_and_infers_with_the_returned_key(client, upload, tmp_path):
    assert client.get("/info/").json()["models"]["lesionseg"]["labels"] == {"lesion": 1}
    keys = [open_session(client, upload) for _ in range(2)]
    assert keys[0] != keys[1]
    answer = client.post(f"/infer/lesionseg?image=a&session_id={keys[0]}", data={"params": "{}"})
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    _, about, mask = email.message_from_bytes(head + answer.content).walk()
    assert json.loads(str(about.get_payload())) == {"label_names": {"lesion": 1}}
    (tmp_path / str(mask.get_filename())).write_bytes(mask.get_payload(decode=True))
    assert read_volume(tmp_path / "scan_mask.nii.gz").array.shape == (1, *SHAPE)
    assert client.get(f"/session/{keys[0]}").status_code == 200


def open_session(client, upload):
    """Send a scan as Slicer does. Return its key."""
    return client.put("/session/", files={"files": upload["file"]}).json()["session_id"]


def test_guessed_key_and_other_model_of_slicer_are_refused(client):
    assert client.post("/infer/lesionseg?session_id=guess").status_code == 404
    assert client.post("/infer/other").status_code == 404


def test_key_of_slicer_expires(client, upload, monkeypatch):
    monkeypatch.setattr(slicer, "SCAN_SECONDS", 0.01)
    key = open_session(client, upload)
    time.sleep(0.1)
    assert client.get(f"/session/{key}").status_code == 404


def test_named_scan_is_predicted_once_and_not_replaced(client, upload, temporary):
    send = "/datastore/?image=MRHead"
    ask = "/infer/lesionseg?image=MRHead"
    assert client.put(send, files={"file": ("a.zip", b"PK")}).status_code == 422
    assert client.put(send, files=upload).json()["image"] == "MRHead"
    assert client.put(send, files=upload).status_code == 409
    assert "<td>409</td>" in client.get("/docs").text
    assert client.post(ask).status_code == 200
    assert client.post(ask).status_code == 404
    assert not list_files(temporary)


def test_predicted_scans_do_not_displace_a_waiting_one(client, upload, monkeypatch):
    monkeypatch.setattr(slicer, "MAX_SCANS", 2)
    session = f"/session/{open_session(client, upload)}"
    for name in ("a", "b"):
        client.put(f"/datastore/?image={name}", files=upload)
        assert client.post(f"/infer/lesionseg?image={name}").status_code == 200
    assert client.get(session).status_code == 200
    client.put("/datastore/?image=c", files=upload)
    client.put("/datastore/?image=d", files=upload)
    assert client.get(session).status_code == 404  # now the oldest of three


def make_uploads(*names):
    """Return files of a form. Each contains its name."""
    return [UploadFile(io.BytesIO(name.encode()), filename=name) for name in names]


def make_zip(*names):
    """Return a zip as the only file of a form. Its files contain their names."""
    return [UploadFile(io.BytesIO(zip_files({name: name for name in names})), filename="a.zip")]


@pytest.mark.parametrize("make", [make_uploads, make_zip])
@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (("T1", "FLAIR"), ["P_0000.nii", "P_0001.nii"]),
        (("T1", "FLAIR"), ["T1_0000.nii", "FLAIR_0001.nii"]),
        (("T1", "FLAIR"), ["T1_0017.nii", "FLAIR_0017.nii"]),  # numbers of a patient
        (("T1", "T1 Gd", "FLAIR"), ["P_t1.nii", "P_t1-gd.nii", "P_flair.nii"]),
    ],
)
def test_channels_are_matched_by_their_numbers_or_names(tmp_path, make, channels, expected):
    sent = store(make(*reversed(expected)), tmp_path, channels, 99)
    assert sent == [path.read_text() for path in sorted(tmp_path.iterdir())] == expected


def test_page_gets_the_file_of_each_channel(plan, scan, temporary, tmp_path):
    two = replace(plan, channel_names=("T1", "FLAIR"), normalisation=2 * plan.normalisation)
    mine = replace(two, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "two", Bright(), mine, "")
    predictor = Predictor(tmp_path / "two", device="cpu", architectures={"mine": make_bright})
    cfg = ServeConfig.of(bundle=tmp_path / "two")
    files = [("file", (name, scan)) for name in ("flair.nii.gz", "t1.nii.gz")]
    with TestClient(app_of(predictor, cfg, temporary), base_url="http://localhost") as client:
        answer = client.post("/predict?result=view", files=files)
    assert answer.json()["channels"] == [
        {"channel": "T1", "file": "t1.nii.gz"},
        {"channel": "FLAIR", "file": "flair.nii.gz"},
    ]


def test_zip_with_unclear_channels_is_refused_but_a_form_keeps_its_order(tmp_path):
    names = ("b.nii", "a.nii")
    channels = ("T1", "FLAIR")
    with pytest.raises(ContentError, match="scan_0000 for T1, scan_0001 for FLAIR"):
        store(make_zip(*names), tmp_path, channels, 99)
    assert store(make_uploads(*names), tmp_path, channels, 99) == ["b.nii", "a.nii"]


@pytest.mark.parametrize("other", ["Thumbs.db", ".DS_Store", "notes.docx", "README"])
def test_file_of_another_kind_next_to_an_image_is_left_out(tmp_path, other):
    assert store(make_uploads(other, "a.nii"), tmp_path, ("T1",), 99) == ["a.nii"]
    assert [path.name for path in tmp_path.iterdir()] == ["scan_0000.nii"]


def test_thumbnails_next_to_slices_are_left_out(tmp_path):
    store(make_uploads("Thumbs.db", "IM0001", "1.2.840.7"), tmp_path, ("T1",), 99)
    assert len(list_files(tmp_path)) == 2


def test_full_disk_is_an_error_of_the_server(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(OutputError, match="No space"):
        store(make_uploads("a.nii"), tmp_path, ("T1",), 99)


def test_full_disk_during_an_upload_gives_status_500_with_a_reason(client, monkeypatch):
    async def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", fail)
    answer = client.post("/predict", files={"file": ("a.nii", b"0")})
    assert answer.status_code == 500
    assert "No space left" in answer.json()["detail"]


def test_blank_scan_is_a_warning_of_every_result(client, tmp_path):
    write_array(tmp_path / "b.nii", np.ones(SHAPE, np.uint8))
    files = {"file": ("b.nii", (tmp_path / "b.nii").read_bytes())}
    for result in ("mask", "candidates", "all"):
        answer = client.post(f"/predict?result={result}", files=files)
        assert "T1 is empty" in answer.headers["x-lesionseg-warning"]
    assert "T1 is empty" in client.post("/predict?result=view", files=files).json()["warning"]
    client.put("/datastore/?image=b", files=files)
    assert '"warning": "Channel T1 is empty' in client.post("/infer/lesionseg?image=b").text


@pytest.fixture
def light_model():
    """Yield a process that loads nothing, so that it starts in a fraction of a second."""
    model = ModelProcess(int)
    yield model
    model.close()


class Client:
    """A client that may leave. It stands for a request of starlette."""

    def __init__(self):
        self.has_left = False

    async def is_disconnected(self):
        return self.has_left


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("seconds", "leaves"), [(600.0, True), (2.0, False)])
def test_scan_ends_if_the_client_leaves_or_the_time_is_over_and_the_next_one_succeeds(
    light_model, seconds, leaves
):
    queue = InferenceQueue(1, seconds, light_model)
    light_model.wait()
    pid = light_model.run(os.getpid)
    begun = threading.Event()

    def work():
        begun.set()
        light_model.run(time.sleep, 600)  # one step, like the reading of a very large scan

    async def leave():
        client = Client()
        with queue.place(), pytest.raises(HTTPException) as full, queue.place():
            pass  # the only place is taken, even if the work has not begun
        assert full.value.status_code == 503
        asked = asyncio.create_task(queue.run(client, work))
        await asyncio.to_thread(begun.wait, 60)  # a very busy machine may never begin it
        client.has_left = leaves
        with pytest.raises(HTTPException) as error:
            await asked
        assert not is_running(pid)
        assert await queue.run(Client(), partial(light_model.run, abs, -7)) == 7
        return error.value.status_code

    assert asyncio.run(leave()) == 503


def test_client_that_leaves_the_queue_does_not_end_the_scan_of_another(light_model, tmp_path):
    end = tmp_path / "end"
    queue = InferenceQueue(2, 600.0, light_model)
    light_model.wait()
    pid = light_model.run(os.getpid)

    async def leave():
        staying = Client()
        leaving = Client()
        work = partial(light_model.run, wait_for_file, end)
        first = asyncio.create_task(queue.run(staying, work))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(queue.run(leaving, partial(light_model.run, abs, -7)))
        await asyncio.sleep(0.1)
        leaving.has_left = True
        with pytest.raises(HTTPException):
            await second
        assert not first.done()
        end.touch()
        await first

    asyncio.run(leave())
    assert light_model.run(os.getpid) == pid


def test_time_to_load_the_model_does_not_count(monkeypatch):
    move_on_after = uploads.move_on_after
    monkeypatch.setattr(uploads, "move_on_after", lambda _: move_on_after(0.5))
    model = ModelProcess(partial(time.sleep, 1))
    queue = InferenceQueue(1, 600.0, model)  # of which waiting and loading have half a second
    client = Client()
    assert model.status == "loading"
    try:
        assert asyncio.run(queue.run(client, partial(model.run, abs, -7))) == 7
    finally:
        model.close()


def test_crash_fails_only_its_scan(light_model):
    queue = InferenceQueue(1, 600.0, light_model)
    client = Client()

    async def crash():
        with pytest.raises(ResourceError, match="memory"):
            await queue.run(client, partial(light_model.run, os._exit, 9))
        assert await queue.run(client, partial(light_model.run, abs, -7)) == 7

    asyncio.run(crash())


def test_process_that_was_killed_between_scans_starts_again(light_model):
    light_model.wait()
    assert light_model.status == "ok"
    pid = light_model.run(os.getpid)
    os.kill(pid, signal.SIGTERM)
    while light_model.status == "ok":
        time.sleep(0.01)
    assert light_model.status == "failed"
    light_model.wait()
    assert light_model.status == "ok"
    assert light_model.run(os.getpid) != pid


def test_model_that_cannot_be_loaded_again_gives_status_503(client, upload, monkeypatch):
    def fail(_):
        raise BundleError("/models/a: no such folder.")

    monkeypatch.setattr(InThisProcess, "wait", fail)
    monkeypatch.setattr(InThisProcess, "status", "failed")
    answer = client.post("/predict", files=upload)
    assert answer.status_code == 503
    assert "/models" not in answer.text
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")


def zeros(side):
    """Return a small compressed file with many voxels."""
    head = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    head.set_data_shape((side, side, side))
    head["vox_offset"] = 352
    return gzip.compress(head.binaryblock + bytes(4 + side**3), compresslevel=1)


START = "import sys; from lesionseg.cli.command import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow  # processes that import torch
@pytest.mark.skipif(sys.platform != "linux", reason="it lists processes in /proc")
def test_server_stops_a_slow_scan_and_at_sigterm_leaves_no_process_and_no_file(
    plan, upload, tmp_path, repository
):
    stalling = replace(plan, prepare_extra=({"_target_": "tests.pipeline.stall.Stall"},))
    write_bundle(tmp_path / "bundle", build_network(plan), stalling, "")
    (tmp_path / "temporary").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bundle = f"bundle={tmp_path / 'bundle'}"
    settings = [bundle, "trust=true", f"port={port}", "device=cpu", "request_seconds=30"]
    server = subprocess.Popen(
        [sys.executable, "-c", START, "serve", *settings],
        cwd=repository,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stderr=subprocess.PIPE,
        text=True,
    )
    slow = {"file": ("a.nii.gz", zeros(LARGE))}
    address = f"http://127.0.0.1:{port}"
    with kill_after(server), httpx.Client(base_url=address, timeout=300) as client:
        for line in server.stderr:
            if line.startswith("Serving"):
                break
        while True:
            with suppress(httpx.ConnectError):
                assert client.get("/health").json()["status"] == "ok"
                break
        (child,) = children_of(server.pid)
        stopped = client.post("/predict", files=slow)
        healthy = client.post("/predict", files=upload)
        assert (stopped.status_code, healthy.status_code) == (503, 200)
        assert not is_running(child)
        (child,) = children_of(server.pid)
        with pytest.raises(httpx.ReadTimeout):  # while the process prepares the scan
            client.post("/predict", files=slow, timeout=9)
        server.terminate()
        _, output = server.communicate(timeout=600)  # until no process can write to the pipe
    assert "Traceback" not in output
    assert not is_running(child)
    assert [path.name for path in list_files(tmp_path / "temporary")] == [".lock"]


@contextmanager
def kill_after(process):
    """Kill a process at the end, also if a check failed."""
    try:
        yield
    finally:
        process.kill()


def children_of(pid):
    """Return the processes that a process has started."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in listed for child in path.read_text().split()]
