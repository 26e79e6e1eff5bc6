"""Memory of the machine and of this process."""

import gc
import sys
from contextlib import suppress

import numpy as np
import pytest

from lesionseg import host_memory
from lesionseg.host_memory import default_budget, pause_collection, physical_bytes
from tests.commands import python

MEBIBYTE = 2**20
GIB = 2**30


def test_peak_memory_does_not_include_the_parent_process():
    held = np.ones(600 * MEBIBYTE, np.uint8)
    program = "from lesionseg.host_memory import peak_memory_mb; print(peak_memory_mb())"
    done = python("-c", program)
    assert 0 < int(done.stdout) < 500 < held.nbytes // MEBIBYTE


def test_default_budget_is_below_the_physical_memory():
    assert 0 < default_budget() < physical_bytes()


@pytest.fixture
def machine(tmp_path):
    """Return a function that writes files of a machine with 512 GB of free memory, by path."""

    def write(groups, **files):
        contents = {"proc/self/cgroup": groups, "proc/meminfo": "MemAvailable: 500000000 kB\n"}
        contents |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
        for name, text in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def to_bytes(gib):
    """Return a number of GiB in bytes. Words stay as they are."""
    return gib if isinstance(gib, str) else int(gib * GIB)


def group_v2(folder, limit, used, cached=0):
    """Return the files of a control group of version 2, from GiB. Half of its cache is old."""
    half = to_bytes(cached / 2)
    texts = {
        "max": f"{to_bytes(limit)}\n",
        "current": f"{to_bytes(used)}\n",
        "stat": f"anon 5\ninactive_file {half}\nactive_file {half}\nslab 1\n",
    }
    return {f"{folder}memory.{name}": text for name, text in texts.items()}


def group_v1(folder, limit, used, cached=0):
    """Return the files of a control group of version 1, from GiB. A child group caches files."""
    cache = f"total_inactive_file {to_bytes(cached)}\ntotal_active_file 0\n"
    texts = {
        "limit_in_bytes": f"{to_bytes(limit)}\n",
        "usage_in_bytes": f"{to_bytes(used)}\n",
        "stat": f"inactive_file 7\n{cache}",
    }
    return {f"memory/{folder}memory.{name}": text for name, text in texts.items()}


NO_LIMIT_V1 = str(2**63 - 4096)  # as Linux states it
V1_LINES = "12:cpuset:/\n9:cpu,memory:/slurm/job_7/step_0\n0::/init.scope\n"
CHILD = "job_7/step_0/user/"


NO_LIMIT = 500_000_000 * 1024 / GIB  # the available memory of the machine


@pytest.mark.parametrize(
    ("groups", "files", "limit", "free"),
    [
        # a container with its own namespace: the root's files are those of the container
        ("0::/\n", group_v2("", 16, 6, cached=2), 16, 12),
        # a container that sees the path of the machine, which does not exist within it
        ("0::/docker/4f\n", group_v2("", 16, 6), 16, 10),
        ("0::/../4f\n", group_v2("", 16, 6), 16, 10),
        # SLURM: the limit is that of the job, two levels above the task
        (
            f"0::/{CHILD}\n",
            group_v2(CHILD, "max", 1) | group_v2("job_7/", 16, 4),
            16,
            12,
        ),
        # the smallest limit and the least free memory are of different groups
        (
            f"0::/{CHILD}\n",
            group_v2(CHILD, 8, 1) | group_v2("job_7/", 16, 11),
            8,
            5,
        ),
        (
            V1_LINES,
            group_v1("slurm/job_7/step_0/", NO_LIMIT_V1, 1)
            | group_v1("slurm/job_7/", 16, 6, cached=2),
            16,
            12,
        ),
        (V1_LINES, group_v1("", 16, 6), 16, 10),  # a container
        # more is used than allowed, until the kernel frees memory
        ("0::/\n", group_v2("", 16, 17), 16, 0),
        # no limit
        ("0::/user.slice\n", group_v2("user.slice/", "max", 1), 512, NO_LIMIT),
        (V1_LINES, group_v1("", NO_LIMIT_V1, 1), 512, NO_LIMIT),
        (V1_LINES, {}, 512, NO_LIMIT),  # the files are not mounted
        ("", {}, 512, NO_LIMIT),
    ],
)
def test_memory_is_limited_by_the_control_group(machine, monkeypatch, groups, files, limit, free):
    monkeypatch.setattr(host_memory, "_machine_bytes", lambda: 512 * GIB)
    root = machine(groups, **files)
    assert physical_bytes(root) == limit * GIB
    assert default_budget(root) == int(0.6 * free * GIB)


def test_memory_of_another_system_is_assumed(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_machine_bytes", lambda: 8 * GIB)
    assert physical_bytes(tmp_path) == 8 * GIB
    assert default_budget(tmp_path) == 4 * GIB


def test_garbage_collection_resumes_after_a_pause():
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


COUNT_PAGE_FAULTS = """
import ctypes, resource
from lesionseg.host_memory import reuse_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p


def count_page_faults(n_bytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(library.malloc(n_bytes))
    ctypes.memset(block, 1, n_bytes)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


# the second block is smaller, because Python may take a few bytes of the first one in between
with reuse_memory():
    with reuse_memory():
        count_page_faults(2**26)
    reused = count_page_faults(2**25)
print(reused, count_page_faults(2**25), 2**25 // resource.getpagesize())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is only on Linux")
def test_blocks_are_reused_until_the_last_user_ends():
    # in a process of its own: after an allocation that failed, as in other tests, glibc gives the
    # thread another arena, in which large blocks are never reused
    done = python("-c", COUNT_PAGE_FAULTS)
    reused, fresh, n_pages = map(int, done.stdout.split())
    assert reused < n_pages / 16
    assert fresh > n_pages / 2
