"""The tiles of each batch with one or several processes, and the number of workers."""

from collections import namedtuple
from itertools import chain, islice

import pytest

from lesionseg.training import tile_stream
from lesionseg.training.batch_targets import BatchTargets
from lesionseg.training.tile_stream import loader_workers, number_batches


def count_workers(asked, plan, device, n_processes=1):
    return loader_workers(asked, plan, device, n_processes, BatchTargets())


def test_processes_divide_the_tiles_of_a_step_without_overlap():
    ranks = [islice(number_batches(2, 0, r, world_size=3), 3) for r in range(3)]
    together = [sorted(chain(*step)) for step in zip(*ranks, strict=True)]
    assert together == [list(range(6)), list(range(6, 12)), list(range(12, 18))]


@pytest.mark.parametrize(
    ("cores", "asked", "device", "processes", "expected"),
    [
        (16, "auto", "cuda", 1, 8),
        (16, "auto", "cuda", 4, 3),
        (1, "auto", "cuda", 1, 1),
        (16, "auto", "cpu", 1, 1),
        (2, 0, "cuda", 1, 0),
    ],
)
def test_number_of_workers_follows_cores_and_processes(
    monkeypatch, make_plan, cores, asked, device, processes, expected
):
    monkeypatch.setattr(tile_stream, "cores", lambda: cores)
    assert count_workers(asked, make_plan(), device, processes) == expected


def test_cores_of_a_task_of_srun_are_not_divided_again(monkeypatch, make_plan):
    monkeypatch.setattr(tile_stream, "cores", lambda: 8)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert count_workers("auto", make_plan(), "cuda", 4) == 7


@pytest.mark.parametrize(
    ("side", "shared_mb", "memory_mb", "n_workers"),
    # each worker needs three steps of two tiles at 14 bytes per voxel
    [(16, 64, None, 8), (512, 64, None, 2), (2048, 64, None, 0), (512, 64_000, 64, 2)],
)
def test_workers_are_limited_by_memory(
    monkeypatch, caplog, make_plan, side, shared_mb, memory_mb, n_workers
):
    usage = namedtuple("usage", "free")(shared_mb * 10**6)
    monkeypatch.setattr(tile_stream.shutil, "disk_usage", lambda _: usage)
    if memory_mb is not None:  # of a job
        monkeypatch.setattr(tile_stream, "default_budget", lambda: memory_mb * 10**6)
    assert count_workers(8, make_plan().with_(tile_shape=(side, side)), "cpu") == n_workers
    assert ("0.06 GB" in caplog.text) == (n_workers < 8)
    assert ("--shm-size" in caplog.text) == (n_workers < 8 and memory_mb is None)
