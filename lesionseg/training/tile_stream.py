"""The endless stream of tiles, cut into the batches of each step; it can begin at any step."""

import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from math import prod
from typing import Any, cast

import pytorch_lightning as pl
import torch
from monai.data import DataLoader
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from lesionseg.data.tiles import TileDataset
from lesionseg.data.transforms import TileItem
from lesionseg.plan.plan import Plan
from lesionseg.training.device.accelerator import AHEAD, loader_workers
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.settings import TrainerSettings

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
SHARED_MEMORY = "/dev/shm"
# quick where the system has it; on a Mac its libraries do not survive a fork
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


class StepSampler(Sampler[list[int]]):
    """Numbers of the tiles that process `rank` of `world_size` sees in each step from `first_step`.

    Step s of the whole training takes the tiles s·n, s·n + 1 … of the stream, n being the tiles of
    all processes together; so a resumed training sees what an undisturbed one would have seen.

    >>> steps = iter(StepSampler(tiles_per_step=2, first_step=3, rank=1, world_size=2))
    >>> next(steps), next(steps)
    ([14, 15], [18, 19])
    """

    def __init__(
        self, tiles_per_step: int, first_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.tiles_per_step, self.first_step = tiles_per_step, first_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.first_step):
            start = (step * self.world_size + self.rank) * self.tiles_per_step
            yield list(range(start, start + self.tiles_per_step))


class TileStream:
    """Batches of one process from a given step on, without end, read by MONAI's loader.

    A plain iterable and no loader itself: the trainer would take a loader apart and put it together
    again. Its restart in mid-epoch could not keep the order of tiles. `tiles`: a `TileDataset`, or
    any that gives `image`, `labels`, `instances` and `valid` as `to_batch` does (`unannotated` or
    not), for any number from 0 on and the same each time. With `pin` the batches lie in
    memory from which a GPU copies by itself.
    """

    def __init__(
        self,
        tiles: Dataset[Batch],
        tiles_per_step: int,
        *,
        first_step: int,
        workers: int,
        pin: bool,
    ) -> None:
        self.tiles, self.tiles_per_step = tiles, tiles_per_step
        self.first_step, self.workers, self.pin = first_step, workers, pin

    def __iter__(self) -> Iterator[Batch]:
        if not isinstance(self.tiles, TileDataset):
            return iter(self._loader(self.tiles, default_collate))
        return iter(self._loader(self.tiles, to_batch))

    def _loader(self, tiles: Dataset[Any], collate: Callable[[list[Any]], Any]) -> Iterable[Any]:
        loader: Iterable[Any] = DataLoader(
            tiles,
            batch_sampler=StepSampler(self.tiles_per_step, self.first_step, *_process()),
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            multiprocessing_context=START_METHOD if self.workers else None,
            pin_memory=self.pin,
            collate_fn=collate,
            # else MONAI would set back torch's own, which networks draw from
            generator=torch.Generator(),
        )
        return loader


def to_batch(items: Sequence[TileItem]) -> Batch:
    """Items of a `TileDataset` as plain tensors, masks `[B, *tile]`: steps need no MetaTensor."""
    return dict(
        default_collate(
            [
                {
                    "image": torch.Tensor.as_subclass(item["image"], Tensor),
                    "labels": torch.Tensor.as_subclass(item["label"], Tensor)[0],
                    "instances": item["instances"][0],
                    "valid": item["valid"][0],
                    **{name: item[name] for name in ("unannotated",) if name in item},
                }
                for item in items
            ]
        )
    )


class LesionData(pl.LightningDataModule):
    """The stream of `tiles` for a `pl.Trainer` with a `LesionModule`.

    It begins at `first_step`, or where None at the step that the module has come to: resumed by
    `ckpt_path`, a training sees the tiles that an undisturbed one would have seen.
    """

    def __init__(
        self,
        tiles: Dataset[Batch],
        plan: Plan,
        settings: TrainerSettings,
        first_step: int | None = None,
    ) -> None:
        super().__init__()
        self.tiles, self.plan, self.settings = tiles, plan, settings
        self.first_step = first_step

    def train_dataloader(self) -> TileStream:
        """The batches of this process, without end."""
        trainer = cast(pl.Trainer, self.trainer)
        reached = cast(LesionModule, trainer.lightning_module).counters.steps
        device, n = (
            trainer.strategy.root_device.type,
            self.plan.batch_size * self.settings.accumulate,
        )
        workers = loader_workers(self.settings.workers, device, trainer.num_devices)
        fit = fitting_workers(workers, n * tile_bytes(self.plan), trainer.num_devices)
        return TileStream(
            self.tiles,
            n,
            first_step=reached if self.first_step is None else self.first_step,
            workers=max(fit, 1) if self.settings.workers == "auto" else workers,
            pin=device == "cuda",
        )


def tile_bytes(plan: Plan) -> int:
    """Of a tile as a worker hands it over: an image in fp32 and three masks."""
    return prod(plan.tile_shape) * (8 * len(plan.channel_names) + 12)


def fitting_workers(workers: int, step_bytes: int, n_processes: int = 1) -> int:
    """Workers of each process whose steps, those read ahead, fit the shared memory; says if fewer.

    A worker that finds it full is killed by the system, without a word.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # other systems have no such folder
        return workers
    fit = free // ((AHEAD + 1) * step_bytes * n_processes)
    if fit < workers:
        log.warning(
            "%s has room for the tiles of %d workers only. Seen: %.2f GB free. Expected: %.2f GB "
            "for trainer.workers=%d. How to fix: start the container with --shm-size=8g (or "
            "--ipc=host), or set trainer.workers=%d.",
            SHARED_MEMORY,
            fit,
            free / 1e9,
            workers * (AHEAD + 1) * step_bytes * n_processes / 1e9,
            workers,
            fit,
        )
    return min(fit, workers)


def _process() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
