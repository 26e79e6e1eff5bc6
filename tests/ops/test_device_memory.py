"""Errors that mean that memory ran out, and others."""

import numpy as np
import pytest
import torch

from lesionseg.ops.device_memory import is_out_of_memory

TOO_MUCH = 10**15


def error_of(function, *args):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        function(*args)
    return caught.value


def test_lack_of_memory_on_a_cpu_is_recognised():
    assert is_out_of_memory(error_of(torch.empty, TOO_MUCH))
    assert is_out_of_memory(error_of(np.empty, TOO_MUCH))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),  # Windows
    ],
)
def test_lack_of_memory_outside_torch_s_allocator_is_recognised(error):
    assert is_out_of_memory(error)


def test_other_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(error_of(torch.matmul, torch.ones(2, 3), torch.ones(2, 3)))
    assert not is_out_of_memory(RuntimeError("DataLoader worker killed: out of shared memory"))
