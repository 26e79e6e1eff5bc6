"""Loader of tile batches: number of workers, start method, resumed at any step, shared memory."""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from math import prod
from typing import cast

import pytorch_lightning as pl
import torch
from monai.data import DataLoader
from monai.data.utils import worker_init_fn
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lesionseg.child_process import STOP_SIGNALS
from lesionseg.config import TrainerConfig
from lesionseg.data.cache import cores
from lesionseg.data.tiles import TileDataset
from lesionseg.data.transforms import TileItem
from lesionseg.host_memory import default_budget
from lesionseg.plan.plan import Plan
from lesionseg.training.batch_targets import Batch, BatchTargets
from lesionseg.training.module import LesionModule
from lesionseg.training.processes import TASKS

log = logging.getLogger(__name__)

Collate = Callable[[Sequence[TileItem]], Batch]
SHARED_MEMORY = "/dev/shm"
AHEAD = 2  # batches that each worker reads in advance
MAX_TILE_WORKERS = 8  # enough for a GPU
# fork is the fastest, but libraries of a Mac do not work after it
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


def number_batches(
    batch_size: int, first_batch: int, rank: int, world_size: int
) -> Iterator[list[int]]:
    """Yield the tile numbers of each batch of process `rank`, endlessly, from `first_batch`.

    Tiles and batches are numbered from 0. Batch b of a process is its part of step b: of the n =
    `batch_size` · `world_size` tiles b·n to b·n + n − 1, the first process has the first
    `batch_size`, the second process the next ones, and so on. So a resumed training uses the same
    tiles as an uninterrupted one.

    Args:
        batch_size: Number of tiles of a batch.
        first_batch: Number of the first batch, from 0.
        rank: Number of this process, from 0.
        world_size: Number of processes.

    >>> batches = number_batches(batch_size=2, first_batch=3, rank=1, world_size=2)
    >>> next(batches), next(batches)
    ([14, 15], [18, 19])
    """
    for batch in count(first_batch):
        start = (batch * world_size + rank) * batch_size
        yield list(range(start, start + batch_size))


def read_batches(
    tiles: Dataset[Batch],
    numbers: Iterable[list[int]],
    workers: int,
    *,
    pin: bool,
    add_targets: BatchTargets,
) -> Iterator[Batch]:
    """Yield the batches of tiles with these numbers, read by MONAI's loader.

    The function is a generator, because Lightning would replace the sampler of a loader, so that a
    resumed training would use other tiles.

    Args:
        tiles: A `TileDataset`, or another dataset that returns `image`, `labels`, `instances` and
            `valid` like `to_batch`. It must accept any number from 0 and return the same tile each
            time.
        numbers: The numbers of the tiles of each batch, see `number_batches`.
        workers: Number of processes that read batches in advance. With 0, this process reads them.
        pin: True copies batches to pinned memory, from which a GPU copies faster.
        add_targets: The objective's targets, which workers compute while the device trains.
    """
    collate = to_batch if isinstance(tiles, TileDataset) else cast(Collate, default_collate)
    yield from DataLoader(
        tiles,
        batch_sampler=numbers,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context=START_METHOD if workers else None,
        pin_memory=pin,
        collate_fn=partial(_collate_with_targets, collate=collate, add_targets=add_targets),
        worker_init_fn=begin_worker,
        # without it MONAI would reset torch's global generator, which networks use
        generator=torch.Generator(),
    )


def begin_worker(number: int) -> None:
    """Seed a loader's worker as MONAI does, and make it exit silently at a scheduler's signal.

    A scheduler sends `STOP_SIGNALS` to the whole process group. Without these handlers, torch would
    report the end of the worker as a crash, with a traceback in the main process. The main process
    handles the signal itself (`LastCheckpoint`).

    Args:
        number: The number of the worker. torch passes it.
    """
    worker_init_fn(number)  # of MONAI: seeds the random transforms
    for stop in STOP_SIGNALS:
        signal.signal(stop, lambda *_: os._exit(0))  # unlike `sys.exit`, without any clean-up


def to_batch(items: Sequence[TileItem]) -> Batch:
    """Collate items of a `TileDataset` to a batch of torch tensors without MONAI's metadata.

    Returns:
        `image` `[B, C, *tile]`, the masks `labels`, `instances` and `valid` `[B, *tile]`, and
        `unannotated` `[B, K]` if the items have it.
    """
    result: Batch = default_collate([_tensors_of_tile(item) for item in items])
    return result


def _tensors_of_tile(item: TileItem) -> Batch:
    """Return the tensors of a tile as torch tensors, for a batch.

    MONAI's tensors carry metadata, which is removed. Masks lose their channel axis. `label` is
    renamed to `labels`. `unannotated` is included only if the tile has it.
    """
    tensors = {
        "image": item["image"],
        "labels": item["label"][0],  # channel 0 is the only one
        "instances": item["instances"][0],
        "valid": item["valid"][0],
    }
    if "unannotated" in item:
        tensors["unannotated"] = item["unannotated"]
    # `as_subclass` makes a plain tensor of MONAI's `MetaTensor`, without a copy
    return {name: torch.Tensor.as_subclass(x, Tensor) for name, x in tensors.items()}


