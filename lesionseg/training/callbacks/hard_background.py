"""Hard background: places without a lesion that the network took for one, shown again later.

What is found in an epoch is used in the next but one. Worker processes read tiles ahead of the
step, so a place used at once would be in some tiles or not by chance; an epoch later it is not.
"""

from collections.abc import Callable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lesionseg.data.sampling import HardPoint
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.step.module import LesionModule, Watch
from lesionseg.training.step.supervision import LevelTargets

_SLOTS = 4  # epochs kept: the present one, those in use and one that is being read ahead


class HardPlaces(nn.Module):
    """The `capacity` worst false alarms of each of the latest epochs.

    A module without weights, so that checkpoints carry it; its memory is shared with the worker
    processes and stays on the CPU.
    """

    def __init__(self, dims: int, capacity: int) -> None:
        super().__init__()
        # a row: tile number, case, centre; the epoch of a slot is −1 while it is empty
        self.rows = torch.full((_SLOTS, capacity, 2 + dims), -1, dtype=torch.int64)
        self.scores = torch.full((_SLOTS, capacity), -torch.inf)
        self.epochs = torch.full((_SLOTS,), -1, dtype=torch.int64)
        for shared in (self.rows, self.scores, self.epochs):
            shared.share_memory_()  # type: ignore[no-untyped-call]  # in torch

    def add(self, epoch: int, number: int, point: HardPoint, score: float) -> None:
        """Keep a place of `epoch` if it is among its worst."""
        slot = epoch % _SLOTS
        if int(self.epochs[slot]) != epoch:
            self.epochs[slot] = epoch
            self.scores[slot].fill_(-torch.inf)
        least = int(self.scores[slot].argmin())
        if score > float(self.scores[slot, least]):
            self.scores[slot, least] = score
            self.rows[slot, least] = torch.tensor([number, point.case, *point.centre])

    def of(self, epoch: int) -> tuple[HardPoint, ...]:
        """The places that tiles of `epoch` may show, in order of the tiles they were found in."""
        slot = (epoch - 2) % _SLOTS
        if epoch < 2 or int(self.epochs[slot]) != epoch - 2:
            return ()
        rows = self.rows[slot][torch.isfinite(self.scores[slot])].tolist()
        return tuple(HardPoint(row[1], tuple(row[2:])) for row in sorted(rows))

    def get_extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"rows": self.rows, "scores": self.scores, "epochs": self.epochs}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Put it back, in the memory that the workers see."""
        for name, values in state.items():
            getattr(self, name).copy_(values)


class WatchBackground(AfterStep):
    """Tells `found(number, voxel, score)` the worst voxel of each tile that holds no lesion.

    One process only: of several, each sees tiles of its own, and a checkpoint keeps the first's.
    """

    def __init__(self, found: Callable[[int, tuple[int, ...], float], None]) -> None:
        self.found = found
        self._next: Watch | None = None
        self._seen = 0
        self._module: LesionModule | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any, **_kwargs: Any
    ) -> None:
        """Look at what the module shows, and pass it on to who else wants to look at this step."""
        module = cast(LesionModule, pl_module)
        if trainer.world_size == 1 and module.watch != self.watch:
            self._module, self._next = module, module.watch
            module.watch = self.watch

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Begin to count the tiles of the next step."""
        self._seen = 0

    def watch(self, logits: Tensor, targets: LevelTargets) -> None:
        """Look at one part of a step: logits `[B, K, *tile]` at full resolution."""
        if self._next is not None:
            self._next(logits, targets)
        module = cast(Any, self._module)
        settings, plan = module.settings, module.plan
        first = module.counters.steps * plan.batch_size * settings.accumulate + self._seen
        self._seen += len(logits)
        worst = lesion_score(logits, plan.activation).masked_fill(~targets.valid, -torch.inf)
        flat = worst.flatten(1)
        highest, where = flat.max(dim=1)
        free = (targets.labels.flatten(1) == 0).all(dim=1)
        shape = worst.shape[1:]
        rows = zip(highest.tolist(), where.tolist(), free.tolist(), strict=True)
        for place, (score, index, lesion_free) in enumerate(rows):
            if lesion_free and score > -torch.inf:
                voxel = tuple(int(v) for v in torch.unravel_index(torch.tensor(index), shape))
                self.found(first + place, voxel, score)


def lesion_score(logits: Tensor, activation: str) -> Tensor:
    """A number `[B, *tile]` that grows with the probability of any lesion."""
    logits = logits.float()
    if activation == "sigmoid":
        return logits.amax(dim=1)
    return logits[:, 1:].logsumexp(dim=1) - logits[:, 0]
