"""The endless stream of tiles in batches per step. It can begin at any step."""

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

from lesionseg.config import TrainerConfig
from lesionseg.data.cache import cores
from lesionseg.data.tiles import TileDataset
from lesionseg.data.transforms import TileItem
from lesionseg.plan.plan import Plan
from lesionseg.training.batch_targets import Batch, BatchTargets
from lesionseg.training.module import LesionModule

log = logging.getLogger(__name__)

Join = Callable[[Sequence[TileItem]], Batch]
SHARED_MEMORY = "/dev/shm"
AHEAD, MOST_WORKERS = 2, 8  # steps that each worker reads ahead; a GPU is fed by as many
# fork is quick where the system has it; on a Mac its libraries do not survive it
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


def step_tiles(
    tiles_per_step: int, first_step: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[list[int]]:
    """Yield the numbers of the tiles of each step from `first_step`, for one process.

    Step s of the whole training takes the tiles s·n, s·n + 1 … of the stream, where n is the number
    of tiles of all processes together. So a resumed training sees the same tiles as an undisturbed
    one.

    >>> steps = step_tiles(tiles_per_step=2, first_step=3, rank=1, world_size=2)
    >>> next(steps), next(steps)
    ([14, 15], [18, 19])
    """
    for step in count(first_step):
        start = (step * world_size + rank) * tiles_per_step
        yield list(range(start, start + tiles_per_step))


def read_batches(
    tiles: Dataset[Batch],
    steps: Iterable[list[int]],
    workers: int,
    *,
    pin: bool = False,
    add_targets: BatchTargets | None = None,
) -> Iterator[Batch]:
    """Yield the batches of these `step_tiles`, read by MONAI's loader.

    The function is no loader: Lightning would replace a loader's sampler, and could not keep the
    order of tiles when a training resumes.

    Args:
        tiles: a `TileDataset`, or another one that returns `image`, `labels`, `instances` and
            `valid` as `to_batch` does, for any number from 0 on, and the same each time.
        steps: the numbers of tiles for each batch.
        workers: processes that read ahead; 0 reads in this process.
        pin: put batches into pinned memory, for a GPU.
        add_targets: of the objective. A worker computes them while the device trains.
    """
    is_ours = isinstance(tiles, TileDataset)
    join = to_batch if is_ours else cast(Join, default_collate)
    yield from DataLoader(
        tiles,
        batch_sampler=steps,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context=START_METHOD if workers else None,
        pin_memory=pin,
        collate_fn=partial(_collate, join=join, add_targets=add_targets or BatchTargets()),
        worker_init_fn=begin_worker,
        # otherwise MONAI would reset torch's own generator, from which networks draw
        generator=torch.Generator(),
    )


def begin_worker(number: int) -> None:
    """Seed a loader's worker as MONAI does, and let SIGTERM end it without an error.

    A scheduler sends SIGTERM to the whole process group. torch reports a worker that dies of it as
    a crash, with a traceback in the main process, which is about to end by the same signal.
    """
    worker_init_fn(number)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def to_batch(items: Sequence[TileItem]) -> Batch:
    """Join items of a `TileDataset` as plain tensors, masks `[B, *tile]`: no MetaTensor."""

    def plain(item: TileItem) -> Batch:
        masks = {"labels": item["label"], "instances": item["instances"], "valid": item["valid"]}
        batch = {"image": item["image"], **{name: mask[0] for name, mask in masks.items()}}
        batch |= {name: item[name] for name in ("unannotated",) if name in item}
        return {name: torch.Tensor.as_subclass(x, Tensor) for name, x in batch.items()}

    batch: Batch = default_collate([plain(item) for item in items])
    return batch


def _collate(items: Sequence[TileItem], join: Join, add_targets: BatchTargets) -> Batch:
    return add_targets(join(items))


class LesionData(pl.LightningDataModule):
    """The stream of `tiles` for a `pl.Trainer` with a `LesionModule`.

    It begins at the trainer's current step. A training that is resumed by `ckpt_path` sees the
    tiles that an undisturbed one would have seen.
    """

    def __init__(self, tiles: Dataset[Batch], plan: Plan, settings: TrainerConfig) -> None:
        super().__init__()
        self.tiles = tiles
        self.plan = plan
        self.settings = settings

    def train_dataloader(self) -> Iterator[Batch]:
        """Return the endless batches of this process."""
        trainer = cast(pl.Trainer, self.trainer)
        device, n = trainer.strategy.root_device.type, trainer.num_devices
        first = trainer.global_step * trainer.accumulate_grad_batches
        steps = step_tiles(self.plan.batch_size, first, trainer.global_rank, trainer.world_size)
        targets = cast(LesionModule, trainer.lightning_module).objective.batch_targets
        workers = loader_workers(self.settings.workers, self.plan, device, n, targets)
        pin = device == "cuda"
        return read_batches(self.tiles, steps, workers, pin=pin, add_targets=targets)


def loader_workers(
    asked: int | str,
    plan: Plan,
    device: str,
    n_processes: int = 1,
    targets: BatchTargets | None = None,
) -> int:
    """Return how many processes make tiles for each of those that train on this machine.

    `auto`: on a GPU the cores that each has, but one, 1 to `MOST_WORKERS`; on a CPU one. Fewer,
    with a warning, where their batches do not fit the shared memory: full, it kills them silently.
    """
    workers = 1 if device == "cpu" else min(max(cores() // n_processes - 1, 1), MOST_WORKERS)
    if asked != "auto":
        workers = int(asked)
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # other systems have no such folder
        return workers
    # a tile as a worker hands it over: an image in fp32, two masks and two maps of ids
    n_voxels = prod(plan.tile_shape)
    tile_bytes = n_voxels * (4 * len(plan.channel_names) + 10)
    tile_bytes += (targets or BatchTargets()).tile_bytes(n_voxels)
    room = free // ((AHEAD + 1) * plan.batch_size * tile_bytes * n_processes)
    if room < workers:
        log.warning(
            "%s (%.2f GB free) has room for the tiles of %d of %d workers. Start the container "
            "with --shm-size=8g or --ipc=host.",
            SHARED_MEMORY,
            free / 1e9,
            room,
            workers,
        )
    return min(room, workers)
