"""What the machine says of memory."""

import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

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
