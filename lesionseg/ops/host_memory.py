"""What glibc does with memory that was freed; with another C library nothing is done."""

import ctypes
import sys
from typing import Any

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, HUGE = -1, 2**30
# where glibc's own adaptation ends
USUAL_TRIM, USUAL_MMAP = 2**26, 2**25


def keep_memory() -> None:
    """From now on what is freed is kept for the next block of its size."""
    library = _glibc()
    if library is not None:
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
        library.mallopt(M_MMAP_THRESHOLD, HUGE)


def hand_back_memory() -> None:
    """Hand freed blocks back, and from now on do as usual."""
    library = _glibc()
    if library is not None:
        library.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM)
        library.mallopt(M_MMAP_THRESHOLD, USUAL_MMAP)
    trim_memory()


def trim_memory() -> None:
    """Hand blocks back that are free now, between others too; takes milliseconds."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
