import sys
from types import ModuleType

import pytest
import torch

from lesionseg.ops.kernels import on_gpu
from lesionseg.ops.kernels.on_gpu import gpu_kernels


@pytest.fixture(autouse=True)
def anew():
    """Each test asks for the first time, and so does whoever comes after."""
    on_gpu._launches.cache_clear()
    yield
    on_gpu._launches.cache_clear()


def check_that(monkeypatch: pytest.MonkeyPatch, launch) -> None:
    module = ModuleType("triton_check")
    module.launch = launch
    monkeypatch.setitem(sys.modules, "lesionseg.ops.kernels.triton_check", module)
    monkeypatch.setattr("lesionseg.ops.kernels.triton_check", module, raising=False)


def test_kernels_that_cannot_be_launched_are_left_out_and_it_is_said_once(
    monkeypatch, caplog
) -> None:
    def launch(_device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nMore of it.")

    check_that(monkeypatch, launch)
    assert gpu_kernels("focal_triton") is None
    assert gpu_kernels("nms_triton") is None
    assert [r.getMessage().partition(": plain")[0] for r in caplog.records] == [
        "Triton launches no kernel (RuntimeError: Failed to find C compiler.)"
    ]


def test_without_triton_there_are_no_kernels_and_no_warning(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "lesionseg.ops.kernels.triton_check", None)
    monkeypatch.delattr("lesionseg.ops.kernels.triton_check", raising=False)
    assert gpu_kernels("focal_triton") is None
    assert not caplog.records


def test_kernels_that_can_be_launched_are_given(monkeypatch) -> None:
    pytest.importorskip("triton")
    seen: list[torch.device] = []
    check_that(monkeypatch, seen.append)
    kernels = gpu_kernels("nms_triton")
    assert kernels is not None
    assert kernels.__name__.endswith("nms_triton")
    assert seen == [torch.device("cuda")]
