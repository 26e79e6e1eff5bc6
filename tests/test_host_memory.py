"""Memory of the machine and of this process."""

import ctypes
import gc
import sys
from contextlib import suppress

import numpy as np
import pytest

from lesionseg.host_memory import default_budget, pause_collection, physical_bytes, reuse_memory
from tests.commands import python

MEBIBYTE = 2**20


def test_peak_memory_does_not_include_the_parent_process() -> None:
    held = np.ones(600 * MEBIBYTE, np.uint8)
    program = "from lesionseg.host_memory import peak_memory_mb; print(peak_memory_mb())"
    done = python("-c", program)
    assert 0 < int(done.stdout) < 500 < held.nbytes // MEBIBYTE


def test_default_budget_is_below_the_physical_memory() -> None:
    assert 0 < default_budget() < physical_bytes()


def test_garbage_collection_resumes_after_a_pause() -> None:
    with suppress(ValueError), pause_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with pause_collection():
            pass
        assert not gc.isenabled()  # still off
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is only on Linux")
def test_blocks_are_reused_until_the_last_user_ends() -> None:
    resource = pytest.importorskip("resource")
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p

    def count_page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(library.malloc(64 * MEBIBYTE))
        ctypes.memset(block, 1, 64 * MEBIBYTE)
        library.free(block)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    n_pages = 64 * MEBIBYTE // resource.getpagesize()
    with reuse_memory():
        with reuse_memory():
            count_page_faults()
        assert count_page_faults() < n_pages / 16
    assert count_page_faults() > n_pages / 2
