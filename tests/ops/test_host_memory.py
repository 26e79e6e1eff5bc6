"""What the machine says of memory, and what training tells the C library about freed memory."""

import gc
from contextlib import suppress
from unittest.mock import Mock, call

import numpy as np
import pytest

from lesionseg.ops import host_memory
from lesionseg.ops.host_memory import without_collection
from tests.commands import python

MEBIBYTE = 2**20


def test_the_peak_is_not_that_of_the_parent() -> None:
    held = np.ones(600 * MEBIBYTE, np.uint8)
    program = "from lesionseg.ops.host_memory import peak_memory_mb; print(peak_memory_mb())"
    done = python("-c", program)
    assert 0 < int(done.stdout) < 500 < held.nbytes // MEBIBYTE


def test_what_is_free_is_some_of_what_there_is() -> None:
    assert 0 < host_memory.default_budget() < host_memory.physical_bytes()


def test_cycles_are_looked_for_again_afterwards() -> None:
    with suppress(ValueError), without_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_keeps_while_training_and_hands_back_after(monkeypatch: pytest.MonkeyPatch) -> None:
    library, another = Mock(), Mock(spec=[])
    for system, found in (("linux", another), ("win32", library), ("linux", library)):
        monkeypatch.setattr(host_memory.sys, "platform", system)
        monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _, found=found: found)
        assert not library.method_calls  # other systems and libraries are left alone
        host_memory.keep_memory()
        host_memory.hand_back_memory()
    kept = [call.mallopt(-1, -1), call.mallopt(-3, 2**30)]
    handed_back = [call.mallopt(-1, 2**26), call.mallopt(-3, 2**25), call.malloc_trim(0)]
    assert library.method_calls == kept + handed_back