def _collate_with_targets(
    items: Sequence[TileItem], collate: Collate, add_targets: BatchTargets
) -> Batch:
    """Collate tiles to a batch, and add the objective's targets, in a loader's worker."""
    return add_targets(collate(items))


class LesionData(pl.LightningDataModule):
    """The stream of `tiles` for a `pl.Trainer` with a `LesionModule`.

    The stream starts at the trainer's current step. A training that is resumed with `ckpt_path`
    therefore uses the same tiles as an uninterrupted one.

    Args:
        tiles: A `TileDataset`, or another dataset that returns the same tile for a number each time
            (see `read_batches`).
        plan: The batch size and tile shape.
        settings: The number of workers.
    """

    def __init__(self, tiles: Dataset[Batch], plan: Plan, settings: TrainerConfig) -> None:
        super().__init__()
        self.tiles = tiles
        self.plan = plan
        self.settings = settings

    def train_dataloader(self) -> Iterator[Batch]:
        """Return the endless batches of this process. Lightning calls this hook at the start."""
        trainer = cast(pl.Trainer, self.trainer)
        device = trainer.strategy.root_device.type
        numbers = number_batches(
            batch_size=self.plan.batch_size,
            # after the steps that a resumed training has already done
            first_batch=trainer.global_step * trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        targets = cast(LesionModule, trainer.lightning_module).objective.batch_targets
        workers = loader_workers(
            self.settings.workers,
            self.plan,
            device,
            n_processes=trainer.num_devices,
            targets=targets,
        )
        pin = device == "cuda"
        return read_batches(self.tiles, numbers, workers, pin=pin, add_targets=targets)


def _count_cores_per_process(n_processes: int) -> int:
    """Return the number of CPU cores that each training process on this machine may use.

    The cores are divided by the number of processes, so the result is 0 if there are fewer cores
    than processes. srun is an exception: it binds each task to `SLURM_CPUS_PER_TASK` separate
    cores, so they are not divided. Under torchrun, these variables describe the task that runs
    torchrun, and are ignored.
    """
    per_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    # one of several tasks of srun; TORCHELASTIC_RUN_ID is set by torchrun
    is_srun_task = int(os.environ.get(TASKS, "1")) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ
    if n_processes > 1 and is_srun_task and per_task.isdigit():
        return min(cores(), int(per_task))
    return cores() // n_processes


def loader_workers(
    asked: int | str,
    plan: Plan,
    device: str,
    n_processes: int,
    targets: BatchTargets,
) -> int:
    """Return the number of loader workers for each training process on this machine.

    With `auto` it is 1 on a CPU. On a GPU it is the number of cores per training process minus one,
    from 1 to `MAX_TILE_WORKERS`.

    On Linux, any number is reduced if the batches of all workers do not fit into shared memory, or
    into the memory budget of this container or job. A warning is then logged. Otherwise the system
    would kill workers without a message. With 0 workers, the training process reads the tiles.

    Args:
        asked: The setting: a number, or `auto`.
        plan: The batch size and tile shape.
        device: `cpu` or `cuda`.
        n_processes: Training processes on this machine.
        targets: The targets that workers add to a batch, which need memory as well.
    """
    if asked != "auto":
        workers = int(asked)
    elif device == "cpu":
        workers = 1
    else:
        workers = min(max(_count_cores_per_process(n_processes) - 1, 1), MAX_TILE_WORKERS)
    try:
        shared_memory = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # the folder exists only on Linux
        return workers
    budget = default_budget()  # files in shared memory count as memory of a container or job
    # bytes of a tile in a batch: 4 per voxel of an image channel (fp32), 10 of the reference: two
    # masks of 1 byte and two maps of ids of 4 bytes
    n_voxels = prod(plan.tile_shape)
    tile_bytes = n_voxels * (4 * len(plan.channel_names) + 10)
    tile_bytes += targets.tile_bytes(n_voxels)
    # of each worker, the batches that it reads ahead and the one in use are in shared memory
    worker_bytes = (AHEAD + 1) * plan.batch_size * tile_bytes
    maximum = min(shared_memory, budget) // (worker_bytes * n_processes)
    if maximum < workers:
        # name the smaller of the two limits
        place = f"{SHARED_MEMORY} ({shared_memory / 1e9:.2f} GB free)"
        remedy = "Start the container with --shm-size=8g or --ipc=host"
        if budget < shared_memory:
            # the share that `default_budget` returns
            place = f"60 % of the free memory ({budget / 1e9:.2f} GB)"
            remedy = "End other programs, or give the container or job more memory"
        log.warning("%s is large enough for %d of %d workers. %s.", place, maximum, workers, remedy)
    return min(maximum, workers)
