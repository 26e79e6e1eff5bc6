"""Who may ask a server, how much, how long; what it logs; that it lets go of what nobody awaits."""

import base64
import io
import logging
import re
import socket
import time
import zipfile
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from urllib.request import urlopen

import pytest

from lesionseg.errors import ConfigError
from lesionseg.io.folder_locks import locked_folder
from lesionseg.pipeline.serve import gate
from lesionseg.pipeline.serve.recipe import serve
from lesionseg.pipeline.serve.uploads import ServeLimits, home
from tests.pipeline.serve.conftest import (
    Endless,
    TestClient,
    app_of,
    asking,
    kept,
    listening,
    until,
)


def _asked(port: int, body: bytes, length: int | None = None) -> socket.socket:
    """A connection on which a scan is sent."""
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'
    content = form + body + b"\r\n--x--\r\n"
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x"
        f"\r\nContent-Length: {length or len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(head.encode() + content)
    return connection


def _health(port: int) -> float:
    """How long the server takes to say that it lives."""
    begin = time.monotonic()
    with urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
        assert answer.status == 200
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 422),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 422),
        ({"Host": "scans.example"}, 422),
        ({"Host": "127.0.0.1:8000"}, 422),
        ({"Host": "[::1]:8000"}, 422),
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_m1_pages_of_other_sites_ask_in_vain(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    """Review M1: neither by a request of theirs nor by a name that leads here."""
    answer = client.post("/predict", files={"file": ("a.nii", b"")}, headers=headers)
    assert answer.status_code == status


def test_m1_every_answer_tells_a_browser_what_it_must_not_do(client: TestClient) -> None:
    """Review M1: the page's own script and style are let in by their digests."""
    for answer in (client.get("/"), client.get("/none"), client.post("/predict")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
    page = client.get("/").text
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_token_is_asked_for_and_never_logged(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    basic = base64.b64encode(b"anybody:s3cret").decode()
    with asking(app_of(bundle, token="s3cret")) as client, caplog.at_level(logging.DEBUG):
        for wrong in ("", "Bearer other", "Basic ???", f"Digest {basic}", "Bearer s3cretä"):
            answer = client.get("/", headers={"Authorization": wrong.encode("latin-1")})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
        for right in ("Bearer s3cret", f"Basic {basic}"):
            assert client.get("/", headers={"Authorization": right}).status_code == 200
        assert client.get("/health").status_code == 200
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("lesionseg", "uvicorn"))]
    assert ours
    assert not any("s3cret" in text or basic in text for text in ours)


def test_an_empty_token_opens_no_server(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="not empty"):
        serve(bundle, token="")


def test_the_log_has_routes_and_no_addresses(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client.get("/session/Doe?name=Doe")
        client.get("/Doe")
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("lesionseg")]
    assert [re.sub(r"[\d.]+ s", "", text) for text in ours] == [
        "/session/{key}: 404, ",
        "(no route): 404, ",
    ]


def test_m8_over_a_thousand_slices_come_in(bundle: Path, temporary: Path) -> None:
    """Review M8."""
    slices = [("files", (f"{i}.dcm", b"slice")) for i in range(1100)]
    with asking(app_of(bundle, ServeLimits(max_files=1100))) as client:
        assert client.put("/session/", files=slices).status_code == 200
        assert len([p for p in kept(temporary) if p.is_file()]) == 1100
        answer = client.put("/session/", files=[*slices, slices[0]])
        assert answer.status_code == 400
        assert "1100" in answer.json()["detail"]
        assert len([p for p in kept(temporary) if p.is_file()]) == 1100


def _zip(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _broken_zip() -> bytes:
    whole = _zip({"a": bytes(range(256)) * 40})
    return whole[:40] + bytes(20) + whole[60:]


def _directory_of_everything() -> bytes:
    """A zip whose last record claims a directory of 4 GB."""
    whole = bytearray(_zip({"a": b"a"}))
    at = whole.rfind(b"PK\5\6")
    whole[at + 12 : at + 16] = b"\xff\xff\xff\xf0"
    return bytes(whole)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.zip", _broken_zip(), "cannot be read"),
        ("a.zip", _zip({"a": bytes(10**6)}, zipfile.ZIP_BZIP2), "holds more"),
        ("a.zip", _zip({"a": bytes(10**5)}, zipfile.ZIP_BZIP2), "packed in a way"),
        ("a.zip", _zip({"a": bytes(10**5)}, zipfile.ZIP_LZMA), "packed in a way"),
        ("a.zip", _zip({str(i): b"" for i in range(60)}), "at most 50 files"),
        ("a.zip", _directory_of_everything(), "at most 50 files"),
        ("a.zip", b"PK\5\6", "cannot be read"),
        (f"a.{'x' * 300}", b"a", ""),
        ("a\0.nii", b"a", ""),
        ("..", b"a", ""),
        ("a.nii\n.gz", b"a", ""),
    ],
)
def test_low_what_gave_500_gives_422(
    bundle: Path, temporary: Path, name: str, content: bytes, says: str
) -> None:
    """Review LOW: zips, suffixes and names that no reader expected."""
    with asking(app_of(bundle, ServeLimits(max_bytes=2**19, max_files=50))) as client:
        answer = client.post("/predict", files={"file": (name, content)})
        assert answer.status_code == 422
        assert says in answer.json()["detail"]
        assert not kept(temporary)


