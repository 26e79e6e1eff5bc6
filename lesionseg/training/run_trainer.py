"""Lightning's trainer as ours needs it: device, precision, strategy, and what it must not say."""

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import Dataset

from lesionseg.models.precision import fast_dtype
from lesionseg.training.device.accelerator import training_device
from lesionseg.training.device.processes import PATIENCE, from_first, is_first, launched
from lesionseg.training.device.speed import choose_speed
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.settings import TrainerSettings
from lesionseg.training.step.scaling import Precision, autocast_dtype
from lesionseg.training.tile_stream import Batch, LesionData


def run_trainer(
    module: LesionModule,
    tiles: Dataset[Batch],
    first_step: int,
    callbacks: Sequence[pl.Callback],
    run_dir: Path,
) -> str:
    """Train a module on numbered tiles from `first_step` on; returns the device it ran on.

    The device's memory layout and compiling are chosen before (`training.device.speed`).
    """
    settings, plan = module.settings, module.plan
    device = chosen_device(settings)
    precision = choose_precision(settings.precision, device)
    dtype = autocast_dtype(precision)
    speed = from_first(
        lambda: choose_speed(module.network, module.objective, plan, settings, device, dtype)
    )
    module.compiled = speed.compiled
    module.to(memory_format=speed.layout)
    # Lightning's own fp16 would unscale after our clipping
    outer = "32-true" if precision == "16-mixed" else precision
    with _quiet(), _interruptible():
        trainer = _trainer(settings, outer, callbacks, run_dir)
        trainer.fit(module, LesionData(tiles, plan, settings, first_step))
    module.to(memory_format=torch.contiguous_format)
    return str(trainer.strategy.root_device)


def chosen_device(settings: TrainerSettings) -> torch.device:
    """The kind of device that trains; of GPUs in a list the first is made the current one."""
    device = torch.device(training_device(settings.accelerator))
    if device.type == "cuda" and isinstance(settings.devices, list | tuple) and is_first():
        torch.cuda.set_device(settings.devices[0])
    return device


def choose_precision(asked: str, device: torch.device) -> Precision:
    """`auto`: bf16-mixed where convolutions are faster in it (`models.fast_dtype`).

    Else 16-mixed on a GPU and 32-true on all other devices.
    """
    if asked == "auto":
        slow: Precision = "16-mixed" if device.type == "cuda" else "32-true"
        return "bf16-mixed" if fast_dtype(device) == torch.bfloat16 else slow
    known: dict[str, Precision] = {"bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}
    return known.get(asked, "32-true")


def _trainer(
    settings: TrainerSettings,
    precision: Precision,
    callbacks: Sequence[pl.Callback],
    run_dir: Path,
) -> pl.Trainer:
    """A trainer that drives the loop as ours needs it, with what users hand to it themselves."""
    devices, environment = settings.devices, launched(settings)
    devices = devices if isinstance(devices, int | str) else list(devices)
    if environment is not None and devices == "auto":
        devices = environment.world_size() // settings.n_nodes
    own = deepcopy(dict(settings.lightning or {}))  # each fold's training has loggers of its own
    given: dict[str, Any] = {
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "default_root_dir": run_dir,
        "log_every_n_steps": settings.log_every,
        "strategy": _strategy(settings, own.pop("strategy", "auto")),
        # not what Lightning finds: SLURM's variables do not make each task one of a training
        "plugins": environment or LightningEnvironment(),
    }
    return pl.Trainer(
        # not "auto": Lightning would take a Mac's MPS, for which nothing here is planned
        accelerator="gpu" if training_device(settings.accelerator) == "cuda" else "cpu",
        devices=devices,
        precision=precision,
        callbacks=[*callbacks, *deepcopy(list(settings.callbacks or ()))],
        # the stream has no end, the budget stops it; only a few batches over and over are epochs
        max_epochs=-1 if own.get("overfit_batches") else 1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        **{**given, **own},
    )


def _strategy(settings: TrainerSettings, asked: Any) -> Any:
    """DDP where several devices train, in processes that a launcher started or Lightning spawns.

    Spawned ones share this one's folder and tiles; those of Lightning's own launcher would run the
    command again. All wait while the first one predicts whole volumes, to validate or audit.
    """
    if settings.has_one_device or not isinstance(asked, str):
        return asked
    return DDPStrategy(
        start_method="spawn" if launched(settings) is None else "popen",
        timeout=PATIENCE,
        find_unused_parameters=asked.endswith("find_unused_parameters_true"),
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C through as itself: Lightning exits with status 1 and ignores further ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the trainer's advice (a GPU not used on purpose, few workers) and its banners."""
    banners = logging.getLogger("pytorch_lightning")
    level = banners.level
    banners.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            # Lightning 2.6 asks newer versions of torch for a class they are about to drop
            warnings.filterwarnings("ignore", ".*LeafSpec", category=FutureWarning)
            yield
    finally:
        banners.setLevel(level)
