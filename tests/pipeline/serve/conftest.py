"""A server's bundle and scan, its application, and the same at a port of this machine."""

import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from lesionseg.core import Geometry, Volume
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.sliding.sliding_window import OnTile
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.serve.app import make_app
from lesionseg.pipeline.serve.gate import HeadInTime
from lesionseg.pipeline.serve.uploads import ServeLimits
from tests.inference.networks import Bright

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette says that it would rather have httpx2
    from fastapi.testclient import TestClient as TestClient

SHAPE = (12, 18, 20)
MINE = {"mine": lambda _: Bright()}
NAME = "Doe_Jane_1970.nii.gz"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything temporary goes, to see that nothing stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def scan(tmp_path: Path, rng: np.random.Generator) -> Path:
    image = rng.normal(100, 3, SHAPE)
    image[3:6, 4:8, 5:9] += 60
    image[8:11, 10:14, 12:17] += 80
    affine = np.array([[0, 0, -1, 9], [0, 1, 0, -4], [2, 0, 0, 3], [0, 0, 0, 1.0]])
    volume = Volume(image.astype(np.float32)[None], Geometry(SHAPE, affine))
    write_volume(tmp_path / NAME, volume)
    return tmp_path / NAME


@pytest.fixture
def client(bundle: Path, temporary: Path) -> Iterator[TestClient]:
    with asking(app_of(bundle, ServeLimits(2**19))) as client:
        yield client


class Endless:
    """Work at the network that goes on until nobody waits for it."""

    def __init__(self) -> None:
        self.n_begun, self.n_ended = 0, 0

    def predict_volume(self, volume: Volume, case: str, *, on_tile: OnTile) -> object:
        self.n_begun += 1
        try:
            while True:
                time.sleep(0.01)
                on_tile(1, 2)
        finally:
            self.n_ended += 1


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Endless:
    work = Endless()
    monkeypatch.setattr(
        Predictor, "predict_volume", lambda _, *a, **k: work.predict_volume(*a, **k)
    )
    return work


def app_of(bundle: Path, limits: ServeLimits | None = None, token: str | None = None) -> FastAPI:
    predictor = Predictor(bundle, device="cpu", architectures=MINE)
    return make_app(
        predictor, bundle="x", limits=limits or ServeLimits(), hosts=["scans.example"], token=token
    )


def asking(app: FastAPI) -> TestClient:
    """A client in this process."""
    return TestClient(app, base_url="http://localhost")


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """The port at which uvicorn serves `app`, with the protocol that `serve` uses."""
    config = uvicorn.Config(
        app, port=0, http=HeadInTime, log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def kept(folder: Path) -> list[Path]:
    """What lies there, file or folder, besides a living server's own folder and its lock."""
    (home,) = folder.iterdir()
    return [p for p in home.rglob("*") if p != home / ".lock"]
