"""The kernels under test: numba's as they are, Triton's on a GPU, else under its interpreter."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from lesionseg.ops.kernels import focal_numba


@dataclass(frozen=True)
class Backend:
    """A module of kernels and the device they run on."""

    module: ModuleType
    device: str


@pytest.fixture(scope="session")
def focal_triton() -> Iterator[Backend]:
    """Triton's kernels, on a GPU if there is one, else a private copy that is interpreted."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        from lesionseg.ops.kernels import focal_triton

        yield Backend(focal_triton, "cuda")
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read when a kernel is defined
        spec = importlib.util.find_spec("lesionseg.ops.kernels.focal_triton")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        patch.setattr(module, "BLOCK", 256)
        yield Backend(module, "cpu")


@pytest.fixture(params=["numba", "triton"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "numba":
        return Backend(focal_numba, "cpu")
    backend: Backend = request.getfixturevalue("focal_triton")
    return backend
