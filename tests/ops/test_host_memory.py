"""What the machine says of memory, and what training tells the C library about freed memory."""

import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lesionseg.ops import host_memory
from lesionseg.ops.host_memory import without_collection

MEBIBYTE = 2**20


def test_the_peak_is_not_that_of_the_parent(repository: Path) -> None:
    held = np.ones(600 * MEBIBYTE, np.uint8)
    program = "from lesionseg.ops.host_memory import peak_memory_mb; print(peak_memory_mb())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 500 < held.nbytes // MEBIBYTE


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


class Library:
    """A C library that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, ...]] = []

    def mallopt(self, option: int, value: int) -> None:
        self.told.append((option, value))

    def malloc_trim(self, pad: int) -> None:
        self.told.append((pad,))


def test_keeps_while_training_and_hands_back_after(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(host_memory.sys, "platform", "linux")
    for one in (object(), library):  # another library is left alone
        monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _, one=one: one)
        host_memory.keep_memory()
        host_memory.hand_back_memory()
    kept, handed_back = [(-1, -1), (-3, 2**30)], [(-1, 2**26), (-3, 2**25), (0,)]
    assert library.told == kept + handed_back
