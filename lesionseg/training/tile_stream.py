"""The endless stream of tiles, cut into the batches of each step; it can begin at any step."""

import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from math import prod
from typing import cast

import pytorch_lightning as pl
import torch
from monai.data import DataLoader
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, default_collate

from lesionseg.config import TrainerConfig
from lesionseg.data.cache import cores
from lesionseg.data.tiles import TileDataset
from lesionseg.data.transforms import TileItem
from lesionseg.losses import nearest_lesions
from lesionseg.plan.plan import Plan
from lesionseg.training.module import LesionModule

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Validate = Callable[[nn.Module], Mapping[str, float]]
SHARED_MEMORY = "/dev/shm"
AHEAD, MOST_WORKERS = 2, 8  # steps that each worker reads ahead; a GPU is fed by as many
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
    not), for any number from 0 on and the same each time.
    """

    def __init__(
        self,
        tiles: Dataset[Batch],
        tiles_per_step: int,
        *,
        first_step: int,
        workers: int,
        pin: bool,
        nearest: bool = False,
    ) -> None:
        self.tiles, self.tiles_per_step = tiles, tiles_per_step
        self.first_step, self.workers, self.pin = first_step, workers, pin
        self.nearest = nearest

    def __iter__(self) -> Iterator[Batch]:
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if is_distributed else 0
        world = torch.distributed.get_world_size() if is_distributed else 1
        loader: Iterable[Batch] = DataLoader(
            self.tiles,
            batch_sampler=StepSampler(self.tiles_per_step, self.first_step, rank, world),
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            multiprocessing_context=START_METHOD if self.workers else None,
            pin_memory=self.pin,
            collate_fn=partial(to_batch, nearest=self.nearest)
            if isinstance(self.tiles, TileDataset)
            else default_collate,
            # else MONAI would set back torch's own, which networks draw from
            generator=torch.Generator(),
        )
        return iter(loader)


def to_batch(items: Sequence[TileItem], *, nearest: bool = False) -> Batch:
    """Items of a `TileDataset` as plain tensors, masks `[B, *tile]`: steps need no MetaTensor.

    `nearest`: also the nearest lesion of each voxel, which a worker has more time for than a step.
    """
    batch: Batch = default_collate(
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
    if nearest:
        batch["nearest"] = nearest_lesions(batch["instances"].masked_fill(~batch["valid"], 0))
    return batch


class LesionData(pl.LightningDataModule):
    """The stream of `tiles` for a `pl.Trainer` with a `LesionModule`, and whole volumes.

    It begins at the step that the trainer has come to: resumed by `ckpt_path`, a training sees the
    tiles that an undisturbed one would have seen. `validate`: given the network in eval mode,
    returns scores by name.
    """

    def __init__(
        self,
        tiles: Dataset[Batch],
        plan: Plan,
        settings: TrainerConfig,
        validate: Validate | None = None,
    ) -> None:
        super().__init__()
        self.tiles, self.plan, self.settings, self.validate = tiles, plan, settings, validate

    def train_dataloader(self) -> TileStream:
        """The batches of this process, without end."""
        trainer = cast(pl.Trainer, self.trainer)
        device, n = trainer.strategy.root_device.type, trainer.num_devices
        size = self.plan.batch_size * tile_bytes(self.plan)
        workers = loader_workers(self.settings.workers, device, n)
        return TileStream(
            self.tiles,
            self.plan.batch_size,
            first_step=trainer.global_step * trainer.accumulate_grad_batches,
            workers=fitting_workers(workers, size, n),
            pin=device == "cuda",
            nearest=cast(LesionModule, trainer.lightning_module).objective.takes_nearest,
        )

    def val_dataloader(self) -> list[int]:
        """One item, which stands for all volumes."""
        return [] if self.validate is None else [0]


def loader_workers(asked: int | str, device: str, n_processes: int = 1) -> int:
    """Processes that make tiles for each of those that train on this machine.

    `auto`: on a GPU the cores that each has, but one, 1 to `MOST_WORKERS`; on a CPU, which
    training itself fills, one.
    """
    if asked != "auto":
        return int(asked)
    return 1 if device == "cpu" else min(max(cores() // n_processes - 1, 1), MOST_WORKERS)


def tile_bytes(plan: Plan) -> int:
    """Of a tile as a worker hands it over: an image in fp32, two masks and two maps of ids."""
    return prod(plan.tile_shape) * (4 * len(plan.channel_names) + 10)


def fitting_workers(workers: int, batch_bytes: int, n_processes: int = 1) -> int:
    """Workers of each process whose batches fit the shared memory; says if fewer.

    A worker that finds it full is killed by the system, without a word.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # other systems have no such folder
        return workers
    fit = free // ((AHEAD + 1) * batch_bytes * n_processes)
    if fit < workers:
        log.warning(
            "%s (%.2f GB free) has room for the tiles of %d of %d workers. Start the container "
            "with --shm-size=8g or --ipc=host.",
            SHARED_MEMORY,
            free / 1e9,
            fit,
            workers,
        )
    return min(fit, workers)
