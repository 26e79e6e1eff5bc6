"""The machine's memory on every system, and whether glibc keeps memory that was freed."""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, HUGE = -1, 2**30
# where glibc's own adaptation ends
USUAL_TRIM, USUAL_MMAP = 2**26, 2**25
# "ru_maxrss" counts kilobytes, but bytes on a Mac
_RSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10
_UNKNOWN_BYTES = 8 * 2**30
_DEFAULT_SHARE = 0.6  # of what is free


def physical_bytes() -> int:
    """Return the memory of this machine in bytes; 8 GiB if its system does not say."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kilobytes = ctypes.c_ulonglong()
    with suppress(AttributeError):  # Windows alone has it
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))  # type: ignore[attr-defined]
    return 1024 * kilobytes.value or _UNKNOWN_BYTES


def default_budget() -> int:
    """Return the bytes that a command may take: 60 % of the free ones; 4 GiB if unknown."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(int(line.split()[1]) * 1024 * _DEFAULT_SHARE)
    return _UNKNOWN_BYTES // 2


def peak_memory_mb() -> int:
    """Return the largest memory that this process has held in MB; 0 on Windows."""
    if sys.platform == "linux":
        # `getrusage` would count what the parent held when it started this process
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
    """Pause the search for reference cycles: among 10⁷ objects it takes seconds."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def keep_memory() -> None:
    """Let glibc keep freed blocks for the next ones of their size."""
    library = _glibc()
    if library is not None:
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
        library.mallopt(M_MMAP_THRESHOLD, HUGE)


def hand_back_memory() -> None:
    """Return freed blocks to the system, and undo `keep_memory`."""
    library = _glibc()
    if library is not None:
        library.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM)
        library.mallopt(M_MMAP_THRESHOLD, USUAL_MMAP)
    trim_memory()


def trim_memory() -> None:
    """Return the free blocks to the system, those between other ones too, in milliseconds."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
