"""Review H4: a server in a process of its own, asked by many, and ended while it works."""

import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.io.volumes import write_volume
from lesionseg.models import build_network
from lesionseg.plan.plan import Plan
from tests.pipeline.serve.conftest import until

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.slow
SHAPE = (48, 48, 48)
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'
KIND = "multipart/form-data; boundary=x"


@pytest.fixture
def bundle(tmp_path: Path, plan: Plan) -> Path:
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "")
    return tmp_path / "bundle"


@pytest.fixture
def body(tmp_path: Path, rng: np.random.Generator) -> bytes:
    """A request's form with one scan."""
    image = rng.normal(100, 3, (1, *SHAPE)).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", Volume(image, Geometry(SHAPE, np.eye(4))))
    return FORM + (tmp_path / "a.nii.gz").read_bytes() + b"\r\n--x--\r\n"


@contextmanager
def running(bundle: Path, *settings: str) -> Iterator[tuple[int, Path, subprocess.Popen[str]]]:
    """`lesionseg serve` with its port, its temporary folder and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    temporary = bundle.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-c", "import sys; from lesionseg.cli import main; sys.exit(main())"]
    settings = ("serve", f"bundle={bundle}", f"port={port}", "device=cpu", *settings)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [*command, *settings], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: _is_up(port) or process.poll() is not None, 60)
        yield port, temporary, process
    finally:
        process.kill()
        process.communicate()


def _is_up(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _post(port: int, body: bytes, address: str = "predict") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{address}", body)
    request.add_header("Content-Type", KIND)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def _leave(port: int, sent: bytes, length: int, seconds: float) -> None:
    """Send what may be less than was promised, and be gone before the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(_head(length) + sent)
        time.sleep(seconds)


def _head(length: int) -> bytes:
    return (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {KIND}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


WATCH = """
import sys, time, urllib.request
while True:
    begin = time.monotonic()
    urllib.request.urlopen(sys.argv[1], timeout=60).read()
    print(time.monotonic() - begin, flush=True)
    time.sleep(0.05)
"""


@contextmanager
def watched(port: int) -> Iterator[list[float]]:
    """What each of many answers of `/health` took, in a process of its own; full at the end."""
    seconds: list[float] = []
    address = f"http://127.0.0.1:{port}/health"
    watch = subprocess.Popen(
        [sys.executable, "-c", WATCH, address], stdout=subprocess.PIPE, text=True
    )
    yield seconds
    watch.kill()
    seconds += [float(line) for line in watch.communicate()[0].splitlines()]


def _kept(temporary: Path) -> list[Path]:
    return [p for p in temporary.glob("lesionseg-serve-*/*") if p.name != ".lock"]


def test_h4_a_hundred_clients_of_whom_half_vanish(bundle: Path, body: bytes) -> None:
    with running(bundle, "max_waiting=256") as (port, temporary, _):
        single = _post(port, body)
        assert single[0] == 200
        with watched(port) as seconds, ThreadPoolExecutor(100) as pool:
            slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
            for number, connection in enumerate(slow):  # heads and bodies that never end
                connection.sendall(_head(1000)[: None if number % 2 else 40])
            left = [pool.submit(_leave, port, body, len(body), 0.05 * i) for i in range(50)]
            stayed = [pool.submit(_post, port, body) for _ in range(50)]
            answers = [one.result() for one in stayed]
            for one in left:
                one.result()
            twenty = [one.result() for one in [pool.submit(_post, port, body) for _ in range(20)]]
            for connection in slow:
                connection.close()
            until(lambda: not _kept(temporary))
        assert answers == [single] * 50
        assert twenty == [single] * 20
        late = np.quantile(seconds, (0.5, 0.99, 1))
        logger.info("health, %d times: %.3f s, 99 %%: %.2f s, all: %.2f s", len(seconds), *late)
        assert max(seconds) <= 1


def test_h4_who_is_too_many_is_told_so_and_the_others_are_served(bundle: Path, body: bytes) -> None:
    with running(bundle, "max_waiting=4") as (port, _, _p), ThreadPoolExecutor(20) as pool:
        single = _post(port, body)
        answers = [one.result() for one in [pool.submit(_post, port, body) for _ in range(20)]]
        assert {status for status, _ in answers} == {200, 503}
        assert all(answer == single for answer in answers if answer[0] == 200)


@pytest.mark.parametrize("ask", [signal.SIGTERM, signal.SIGINT])
def test_h4_a_server_ends_in_time_while_it_works(
    bundle: Path, body: bytes, ask: signal.Signals
) -> None:
    with running(bundle) as (port, temporary, process), ThreadPoolExecutor(40) as pool:
        for _ in range(20):
            pool.submit(_leave, port, body, len(body), 20)
            pool.submit(_leave, port, body[:2000], len(body), 20)
        until(lambda: len(_kept(temporary)) > 10, 30)
        begin = time.monotonic()
        process.send_signal(ask)
        _, said = process.communicate(timeout=30)
        seconds = time.monotonic() - begin
        logger.info("%s: %.1f s, status %d", ask.name, seconds, process.returncode)
        assert seconds <= 10
        assert "Traceback" not in said, said
        assert not list(temporary.iterdir())


def test_m7_scans_of_a_server_that_was_killed_leave_with_the_next_one(
    bundle: Path, body: bytes
) -> None:
    with running(bundle) as (port, temporary, process):
        session = FORM.replace(b'"file"', b'"files"') + body[len(FORM) :]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/session/", session, method="PUT")
        request.add_header("Content-Type", KIND)
        urllib.request.urlopen(request, timeout=60).close()
        assert _kept(temporary)
        process.kill()
        process.wait()
    assert _kept(temporary)
    with running(bundle) as (_, temporary, _p):
        assert not _kept(temporary)


def test_https_and_token_by_flags(bundle: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext"
    command += f" subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    flags = (f"ssl_certfile={certificate}", f"ssl_keyfile={key}", "token=s3cret")
    with running(bundle, *flags) as (port, _, process):
        trusting = ssl.create_default_context(cafile=str(certificate))
        request = urllib.request.Request(f"https://127.0.0.1:{port}/")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, context=trusting, timeout=60)
        request.add_header("Authorization", "Bearer s3cret")
        with urllib.request.urlopen(request, context=trusting, timeout=60) as answer:
            assert answer.status == 200
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "https://127.0.0.1" in said
    assert "s3cret" not in said


def test_a_certificate_that_is_none_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("none")
    with running(bundle, f"ssl_certfile={tmp_path / 'cert.pem'}") as (_, _t, process):
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "The certificate or its key cannot be used." in said
