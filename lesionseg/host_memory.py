"""Host memory: cgroup limit, default budget (60 % of free memory), peak, release by glibc.

On Linux, a container or a job of a scheduler may use less memory than the machine has: its control
group (cgroup) has a limit, and the kernel kills a process that exceeds it.
"""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
_ROOT = Path("/")
_lock = Lock()
_n_users = [0]  # number of open calls of `reuse_memory`


def physical_bytes(root: Path = _ROOT) -> int:
    """Return the memory in bytes that this process may use at most.

    The result is the memory of the machine, or the limit of this container or job if the limit is
    lower.

    Args:
        root: Contains `proc` and `sys`, for tests.

    Returns:
        The memory in bytes, or 8 GiB if the system does not report it.
    """
    return min([_machine_bytes(), *(group.limit for group in _limiting_groups(root))])


def _machine_bytes() -> int:
    """Return the physical memory of this machine in bytes, or 8 GiB if it is not known."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kilobytes = ctypes.c_ulonglong()
    with suppress(AttributeError):  # only Windows has this function
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))  # type: ignore[attr-defined]
    return 1024 * kilobytes.value or _UNKNOWN_BYTES  # 0: the function failed or is missing


def default_budget(root: Path = _ROOT) -> int:
    """Return the memory budget of a command in bytes: 60 % of the free memory.

    Args:
        root: Contains `proc` and `sys`, for tests.

    Returns:
        60 % of the free memory of the machine, or of this container or job if it has less. 4 GiB if
        the system does not report its free memory.
    """
    free = [group.free for group in _limiting_groups(root)]
    info = root / "proc/meminfo"
    lines = info.read_text().splitlines() if info.is_file() else []
    # a line such as `MemAvailable:   16234 kB`
    free += [1024 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable:")]
    return int(min(free) * _DEFAULT_SHARE) if free else _UNKNOWN_BYTES // 2  # half of 8 GiB


@dataclass(frozen=True)
class _Group:
    """The limit of a control group, and the memory that its processes may still use, in bytes."""

    limit: int
    free: int


def _limiting_groups(root: Path) -> list[_Group]:
    """Return the control groups with a memory limit to which this process belongs (Linux).

    The limits of all parents apply as well: SLURM limits the group of a job, and the steps and
    tasks of the job have groups below it. A container may see the path of its group on the machine,
    although `/sys/fs/cgroup` of the container begins with this group. Folders that do not exist are
    therefore skipped. The list is empty on other systems, and without a limit in version 2 of
    cgroups.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    groups: list[_Group] = []
    for line in lines:  # `number:controllers:path`; version 2 has no controllers
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers == "":
            version = 2
            mount = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            version = 1
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        names = [name for name in path.split("/") if name]
        if ".." in names:  # the group is not below the one that this process sees as the root
            names = []
        folder = mount.joinpath(*names)
        # up to `mount`, which is the last one
        own_and_parents = [folder, *folder.parents][: len(names) + 1]
        groups += filter(None, (_read_group(group, version) for group in own_and_parents))
    return groups


def _read_group(folder: Path, version: int) -> _Group | None:
    """Read the memory limit of a control group and the memory that is free below this limit.

    `version` is the version of cgroups, 1 or 2. Return None if the folder is not a group, or is a
    group of version 2 without a limit. Without a limit, version 1 has a very large number, which is
    returned. The kernel drops cached files before it kills a process, so their memory counts as
    free, as in `MemAvailable` of the machine.
    """
    limit_file = "memory.max" if version == 2 else "memory.limit_in_bytes"
    used_file = "memory.current" if version == 2 else "memory.usage_in_bytes"
    # The used memory includes the groups below this group. So do the statistics, which version 1
    # calls `total_…`.
    prefix = "" if version == 2 else "total_"
    try:
        limit = int((folder / limit_file).read_text())
        used = int((folder / used_file).read_text())
        statistics = (folder / "memory.stat").read_text()
    except (OSError, ValueError):  # no such file, or the word "max": no limit
        return None
    # the bytes of cached files, recently used or not: `active_file` and `inactive_file`
    cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", statistics, re.MULTILINE)
    return _Group(limit, max(0, limit - max(0, used - sum(map(int, cached)))))


def peak_memory_mb() -> int:
    """Return the peak of this process's resident memory in MB of 2²⁰ bytes; 0 on Windows."""
    if sys.platform == "linux":
        # `getrusage` would include the parent's memory at the start of this process
        match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) // 1024  # kB to MB
    try:
        import resource
    except ImportError:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_MB)


@contextmanager
def pause_collection() -> Iterator[None]:
    """Pause Python's garbage collector in the context, while many objects are created.

    The search for reference cycles needs seconds for 10⁷ objects. If the collector is off already,
    it stays off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def reuse_memory(*, is_wanted: bool = True) -> Iterator[None]:
    """Make glibc keep freed memory blocks in the context, so that later blocks reuse them.

    By default glibc returns each large block to the system, and the system clears its pages when
    they are used again. That needs a quarter or more of the time of a network on a CPU. Contexts
    may be nested or parallel; at the exit of the last one, freed blocks are returned. Nothing
    happens if `is_wanted` is False, or without glibc.
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
    """Give all freed memory of this process back to the system, even between used blocks.

    The call needs milliseconds. Without glibc nothing happens.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library of this process if it is glibc, otherwise None.

    Only glibc has the functions `mallopt` and `malloc_trim`, which control freed memory.
    """
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)  # None: the libraries that this process has loaded
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
