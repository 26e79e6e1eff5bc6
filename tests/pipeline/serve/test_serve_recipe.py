"""The server: a scan in, its mask out, and nothing kept."""

import email
import io
import json
import logging
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.core import Volume
from lesionseg.errors import ConfigError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.pipeline.serve import app as app_module
from lesionseg.pipeline.serve.recipe import serve
from lesionseg.pipeline.serve.uploads import ServeLimits, Upload, UploadStore
from tests.pipeline.serve.conftest import MINE, NAME, TestClient, app_of, asking, kept


def _mask(content: bytes, path: Path) -> NDArray[np.generic]:
    path.write_bytes(content)
    return read_volume(path).array[0]


def test_a_scan_gives_its_mask(
    client: TestClient, bundle: Path, scan: Path, tmp_path: Path, temporary: Path
) -> None:
    own = Predictor(bundle, device="cpu", architectures=MINE)(scan)
    answer = client.post("/predict", files={"file": (NAME, scan.read_bytes())})
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="scan_mask.nii.gz"'
    assert int(answer.headers["x-candidates"]) == len(own.candidates)
    np.testing.assert_array_equal(_mask(answer.content, tmp_path / "m.nii.gz"), own.mask())
    geometry = read_volume(tmp_path / "m.nii.gz").geometry
    np.testing.assert_allclose(geometry.affine, read_volume(scan).geometry.affine, atol=1e-5)
    everything = client.post("/predict?result=all", files={"file": (NAME, scan.read_bytes())})
    with zipfile.ZipFile(io.BytesIO(everything.content)) as archive:
        assert sorted(archive.namelist()) == [
            "scan_candidates.json", "scan_instances.nii.gz", "scan_mask.nii.gz",
        ]  # fmt: skip
    found = client.post("/predict?result=candidates", files={"file": (NAME, scan.read_bytes())})
    assert len(found.json()["candidates"]) == len(own.candidates)
    assert found.json()["case"] == "scan"
    assert not kept(temporary)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mha", "NDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile = {}\n"),
        (
            "a.nrrd",
            "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 8 8 8\nencoding: raw\ndata file: {}\n\n",
        ),
    ],
)
@pytest.mark.parametrize("target", ["%n%n%n%n 1 8 1", "/etc/passwd", "/not/there"])
def test_c1_c2_an_upload_ends_no_server_and_reads_no_other_file(
    client: TestClient, name: str, header: str, target: str
) -> None:
    """Review C1, C2: whether a file is there is not told either."""
    answer = client.post("/predict", files={"file": (name, header.format(target).encode())})
    assert answer.status_code == 422
    assert "points out of its folder" in answer.text
    assert target not in answer.text
    assert client.get("/health").status_code == 200


