"""Finds hard background (`data.hard_places`) in the logits of the steps that are trained on."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from lesionseg.training.device.accelerator import LateFigures
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.step.supervision import LevelTargets


class WatchBackground(pl.Callback):
    """Calls `report(number, voxel, score)` with the worst voxel of each tile without a lesion.

    One process only: of several, each sees tiles of its own, and a checkpoint keeps the first's.
    A GPU is not waited for: it is asked at the next step.
    """

    def __init__(self, report: Callable[[int, tuple[int, ...], float], None]) -> None:
        self.report = report
        self._n_seen = 0  # tiles of this step
        self._unread: list[tuple[int, torch.Size, LateFigures]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any, **_kwargs: Any
    ) -> None:
        """Watch every step."""
        self._tell()
        if trainer.world_size == 1:
            self._n_seen = 0
            module = cast(LesionModule, pl_module)
            module.watchers.append(partial(self._watch, module))

    def _watch(self, module: LesionModule, logits: Tensor, targets: LevelTargets) -> None:
        """Look at one part of a step: logits `[B, K, *tile]` at full resolution."""
        settings, plan = module.settings, module.plan
        first = module.counters.steps * plan.batch_size * settings.accumulate + self._n_seen
        self._n_seen += len(logits)
        worst = lesion_score(logits, plan.activation).masked_fill(~targets.valid, -torch.inf)
        flat = worst.flatten(1)
        highest, where = flat.max(dim=1)
        free = (targets.labels.flatten(1) == 0).all(dim=1)
        figures = torch.stack([highest.double(), where.double(), free.double()], 1).flatten()
        self._unread.append((first, worst.shape[1:], LateFigures.of(figures)))
        if figures.is_cpu:
            self._tell()

    def _tell(self) -> None:
        """Report what was found."""
        for first, shape, figures in self._unread:
            numbers = iter(figures.read())
            for place, (score, index, free) in enumerate(zip(*[numbers] * 3, strict=True)):
                if free and score > -torch.inf:
                    voxel = torch.unravel_index(torch.tensor(int(index)), shape)
                    self.report(first + place, tuple(int(v) for v in voxel), score)
        self._unread.clear()


def lesion_score(logits: Tensor, activation: str) -> Tensor:
    """A number `[B, *tile]` that grows with the probability of any lesion."""
    logits = logits.float()
    if activation == "sigmoid":
        return logits.amax(dim=1)
    return logits[:, 1:].logsumexp(dim=1) - logits[:, 0]
