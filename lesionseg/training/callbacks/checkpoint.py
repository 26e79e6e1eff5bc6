"""The checkpoint: everything that a killed training needs to go on as if nothing had happened."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch

from lesionseg.errors import TrainingError
from lesionseg.io.atomic import atomic_path
from lesionseg.training.callbacks.history import WRITING_SHARE
from lesionseg.training.callbacks.step_callbacks import AfterStep, ours
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.step.schedule import Counters

log = logging.getLogger(__name__)

CHECKPOINT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State of a training between two steps: tensors and plain numbers only.

    `module`: weights, their average and the averages of positives. `optimiser`: its moments.
    `counters`: steps, minutes and skipped steps; the tiles of a step follow from its number, so
    that the sampler needs no state of its own. `callbacks`: by name, what those of each step have
    gathered and not yet written.
    """

    module: dict[str, Any]
    optimiser: dict[str, Any]
    counters: dict[str, Any]
    version: int = CHECKPOINT_VERSION
    callbacks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, module: LesionModule, callbacks: dict[str, Any]) -> "Checkpoint":
        """The state of `module` now."""
        module.settle()
        optimiser: Any = module.optimizers()
        return cls(
            module.state_dict(),
            optimiser.state_dict(),
            asdict(module.counters),
            callbacks=callbacks,
        )

    def restore(self, module: LesionModule, where: Path) -> None:
        """Put all state back; raises `TrainingError` naming `where` when it does not fit."""
        self.restore_weights(module, where)
        optimiser: Any = module.optimizers()
        with _fitting(where):
            optimiser.optimizer.load_state_dict(self.optimiser)
        module.clock.start(module.counters.minutes)

    def restore_weights(self, module: LesionModule, where: Path) -> None:
        """Put back all but the optimiser and the clock; raises `TrainingError` likewise."""
        module.normalisers = module.normalisers or module.make_normalisers(n_processes=1)
        with _fitting(where):
            module.load_state_dict(self.module)
        module.counters = Counters(**self.counters)


@contextmanager
def _fitting(where: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise _unusable(where, str(error)) from error


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: killed at any moment, the file is the one before or the one after."""
    with atomic_path(path) as temporary:
        torch.save({f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}, temporary)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read to the CPU, tensors and plain values only (no pickled code is run).

    Raises `TrainingError` when the file is no checkpoint of this version.
    """
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**raw)
    except Exception as error:  # torch.load raises half a dozen kinds for a broken file
        # by its name alone: the text advises to load without `weights_only`
        raise _unusable(path, type(error).__name__) from error
    if checkpoint.version != CHECKPOINT_VERSION:
        raise _unusable(path, f"version {checkpoint.version}")
    return checkpoint


def _unusable(where: Path, seen: str) -> TrainingError:
    return TrainingError(
        "Training cannot be resumed from its checkpoint.",
        where=where,
        seen=seen,
        expected=f"a checkpoint of version {CHECKPOINT_VERSION} of the same network and optimiser",
        remedy="choose another run_dir, or delete the checkpoint to start afresh.",
    )


class Resume(AfterStep):
    """Puts a checkpoint's state back once the optimiser is there, and lets the clock run.

    The first of the callbacks, so that the others begin with what they had.
    """

    def __init__(self, checkpoint: Checkpoint | None, path: Path) -> None:
        self.checkpoint, self.path = checkpoint, path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore, or start the clock at 0."""
        module = cast(LesionModule, pl_module)
        if self.checkpoint is None:
            module.clock.start(0.0)
            return
        self.checkpoint.restore(module, self.path)
        states = module.transfer_batch_to_device(self.checkpoint.callbacks, module.device, 0)
        for callback in ours(trainer):
            if callback.state_key in states:
                callback.load_state_dict(states[callback.state_key])
        log.info("Resuming at step %d.", module.counters.steps)


class SaveCheckpoint(AfterStep):
    """Writes checkpoints/last.ckpt every few minutes and at the end.

    The last of the callbacks: what the others write of a step is there before its checkpoint. What
    they write at the end is there before the checkpoint that says that training is over. Slow
    writing happens less often, so that it takes no more than `WRITING_SHARE` of the time; every 0
    minutes is after each step, whatever it costs.
    """

    def __init__(self, path: Path, every_minutes: float) -> None:
        self.path, self.every_minutes = path, every_minutes
        self._due = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the time of the first one."""
        self._due = cast(LesionModule, pl_module).clock.minutes() + self.every_minutes

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Save when it is due; the last step's waits for the end of training."""
        if module.counters.minutes >= self._due and module.progress < 1:
            self._save(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what training hands over."""
        self._save(trainer, cast(LesionModule, pl_module))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say to an interrupted user how to go on; the steps since the last checkpoint are lost."""
        if trainer.is_global_zero and isinstance(exception, KeyboardInterrupt | SystemExit):
            step = cast(LesionModule, pl_module).counters.steps
            log.warning(
                "Interrupted at step %d; the same command goes on from the last checkpoint.", step
            )

    def _save(self, trainer: pl.Trainer, module: LesionModule) -> None:
        began = module.clock.minutes()
        if trainer.is_global_zero:
            states = {one.state_key: one.state_dict() for one in ours(trainer)}
            write_checkpoint(self.path, Checkpoint.of(module, states))
        now = module.clock.minutes()
        least = (now - began) / WRITING_SHARE if self.every_minutes else 0.0
        self._due = now + max(self.every_minutes, least)
