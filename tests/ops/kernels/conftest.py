"""The kernels under test: numba's as they are, Triton's on a GPU, else under its interpreter."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from lesionseg.ops import kernels
from lesionseg.ops.kernels import focal_numba


@dataclass(frozen=True)
class Backend:
    """A module of kernels and the device they run on."""

    module: ModuleType
    device: str


@pytest.fixture(scope="session")
def focal_kernels() -> Iterator[Backend]:
    """Triton's kernels of the focal loss."""
    with _triton("focal_kernels") as backend:
        yield backend


@pytest.fixture(scope="session")
def focal_triton(focal_kernels: Backend) -> Iterator[Backend]:
    """What launches them."""
    with _in_place(focal_kernels), _triton("focal_triton", BLOCK=64) as backend:
        yield backend


@pytest.fixture(scope="session")
def levels_triton(focal_kernels: Backend, focal_triton: Backend) -> Iterator[Backend]:
    """Triton's kernels of all levels, which call those of the focal loss."""
    used = focal_kernels, focal_triton
    with _in_place(*used), _triton("levels_triton", BLOCK=32, HELD=16) as backend:
        yield backend


@pytest.fixture(scope="session")
def nms_triton() -> Iterator[Backend]:
    """Triton's kernels of non-maximum suppression."""
    with _triton("nms_triton", ROWS=128) as backend:
        yield backend


@contextmanager
def _in_place(*backends: Backend) -> Iterator[None]:
    """What is imported meanwhile calls these copies."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (backend.module for backend in backends):
            patch.setitem(sys.modules, module.__name__, module)
            patch.setattr(kernels, module.__name__.rpartition(".")[2], module, raising=False)
        yield


@contextmanager
def _triton(name: str, **blocks: int) -> Iterator[Backend]:
    """A module of kernels on a GPU if there is one, else a private copy that is interpreted."""
    pytest.importorskip("triton")
    name = f"lesionseg.ops.kernels.{name}"
    if torch.cuda.is_available():
        yield Backend(importlib.import_module(name), "cuda")
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read when a kernel is defined
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for block, size in blocks.items():
            patch.setattr(module, block, size)
        yield Backend(module, "cpu")


@pytest.fixture(params=["numba", "triton"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "numba":
        return Backend(focal_numba, "cpu")
    backend: Backend = request.getfixturevalue("focal_triton")
    return backend
