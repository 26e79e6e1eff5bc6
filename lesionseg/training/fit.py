"""Train a network: the one entrance to this package."""

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import Dataset

from lesionseg.data.cache.cached_case import CachedCase
from lesionseg.data.hard_places import HardPlaces
from lesionseg.data.tile_dataset import TileDataset
from lesionseg.errors import ConfigError
from lesionseg.models.build import TRUSTED, build_network
from lesionseg.models.precision import fast_dtype
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.checkpoint import Checkpoint, read_checkpoint
from lesionseg.training.callbacks.hard_background import WatchBackground
from lesionseg.training.callbacks.step_callbacks import (
    ProgressLine,
    Record,
    Resume,
    SaveCheckpoint,
    Validate,
    Validation,
)
from lesionseg.training.device.accelerator import training_device
from lesionseg.training.device.allocator import KeepMemory
from lesionseg.training.device.processes import (
    PATIENCE,
    from_first,
    is_first,
    launched,
    n_processes,
)
from lesionseg.training.device.speed import choose_speed
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import TrainerSettings
from lesionseg.training.step.detection_objective import make_objective
from lesionseg.training.step.module import Counters, LesionModule
from lesionseg.training.step.scaling import Precision, autocast_dtype
from lesionseg.training.step.schedule import settled
from lesionseg.training.tile_stream import Batch, LesionData

log = logging.getLogger(__name__)

CHECKPOINT = Path("checkpoints") / "last.ckpt"
HISTORY = Path("metrics.csv")


@dataclass(frozen=True, eq=False)
class FitResult:
    """What training leaves.

    `network` has the final (averaged) weights, is in eval mode and on the CPU. `steps` counts
    `skipped` ones too. `history` is metrics.csv. `stopped_because`: `max_steps`, `max_minutes`, or
    `callback` when one of the caller's ended it. `device`: where training ran (`cpu`, `cuda:0`).
    """

    network: nn.Module
    steps: int
    skipped: int
    minutes: float
    history: Path
    stopped_because: str
    device: str


