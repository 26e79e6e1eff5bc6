"""The size of the memory, and the release of freed memory by glibc."""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

# parameters of `mallopt`, as in glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
NEVER = -1  # a trim threshold: freed memory is never returned
HUGE = 2**30  # a mmap threshold, in bytes: smaller blocks are reused
# the largest thresholds that glibc chooses itself, in bytes
USUAL_TRIM = 2**26
USUAL_MMAP = 2**25
# `ru_maxrss` counts kilobytes on Linux and bytes on macOS
_RSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10
_UNKNOWN_BYTES = 8 * 2**30  # the assumed memory if the system does not state it
_DEFAULT_SHARE = 0.6  # of the free memory
_lock = Lock()
_n_users = [0]  # number of open calls of `reuse_memory`


def physical_bytes() -> int:
    """Return the memory of this machine in bytes, or 8 GiB if the system does not state it."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kilobytes = ctypes.c_ulonglong()
    with suppress(AttributeError):  # only Windows has this function
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))  # type: ignore[attr-defined]
    return 1024 * kilobytes.value or _UNKNOWN_BYTES


def default_budget() -> int:
    """Return the bytes that a command may use: 60 % of the free memory, or 4 GiB if unknown."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(int(line.split()[1]) * 1024 * _DEFAULT_SHARE)
    return _UNKNOWN_BYTES // 2


def peak_memory_mb() -> int:
    """Return the peak memory of this process in MB; 0 on Windows."""
    if sys.platform == "linux":
        # `getrusage` would include the parent's memory at the start of this process
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) // 1024
    try:
        import resource
    except ImportError:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_MB)


@contextmanager
def pause_collection() -> Iterator[None]:
    """Pause Python's search for reference cycles, which takes seconds among 10⁷ objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def reuse_memory(*, is_wanted: bool = True) -> Iterator[None]:
    """Make glibc keep freed blocks, so that later blocks of the same size reuse them.

    By default glibc returns each large block to the system, and the system clears its pages when
    they are used again. That takes a quarter or more of the time of a network on a CPU. At the end
    of the last of several nested or parallel calls, freed blocks are returned. Without
    `is_wanted`, nothing happens.
    """
    library = _glibc() if is_wanted else None
    if library is None:
        yield
        return
    with _lock:
        _n_users[0] += 1
        if _n_users[0] == 1:
            library.mallopt(M_TRIM_THRESHOLD, NEVER)
            library.mallopt(M_MMAP_THRESHOLD, HUGE)
    try:
        yield
    finally:
        with _lock:
            _n_users[0] -= 1
            if _n_users[0] == 0:
                library.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM)
                library.mallopt(M_MMAP_THRESHOLD, USUAL_MMAP)
                library.malloc_trim(0)


def trim_memory() -> None:
    """Return all free blocks to the system, even those between used ones, in milliseconds."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library if it is glibc, otherwise None."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
