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


@pytest.mark.parametrize(("side", "room"), [(16, 8), (512, 2), (2048, 0)])
def test_workers_are_limited_by_shared_memory_with_advice(
    monkeypatch, caplog, make_plan, side, room
):
    """Each worker needs three steps of two tiles at 14 bytes per voxel."""
    usage = namedtuple("usage", "free")(64 * 10**6)
    monkeypatch.setattr(tile_stream.shutil, "disk_usage", lambda _: usage)
    assert count_workers(8, make_plan().with_(tile_shape=(side, side)), "cpu") == room
    assert ("0.06 GB free" in caplog.text) == ("--shm-size" in caplog.text) == (room < 8)


def test_workers_are_limited_by_the_memory_of_a_job(monkeypatch, caplog, make_plan):
    """A step of two tiles of 512² voxels has 7.3 MB, and each worker needs three."""
    usage = namedtuple("usage", "free")(64 * 10**9)
    monkeypatch.setattr(tile_stream.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(tile_stream, "default_budget", lambda: 64 * 10**6)
    assert count_workers(8, make_plan().with_(tile_shape=(512, 512)), "cpu") == 2
    assert "0.06 GB" in caplog.text
    assert "--shm-size" not in caplog.text
