"""Native decoders in a process of their own: what they return, raise, log and die of."""

import ctypes
import os
import time
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import ReadError
from lesionseg.io.formats import guard
from lesionseg.io.formats.decoder import decode
from lesionseg.io.formats.guard import FileLimits
from lesionseg.io.formats.raster import write_raster
from lesionseg.io.volumes import read_volume


@pytest.fixture
def limit(monkeypatch):
    """Sets a limit for the time of one test."""
    return lambda **limits: monkeypatch.setattr(guard, "_limits", FileLimits(**limits))


def test_returns_arrays_that_may_be_written_to():
    array = decode(np.arange, 12, dtype=np.float32)
    array += 1
    assert array.tolist() == list(range(1, 13))
    assert decode(np.asfortranarray, np.ones((2, 3)))[:, ::2].shape == (2, 2)
    assert decode(np.zeros, (0, 3)).shape == (0, 3)


def test_raises_what_the_function_raises():
    with pytest.raises(ValueError, match="negative dimensions"):
        decode(np.zeros, -1)


def test_one_worker_serves_all_calls():
    first = decode(eval, "__import__('os').getpid()")
    assert first == decode(eval, "__import__('os').getpid()") != os.getpid()


def test_a_crash_is_refused_by_name_and_the_next_file_is_read():
    with pytest.raises(ReadError, match=r"crashed on this file.*SIGSEGV.*How to fix") as caught:
        decode(ctypes.string_at, 0)
    assert caught.value.where == "0"
    with pytest.raises(ReadError, match="exit status 3"):
        decode(os._exit, 3)
    assert decode(abs, -3) == 3


def test_a_hang_ends(limit):
    limit(read_seconds=0.3)
    with pytest.raises(ReadError, match=r"too long.*at most 0 s"):
        decode(time.sleep, 100)
    limit()
    assert decode(abs, -3) == 3


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux limits it")
def test_memory_is_limited(limit):
    limit(max_voxels=1)
    with pytest.raises(MemoryError):
        decode(bytes, 2**31)
    limit()
    assert len(decode(bytes, 2**27)) == 2**27


def test_what_a_reader_warns_about_is_logged_here(tmp_path, caplog):
    from PIL import Image

    Image.new("RGB", (2, 2), (200, 10, 10)).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert volume.array.shape == (1, 2, 2)
    assert [record.name for record in caplog.records] == ["lesionseg.io.formats.raster"]
    assert "a.png is in colour" in caplog.text


def test_a_forked_process_has_a_worker_of_its_own():
    worker = decode(eval, "__import__('os').getpid()")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(decode(eval, "__import__('os').getpid()")).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 20)) != worker
    os.close(read)
    os.close(write)
    assert decode(eval, "__import__('os').getpid()") == worker


def test_limits_hold_in_the_worker(tmp_path, limit):
    write_raster(tmp_path / "a.png", np.zeros((20, 20), np.uint8))
    limit(max_voxels=399)
    with pytest.raises(ReadError, match=r"too many voxels.*limits\.max_voxels"):
        read_volume(tmp_path / "a.png")
    limit(spacing_mm=(2, 3))
    with pytest.raises(ReadError, match=r"impossible size.*limits\.spacing_mm"):
        read_volume(tmp_path / "a.png")
