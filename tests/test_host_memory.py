"""What the machine says of memory."""

import gc
from contextlib import suppress

import numpy as np

from lesionseg.host_memory import default_budget, pause_collection, physical_bytes
from tests.commands import python

MEBIBYTE = 2**20


def test_the_peak_is_not_that_of_the_parent() -> None:
    held = np.ones(600 * MEBIBYTE, np.uint8)
    program = "from lesionseg.host_memory import peak_memory_mb; print(peak_memory_mb())"
    done = python("-c", program)
    assert 0 < int(done.stdout) < 500 < held.nbytes // MEBIBYTE


def test_what_is_free_is_some_of_what_there_is() -> None:
    assert 0 < default_budget() < physical_bytes()


def test_cycles_are_looked_for_again_afterwards() -> None:
    with suppress(ValueError), pause_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with pause_collection():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()
