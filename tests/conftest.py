"""Fixtures for all tests: one thread, a seeded generator, a toy case, a plan."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.core import Case, Geometry, Reference, Volume
from tests.models.plans import plan_of


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect the tests without garbage collection, and exclude all imported modules from it later.

    Torch and the other packages have millions of objects that stay until the end. Searching them
    for cycles took a tenth of the processor time of all quick tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)  # the default of 700 suits smaller programs


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Do not wait until files are on the disk, which takes 2 to 6 ms for each."""
    with mock.patch("os.fsync"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def toy_case(rng):
    """Return a volume of noise, 24 x 32 x 28, with two bright boxes as lesions."""
    geometry = Geometry.from_spacing((24, 32, 28), (1.0, 1.0, 1.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[4:8, 5:9, 6:10] = 1
    labels[14:20, 18:24, 15:21] = 1
    image = rng.normal(100, 5, geometry.shape).astype(np.float32) + 60 * labels
    return Case("toy", Volume(image[None], geometry), Reference(geometry, labels))


@pytest.fixture
def plan():
    """Return a 3-D plan of two stages that is small enough for a test."""
    strides = ((1, 1, 1), (2, 2, 2))
    return plan_of(dims=3, strides=strides, table={"blocks": 1}, channel_names=("T1",))


@pytest.fixture
def run_command(capsys):
    """Return a function that runs a command, checks its exit status, and returns what it prints."""

    def call(name, settings, status=0):
        assert run(name, [*settings]) == status
        return capsys.readouterr()

    return call


@pytest.fixture
def repository():
    return Path(__file__).resolve().parent.parent
