"""Train a network: the one entrance to this package."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import Dataset

from lesionseg.data.cache import CachedCase
from lesionseg.data.tiles import TileDataset
from lesionseg.errors import ConfigError
from lesionseg.models.build import TRUSTED, build_network
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.checkpoint import (
    Checkpoint,
    Resume,
    SaveCheckpoint,
    read_checkpoint,
)
from lesionseg.training.callbacks.step_callbacks import (
    ProgressLine,
    Record,
    Validate,
    Validation,
)
from lesionseg.training.device.accelerator import training_device
from lesionseg.training.device.allocator import KeepMemory
from lesionseg.training.device.processes import (
    from_first,
    n_processes,
)
from lesionseg.training.learning_settings import Learning
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.run_trainer import choose_precision, run_trainer
from lesionseg.training.settings import TrainerSettings
from lesionseg.training.step.detection_objective import make_objective
from lesionseg.training.step.schedule import Counters, settled
from lesionseg.training.tile_stream import Batch

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
    tiles[0]  # faults of the cases are raised here rather than by a worker process
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
        channel_dropout=learning.channel_dropout,
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
    counters = Counters(**checkpoint.counters) if checkpoint else Counters()
    if checkpoint is None or module.budget.progress(counters.steps, counters.minutes) < 1:
        save = SaveCheckpoint(path, settings.checkpoint_every_minutes)
        mine = [*our_callbacks(settings, run_dir, checkpoint, validate), *callbacks, save]
        device = run_trainer(module, tiles, counters.steps, mine, run_dir)
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


def our_callbacks(
    settings: TrainerSettings,
    run_dir: Path,
    checkpoint: Checkpoint | None,
    validate: Validate | None,
) -> list[pl.Callback]:
    """The callbacks of every training, in the order in which they act after a step."""
    record = Record(run_dir / HISTORY, settings.log_every)
    callbacks: list[pl.Callback] = [KeepMemory(), Resume(checkpoint, run_dir / CHECKPOINT), record]
    every = settings.validate_every_minutes
    if validate is not None:
        callbacks.append(Validation(validate, None if every == "auto" else every, record))
    return [*callbacks, ProgressLine()] if settings.progress else callbacks


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
