"""The checkpoint: everything that a killed training needs to go on as if nothing had happened."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from lesionseg.errors import TrainingError
from lesionseg.io.atomic import atomic_path
from lesionseg.training.step.module import Counters, LesionModule

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