def fit(
    network: nn.Module,
    plan: Plan,
    cases: Sequence[CachedCase],
    learning: Learning,
    run_dir: Path,
    *,
    validate: Validate | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> FitResult:
    """Train `network` in place on tiles of `cases`, `steps_per_epoch` steps' tiles per epoch.

    Args:
        network: what `build_network(plan)` makes, or one's own with the same outputs.
        plan: tile shape, batch size and meaning of the labels.
        cases: prepared training cases; raises `ConfigError` where there are none.
        learning: loss, sampling, augmentation, optimiser, trainer and seed.
        run_dir: where metrics.csv and checkpoints go; resumes from its last checkpoint.
        validate: given the averaged network in eval mode, returns scores for metrics.csv.
        callbacks: Lightning callbacks that act after our own.
    """
    tiles = tiles_of(cases, plan, learning)
    tiles[0]  # what is wrong with the cases is said here rather than by a worker process
    log.info("Tiles: %s", tiles.sampler.mix)
    return fit_tiles(
        network, plan, tiles, learning, run_dir, validate=validate, callbacks=callbacks
    )


def tiles_of(cases: Sequence[CachedCase], plan: Plan, learning: Learning) -> TileDataset:
    """The endless, numbered tiles of `cases`; raises `ConfigError` where there are none."""
    trainer = learning.trainer
    return TileDataset(
        cases,
        plan,
        learning.sampling,
        learning.augmentation,
        n_tiles=trainer.steps_per_epoch
        * trainer.accumulate
        * plan.batch_size
        * n_processes(trainer),
        seed=learning.seed,
    )


def lesion_module(plan: Plan, learning: Learning, network: nn.Module | None = None) -> LesionModule:
    """What a `pl.Trainer` trains: `network`, or the plan's own from the seed, and its objective.

    Raises `ConfigError` where loss and plan disagree. `final_network` has the averaged weights.
    """
    check_activation(learning.loss, plan)
    network = network or build_network(plan, architectures=TRUSTED, seed=learning.seed)
    objective = make_objective(learning.loss, learning.detection, plan)
    device = training_device(learning.trainer.accelerator)
    settings = settled(learning.trainer, plan, device)
    module = LesionModule(network, objective, plan, settings, learning.optimiser)
    if choose_precision(settings.precision, torch.device(device)) == "16-mixed":
        module.use_fp16()
    return module


def fit_tiles(
    network: nn.Module,
    plan: Plan,
    tiles: Dataset[Batch],
    learning: Learning,
    run_dir: Path,
    *,
    validate: Validate | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> FitResult:
    """As `fit`, on numbered `tiles` of whatever source, without end (see `TileStream`).

    A training that had already ended is not prolonged: its result is returned as it was. Raises
    `TrainingError` when the checkpoint does not fit or the loss stays NaN, and passes on whatever
    reading tiles or `validate` raises.

    Args:
        network: to train; on whatever device, in its initial state.
        plan: its tile, batch and labels.
        tiles: batches by number.
        learning: loss, optimiser, budget.
        run_dir: where metrics.csv and checkpoints go; resumes from its last checkpoint.
        validate: given the averaged network in eval mode, returns scores for metrics.csv.
        callbacks: that act after our own.
    """
    path = run_dir / CHECKPOINT
    module = lesion_module(plan, learning, network)
    settings = module.settings
    checkpoint = from_first(lambda: read_checkpoint(path) if path.is_file() else None)
    device = training_device(settings.accelerator)
    if isinstance(tiles, TileDataset) and tiles.hard is not None:
        _require_voxels(plan)
        callbacks = [*callbacks, _remember(tiles, tiles.hard, module, checkpoint)]
    counters = Counters(**checkpoint.counters) if checkpoint else Counters()
    if checkpoint is None or module.budget.progress(counters.steps, counters.minutes) < 1:
        mine = our_callbacks(settings, run_dir, checkpoint, validate)
        device = _train(module, tiles, counters.steps, [*mine, *callbacks], run_dir)
        checkpoint = from_first(lambda: read_checkpoint(path))
    return _result(module, checkpoint, run_dir, device)


def check_activation(loss: nn.Module, plan: Plan) -> None:
    """A loss for independent labels must not teach a network of exclusive ones, or the reverse.

    Raises `ConfigError`.
    """
    activation = getattr(loss, "activation", plan.activation)
    if activation != plan.activation:
        raise ConfigError(
            "Loss and network disagree about what logits mean.",
            where="model.activation",
            seen=f"{plan.activation} for the network, {activation} for the loss",
            remedy=f"set model.activation={activation}, or +loss.activation={plan.activation}.",
        )


def _require_voxels(plan: Plan) -> None:
    """Hard background is the worst voxel of a tile: there must be voxels."""
    if not plan.has_voxels:
        raise ConfigError(
            "Hard background cannot be collected from a network without voxels.",
            where="sampling.hard_share",
            expected=f"0 for model={plan.architecture.name}",
        )


def _remember(
    tiles: TileDataset, hard: HardPlaces, module: LesionModule, checkpoint: Checkpoint | None
) -> WatchBackground:
    """Let the module's checkpoints carry the hard background, and fill it from the last one.

    At once and not with the rest of the state: tiles are read ahead before training starts.
    """
    module.add_module("hard", hard)
    if checkpoint is not None and "hard._extra_state" in checkpoint.module:
        hard.set_extra_state(checkpoint.module["hard._extra_state"])
    return WatchBackground(tiles.report)


def our_callbacks(
    settings: TrainerSettings,
    run_dir: Path,
    checkpoint: Checkpoint | None,
    validate: Validate | None,
) -> list[pl.Callback]:
    """The callbacks of every training, in the order in which they act after a step."""
    path, record = run_dir / CHECKPOINT, Record(run_dir / HISTORY, settings.log_every)
    made: list[pl.Callback] = [KeepMemory(), Resume(checkpoint, path), record]
    every = settings.validate_every_minutes
    if validate is not None:
        made.append(Validation(validate, None if every == "auto" else every, record))
    made.append(SaveCheckpoint(path, settings.checkpoint_every_minutes, record))
    return [*made, ProgressLine()] if settings.progress else made


def _train(
    module: LesionModule,
    tiles: Dataset[Batch],
    first_step: int,
    callbacks: Sequence[pl.Callback],
    run_dir: Path,
) -> str:
    """Run Lightning's trainer; returns the device it ran on."""
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


def _result(module: LesionModule, checkpoint: Checkpoint, run_dir: Path, device: str) -> FitResult:
    """Read back from the checkpoint, which is the same for one process and for many."""
    checkpoint.restore_weights(module, run_dir / CHECKPOINT)
    module.network.load_state_dict(module.final_network.state_dict())
    counters = module.counters
    reason = module.budget.stop_reason(counters.steps, counters.minutes)
    log.info(
        "Trained %d steps in %.1f minutes (%d skipped).",
        counters.steps,
        counters.minutes,
        counters.skipped,
    )
    return FitResult(
        network=module.network.eval(),
        steps=counters.steps,
        skipped=counters.skipped,
        minutes=counters.minutes,
        history=run_dir / HISTORY,
        stopped_because=reason or "callback",
        device=device,
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
