"""One training step: tiles in, named loss terms, gradients, an update of the weights."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lesionseg.errors import TrainingError
from lesionseg.losses import PositiveAverage
from lesionseg.plan.plan import Plan
from lesionseg.training.device.accelerator import LateFigures
from lesionseg.training.device.speed import BACKEND, GRAPHS, Mode, begin_forward, tune_kernels
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.objective import BatchTargets, Objective, add_terms
from lesionseg.training.step.optimiser import (
    WarmAverage,
    clipped_step,
    gradient_norm,
    make_optimiser,
    set_learning_rate,
)
from lesionseg.training.step.scaling import LossScale, fp16_context
from lesionseg.training.step.schedule import Clock, Counters, TrainingBudget, learning_rate
from lesionseg.training.step.supervision import LevelTargets

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
Watcher = Callable[[Tensor, LevelTargets], None]


@dataclass(frozen=True, eq=False)
class StepReport:
    """What one step did; `terms` sum to `loss`, `positives` counts the lesion voxels (or
    anchors) of the step. `skipped`: its loss or gradient was not finite, and nothing was changed.

    Tensors are 0-d and stay on the device: only reading them waits for it.
    """

    step: int
    lr: float
    loss: Tensor
    terms: Mapping[str, Tensor]
    positives: Tensor
    skipped: Tensor


class LesionModule(pl.LightningModule):
    """A network, its objective and its weights' average, trained one optimiser step per batch.

    A batch holds all tiles of a step on this process, `plan.batch_size · accumulate` of them: the
    normaliser of the focal loss counts the positives of all, which must be known before the first
    backward. It goes through the network `plan.batch_size` tiles at a time. The loss is the mean
    over these parts and over processes, each given normaliser / (parts · processes). So terms
    averaged over voxels and terms divided by positives both equal those of one large batch.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        plan: Plan,
        settings: TrainerSettings,
        optimiser: OptimiserSettings,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.objective, self.plan = network, objective, plan
        self.settings, self.optimiser_settings = settings, optimiser
        self.averaged = (
            None if settings.ema_decay is None else WarmAverage(network, settings.ema_decay)
        )
        self.normalisers: PositiveAverage | None = None
        self.scale: LossScale | None = None
        self.compiled: Mode | None = None
        self.budget = TrainingBudget(settings.max_steps, settings.max_minutes)
        self.clock = clock or Clock()
        self.counters = Counters()
        self.latest: StepReport | None = None
        self.latest_loss = float("nan")  # of the step before on a GPU
        self._unread: tuple[int, LateFigures] | None = None
        self._agreed_minutes = 0.0
        self.watchers: list[Watcher] = []  # of the next step, each shown all of its parts

    def use_fp16(self) -> None:
        """Compute in fp16 from now on, with a scaled loss."""
        self.scale = self.scale or LossScale()

    def setup(self, stage: str) -> None:
        """Start the averages of positives, now that the number of processes is known; compile.

        In place and in the process that trains: names of weights stay as they are.
        """
        self.normalisers = self.make_normalisers(self.trainer.world_size)
        device = self.trainer.strategy.root_device
        tune_kernels(device)
        if self.compiled:
            self.network.compile(backend=BACKEND, mode=self.compiled)
            if device.type == "cuda":  # a CPU has kernels of its own for losses
                self.objective.compile(BACKEND)

    def on_train_start(self) -> None:
        """Let the clock run from the minutes before a resume."""
        self.clock.start(self.counters.minutes)
        self._agreed_minutes = self.counters.minutes

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End training, in mid-epoch if need be, when the budget is spent."""
        if self.progress >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let Lightning's checkpoints tell how far training has come."""
        self.settle()
        checkpoint["counters"] = asdict(self.counters)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there, in the tiles and in the learning rate."""
        self.counters = Counters(**checkpoint["counters"])

    def teardown(self, stage: str) -> None:
        """Hand over a network as it was, not compiled."""
        if self.compiled:
            self.network._compiled_call_impl = None

    def make_normalisers(self, n_processes: int) -> PositiveAverage:
        """An average of positives per normaliser, from what the objective expects of a step."""
        n_tiles = self.plan.batch_size * self.settings.accumulate * n_processes
        return PositiveAverage(self.objective.expected(n_tiles))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser over the network's weights."""
        return make_optimiser(self.network, self.optimiser_settings)

    @property
    def final_network(self) -> nn.Module:
        """The network to keep: the averaged one where there is one."""
        return self.network if self.averaged is None else self.averaged.module

    @property
    def progress(self) -> float:
        """Share of the budget spent."""
        return self.budget.progress(self.counters.steps, self.counters.minutes)

    @property
    def epoch(self) -> int:
        """Epochs of the sampler completed."""
        return self.counters.steps // self.settings.steps_per_epoch

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One optimiser step; a step whose loss or gradient is not finite leaves the weights."""
        optimiser: Any = self.optimizers()
        lr = set_learning_rate(optimiser, learning_rate(self.progress, self.optimiser_settings))
        self.latest = self.learn(batch, optimiser, lr)
        if self.trainer.loggers:
            self.log_dict({"train_loss": self.latest.loss, "train_lr": lr})

    def learn(self, batch: Mapping[str, Tensor], optimiser: Any, lr: float) -> StepReport:
        """Forward and backward pass and update; the host reads nothing that a GPU computes here."""
        targets = self.objective.targets(batch)
        normalisers, positives = self._normalise(targets)
        self._clear_gradients(optimiser)
        terms, total = self._accumulate(batch, targets, normalisers)
        self.watchers.clear()
        if self.scale is not None:
            self.scale.unscale(self.network.parameters())
        norm = gradient_norm(self.network)
        loss, agreed, terms = self._agree(total, terms)
        both = loss + norm
        finite = both - both == 0  # half the launches of isfinite
        skipped = ~finite
        left_out = skipped.float()
        clipped_step(optimiser, norm, self.settings.gradient_clip, left_out)
        if self.averaged is not None:
            self.averaged.update_parameters(self.network, finite)
        if self.scale is not None:
            self.scale.update(finite)
        self._count(torch.stack([left_out, loss, *agreed]))
        return StepReport(self.counters.steps, lr, loss, terms, positives, skipped)

    def _clear_gradients(self, optimiser: Any) -> None:
        """None, or zeros where CUDA graphs compute the gradients.

        Autograd would keep the graph's own output as the gradient, which the next part of the step
        writes over; to zeros that are there before it adds.
        """
        optimiser.zero_grad(set_to_none=self.compiled != GRAPHS)
        if self.compiled == GRAPHS:
            for weight in self.network.parameters():
                if weight.requires_grad and weight.grad is None:
                    weight.grad = torch.zeros_like(weight)

    def _normalise(self, targets: BatchTargets) -> tuple[Tensor, Tensor]:
        """The normaliser of each group of terms, and the first's positives on all processes."""
        counts = self._reduce(targets.counts(), "sum")
        shares = self.settings.accumulate * self.trainer.world_size
        normalisers = cast(PositiveAverage, self.normalisers).update(counts)
        return normalisers / shares if shares > 1 else normalisers, counts[0]

    def _accumulate(
        self, batch: Mapping[str, Tensor], targets: BatchTargets, normalisers: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add up the gradients of all parts; the named terms' means over them, and their sum."""
        size = self.plan.batch_size
        images, parts = torch.split(batch["image"], size), targets.split(size)
        unannotated = torch.split(batch["unannotated"], size) if "unannotated" in batch else ()
        named: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        for number, (tiles, part) in enumerate(zip(images, parts, strict=True)):
            begin_forward(self.compiled)
            with fp16_context(tiles.device.type, self.scale):
                output = self.network(tiles)
            if unannotated:
                output = self.objective.known(output, unannotated[number])
            self._show(output, part)
            terms = self.objective.terms(output, part, normalisers)
            if len(images) > 1:
                terms = {name: term / len(images) for name, term in terms.items()}
            loss = torch.stack(list(terms.values())).sum()
            with nullcontext() if part is parts[-1] else self._unshared():
                self.manual_backward(loss if self.scale is None else loss * self.scale.scale)
            add_terms(named, {name: term.detach() for name, term in terms.items()})
            add_terms(losses, {"loss": loss.detach()})
        return named, losses["loss"]

    def _unshared(self) -> AbstractContextManager[None]:
        """Processes exchange gradients once a step, with those of its last part."""
        block = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        context: AbstractContextManager[None] = block()
        return context

    def _show(self, output: Any, targets: BatchTargets) -> None:
        """Show the finest logits and their targets to those who asked before the step."""
        if self.watchers:
            logits, finest = self.objective.shown(output, targets)
            logits = logits.clone() if self.compiled == GRAPHS else logits
            for watcher in self.watchers:
                watcher(logits, finest)

    def _agree(
        self, loss: Tensor, terms: dict[str, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
        """The means of loss, minutes and terms over processes: all of them stop together.

        No minutes where one process trains, which goes by its own clock.
        """
        if self.trainer.world_size == 1:
            return loss, (), terms
        minutes = torch.full_like(loss, self.clock.minutes())
        means = self._reduce(torch.stack([loss, minutes, *terms.values()]), "mean")
        return means[0], (means[1],), dict(zip(terms, means[2:], strict=True))

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        reduced: Tensor = self.trainer.strategy.reduce(values, reduce_op=how)
        return reduced

    def _count(self, figures: Tensor) -> None:
        """Count a step; of several processes each goes by the minutes that all have agreed on."""
        self.settle()
        self.counters.steps += 1
        self._unread = (self.counters.steps, LateFigures.of(figures))
        if figures.is_cpu:
            self.settle()
        alone = self.trainer.world_size == 1
        self.counters.minutes = self.clock.minutes() if alone else self._agreed_minutes

    def settle(self) -> None:
        """Take in what the last step came to; waits for a GPU that still computes it.

        Raises `TrainingError` after too many steps in a row that were not finite.
        """
        if self._unread is None:
            return
        step, figures = self._unread
        self._unread = None
        left_out, self.latest_loss, *agreed = figures.read()
        self._agreed_minutes = agreed[0] if agreed else self._agreed_minutes
        if left_out:
            self._count_skipped(step)
        else:
            self.counters.skipped_in_a_row = 0

    def _count_skipped(self, step: int) -> None:
        self.counters.skipped += 1
        self.counters.skipped_in_a_row += 1
        log.warning(
            "Step %d skipped: its loss or gradient is not finite (%d of them so far).%s",
            step,
            self.counters.skipped,
            f" The scale of the loss is now {self.scale.scale.item():g}." if self.scale else "",
        )
        if self.counters.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                "Training has diverged: the loss or its gradient is not finite.",
                seen=f"{MAX_SKIPPED_IN_A_ROW} such steps in a row, up to step {step}",
                remedy=self._remedy(),
            )

    def _remedy(self) -> str:
        if self.scale is not None:
            return "set trainer.precision=bf16-mixed or 32-true; if those diverge, lower optim.lr."
        return "lower optim.lr, set trainer.precision=32-true, or look at the images."