def test_low_deep_parameters_and_forms_that_are_none_are_refused(client: TestClient) -> None:
    """Review LOW: so many brackets ended in a RecursionError."""
    answer = client.post("/infer/lesionseg", data={"params": "[" * 150_000})
    assert answer.status_code == 422
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "text/plain"):
        answer = client.post("/predict", content=b"--x\r\nno form", headers={"Content-Type": kind})
        assert answer.status_code in (400, 422), kind
    for put in ("/session/", "/datastore/"):
        answer = client.put(put, files={"other": ("a.nii", b"a")})
        assert answer.status_code == 422
        assert "No file was sent." in answer.json()["detail"]


def test_h4_who_comes_when_too_many_wait_is_told_to_come_again(
    bundle: Path, scan: Path, endless: Endless, temporary: Path
) -> None:
    """Review H4: and health answers meanwhile."""
    with listening(app_of(bundle, ServeLimits(max_waiting=1))) as port:
        with closing(_asked(port, scan.read_bytes())):
            until(lambda: endless.n_begun)
            with closing(_asked(port, b"")) as second:
                answer = second.recv(9999)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 10" in answer.lower()
            assert _health(port) < 1
        until(lambda: endless.n_ended)
        until(lambda: not kept(temporary))
    assert not list(temporary.iterdir())


def test_h4_work_ends_when_its_client_has_left(
    bundle: Path, scan: Path, endless: Endless, temporary: Path
) -> None:
    """Review H4: and those who wait behind it have their turn."""
    with listening(app_of(bundle)) as port:
        first = _asked(port, scan.read_bytes())
        until(lambda: endless.n_begun == 1)
        second = _asked(port, scan.read_bytes())
        first.close()
        until(lambda: (endless.n_begun, endless.n_ended) == (2, 1))
        second.close()
        until(lambda: endless.n_ended == 2)
        until(lambda: not kept(temporary))


def test_h4_a_request_has_an_end(
    bundle: Path, scan: Path, endless: Endless, temporary: Path
) -> None:
    """Review H4: one scan held up all others for as long as it liked."""
    with asking(app_of(bundle, ServeLimits(request_seconds=0.3))) as client:
        answer = client.post("/predict", files={"file": ("a.nii.gz", scan.read_bytes())})
        assert answer.status_code == 503
        assert "too long" in answer.json()["detail"]
        assert endless.n_ended == 1
        assert not kept(temporary)


def test_low_slow_heads_and_bodies_end_their_connections(
    bundle: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Review LOW: half-open connections stayed for ever, also after an answer."""
    monkeypatch.setattr(gate, "HEAD_SECONDS", 4.0)
    monkeypatch.setattr(gate, "BODY_SECONDS", 1.0)
    with listening(app_of(bundle)) as port, ExitStack() as stack:
        body = stack.enter_context(_asked(port, b"", length=1000))
        silent, slow = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(2)
        )
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: slow.recv(9999).endswith(b"}}"))  # the answer's end
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        assert body.recv(9999).startswith(b"HTTP/1.1 408")
        assert silent.recv(9) == b""
        assert slow.recv(9) == b""
        assert _health(port) < 1
        assert not kept(temporary)


def test_m7_scans_of_a_killed_server_leave_when_one_starts(temporary: Path) -> None:
    """Review M7: those of one that lives stay."""
    dead, living = temporary / "lesionseg-serve-dead", temporary / "lesionseg-serve-living"
    for folder in (dead, living):
        folder.mkdir()
        (folder / "scan.nii").write_bytes(b"scan")
    with locked_folder(living), home() as own:
        assert {p.name for p in temporary.iterdir()} == {living.name, own.name}