def test_bad_files_are_refused_with_the_reason(client: TestClient, scan: Path) -> None:
    whole = scan.read_bytes()
    for name, content in {
        "Doe.nii.gz": whole[: len(whole) // 2],
        "Doe.nii": b"",
        "Doe.txt": b"no image",
        "Doe": b"",
        "Doe.zip": b"PK no zip",
    }.items():
        answer = client.post("/predict", files={"file": (name, content)})
        assert answer.status_code == 422, name
        assert "lesionseg-" not in answer.json()["detail"], "no path of the server's"
        assert answer.json()["detail"]
    two = [("file", (f"Doe{i}.nii.gz", whole)) for i in range(2)]
    answer = client.post("/predict", files=two)
    assert answer.status_code == 422
    assert "channels" in answer.json()["detail"]
    assert client.post("/predict").status_code == 422


def test_too_large_a_request_is_refused(client: TestClient, temporary: Path) -> None:
    large = bytes(600_000)
    assert client.post("/predict", files={"file": ("a.nii", large)}).status_code == 413

    def pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        yield from (bytes(100_000) for _ in range(7))
        yield b"\r\n--x--\r\n"

    answer = client.post(
        "/predict", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413
    assert "0.5 MB" in answer.json()["detail"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(5_000_000))
    answer = client.post("/predict", files={"file": ("a.zip", buffer.getvalue())})
    assert answer.status_code == 422
    assert "holds more" in answer.json()["detail"]
    assert not kept(temporary)


def test_names_of_files_are_not_logged(
    client: TestClient, scan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        client.post("/predict", files={"file": (NAME, scan.read_bytes())})
        client.post("/predict", files={"file": (NAME, b"broken")})
        client.put("/datastore/?image=Doe_Jane", files={"file": (NAME, scan.read_bytes())})
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("lesionseg", "uvicorn"))]
    assert not any("Doe" in message for message in ours)


def test_scans_go_through_the_network_one_at_a_time(
    client: TestClient, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    predict, inside, most = Predictor.predict_volume, [0], [0]

    def watched(self: Predictor, volume: Volume, case: str, **rest: Any) -> object:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        outcome = predict(self, volume, case, **rest)
        inside[0] -= 1
        return outcome

    monkeypatch.setattr(Predictor, "predict_volume", watched)
    content = scan.read_bytes()
    answers: list[int] = []

    def ask() -> None:
        answers.append(client.post("/predict", files={"file": (NAME, content)}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 3
    assert most == [1]


def test_the_page_and_its_health(client: TestClient) -> None:
    page = client.get("/").text
    assert "For research use only" in page
    assert "http://" not in page
    assert "https://" not in page
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["labels"] == {"lesion": 1}
    assert client.get("/docs").status_code == 404


def test_a_session_of_slicers_plug_in(
    client: TestClient, scan: Path, bundle: Path, tmp_path: Path, temporary: Path
) -> None:
    info = client.get("/info/").json()
    assert info["models"]["lesionseg"]["labels"] == {"lesion": 1}
    assert info["models"]["lesionseg"]["type"] == "segmentation"
    assert client.get("/datastore/").json() == {"total": 0, "completed": 0, "label_tags": {}}
    content = scan.read_bytes()
    key = client.put("/session/", files={"files": (NAME, content)}).json()["session_id"]
    assert client.get(f"/session/{key}").status_code == 200
    stored = client.put("/datastore/?image=v", files={"file": (NAME, content)})
    image_key = stored.json()["image"]
    assert image_key != "v"
    assert client.get("/datastore/?output=all").json() == {"objects": {}}
    params = {"params": json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"})}
    own = Predictor(bundle, device="cpu", architectures=MINE)(scan).mask()
    for query, files in {
        f"?image=v&session_id={key}": None,
        f"?image={image_key}": None,
        "?image=": {"file": (NAME, content)},
    }.items():
        answer = client.post(f"/infer/lesionseg{query}", data=params, files=files)
        assert answer.status_code == 200, answer.text
        head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
        said, image = email.message_from_bytes(head + answer.content).get_payload()
        assert json.loads(said.get_payload())["label_names"] == {"lesion": 1}  # type: ignore[union-attr]
        assert image.get_filename() == "scan_mask.nrrd"  # type: ignore[union-attr]
        mask = _mask(image.get_payload(decode=True), tmp_path / "m.nrrd")  # type: ignore[union-attr, arg-type]
        np.testing.assert_array_equal(mask, own)
    assert client.delete(f"/session/{key}").status_code == 200
    for gone in (
        client.delete(f"/session/{key}"),
        client.get(f"/session/{key}"),
        client.post(f"/infer/lesionseg?image=&session_id={key}"),
        client.post(f"/infer/other?image={image_key}"),
    ):
        assert gone.status_code == 404
    bad = client.post(f"/infer/lesionseg?image={image_key}", data={"params": "[no"})
    assert bad.status_code == 422
    only = client.post(f"/infer/lesionseg?image={image_key}&output=json").json()
    assert only["n_accepted"] > 0


def test_h5_two_users_who_call_their_scans_the_same_get_their_own_masks(
    client: TestClient, scan: Path, tmp_path: Path
) -> None:
    other = read_volume(scan)
    other.array[0] = other.array[0][:, ::-1].copy()
    write_volume(tmp_path / "other.nii.gz", other)
    sent = {"a": scan.read_bytes(), "b": (tmp_path / "other.nii.gz").read_bytes()}
    keys = {
        user: client.put("/datastore/?image=MRHead", files={"file": (NAME, content)}).json()[
            "image"
        ]
        for user, content in sent.items()
    }
    assert len({*keys.values(), "MRHead"}) == 3
    for user, content in sent.items():
        own = client.post("/predict", files={"file": (NAME, content)}).content
        answer = client.post(f"/infer/lesionseg?image={keys[user]}&output=image")
        mask = _mask(answer.content, tmp_path / "asked.nii.gz")
        np.testing.assert_array_equal(mask, _mask(own, tmp_path / "own.nii.gz"))
    by_name = client.post("/infer/lesionseg?image=MRHead")
    assert by_name.status_code == 404
    assert "the key in the answer" in by_name.json()["detail"]


def test_uploads_leave_with_the_server(bundle: Path, scan: Path, temporary: Path) -> None:
    app = app_of(bundle)
    with asking(app) as client:
        client.put("/session/", files={"files": (NAME, scan.read_bytes())})
        assert [p.name for p in kept(temporary) if p.is_file()] == ["scan.nii.gz"]
    assert not list(temporary.iterdir())


def test_a_store_keeps_few_and_not_for_long(temporary: Path) -> None:
    store = UploadStore(size=2)
    for key in "abc":
        store.put(key, [Upload("x.nii", io.BytesIO(b"1"))], ServeLimits(10))
    assert store.get("a") is None
    kept = store.get("b")
    assert kept is not None
    assert [p.name for p in kept.iterdir()] == ["scan.nii"]
    assert len(list(temporary.iterdir())) == 2
    forgetful = UploadStore(seconds=-1.0)
    forgetful.put("a", [Upload("x.nii", io.BytesIO(b"1"))], ServeLimits(10))
    assert forgetful.get("a") is None
    store.close()
    assert not list(temporary.iterdir())


def test_an_expired_scan_leaves_at_the_next_request_whatever_it_is(temporary: Path) -> None:
    for ask in (
        lambda s: s.get("b"),
        lambda s: s.put("b", [Upload("x.nii", io.BytesIO(b"1"))], ServeLimits(10)),
        lambda s: s.remove("b"),
    ):
        store = UploadStore(seconds=0.0)
        store.put("a", [Upload("x.nii", io.BytesIO(b"1"))], ServeLimits(10))
        (old,) = temporary.iterdir()
        ask(store)
        assert not old.exists()
        store.close()


def test_an_expired_scan_leaves_by_the_clock(
    bundle: Path, scan: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(app_module, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(app_module, "UploadStore", partial(UploadStore, seconds=0.0))
    app = app_of(bundle)
    with asking(app) as client:
        client.put("/session/", files={"files": (NAME, scan.read_bytes())})
        end = time.monotonic() + 10
        while kept(temporary) and time.monotonic() < end:
            time.sleep(0.02)
        assert not kept(temporary)


def test_a_missing_package_is_named_with_the_way_to_install_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r'pip install .*"uvicorn>='):
        serve(bundle)
