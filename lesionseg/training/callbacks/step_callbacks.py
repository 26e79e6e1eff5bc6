"""What happens between steps: recording, validating and showing."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from lesionseg.training.callbacks.history import History
from lesionseg.training.device.accelerator import LateFigures
from lesionseg.training.lightning_module import LesionModule, StepReport

log = logging.getLogger(__name__)

Validate = Callable[[nn.Module], Mapping[str, float]]


class AfterStep(pl.Callback):
    """Base of the callbacks here: one hook after each step, with our own module's type.

    A checkpoint carries their `state_dict`: tensors and plain values. What belongs into a file
    before the checkpoint is written there when it is asked for.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any, **_kwargs: Any
    ) -> None:
        """Lightning's hook."""
        self.after_step(trainer, cast(LesionModule, pl_module))

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """What this callback does after a step, skipped ones included."""


def ours(trainer: pl.Trainer) -> list[AfterStep]:
    """The trainer's callbacks but those that users handed to it."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # in Lightning
    return [callback for callback in callbacks if isinstance(callback, AfterStep)]


class Record(AfterStep):
    """Adds the mean of each few steps to the history; skipped steps are counted, not averaged.

    `listeners` are called with each row, too, and so are the loggers of Lightning's trainer. A GPU
    is not waited for: its row is read with the next one, or when the file is to be written.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.listeners: list[Callable[[Mapping[str, object]], None]] = []
        self.history: History | None = None
        self._reports: list[StepReport] = []
        self._unread: tuple[dict[str, object], list[str], LateFigures] | None = None
        self._n_skipped = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the history, without rows later than the step that training resumes at."""
        if trainer.is_global_zero:
            counters = cast(LesionModule, pl_module).counters
            self.history = History(self.path, counters.steps)
            n_pending = sum(int(report.skipped) for report in self._reports)
            self._n_skipped = counters.skipped - n_pending
            self.listeners += [partial(tell, logger) for logger in trainer.loggers]

    def state_dict(self) -> dict[str, Any]:
        """The steps since the last row."""
        self.write()
        return {"reports": [vars(report) for report in self._reports]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self._reports = [StepReport(**report) for report in state_dict["reports"]]

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Collect; write when `every` steps are together or training ends."""
        if self.history is None or module.latest is None:
            return
        self._reports.append(module.latest)
        if module.counters.steps % self.every == 0 or module.progress >= 1:
            self._read()
            means = _means(self._reports)
            figures = LateFigures.of(torch.stack(list(means.values())))
            self._unread = ({**_where(module), "lr": module.latest.lr}, list(means), figures)
            self._reports = []
            if figures.sent is None:
                self._read()

    def _read(self) -> None:
        """Add the row whose numbers were still on their way."""
        if self._unread is None:
            return
        where, names, figures = self._unread
        self._unread = None
        row = dict(zip(names, figures.read(), strict=True))
        self._n_skipped += round(row.pop("skipped"))
        cells = {name: "" if isnan(value) else value for name, value in row.items()}
        self.add({**where, **cells, "skipped": self._n_skipped})

    def add(self, row: Mapping[str, object]) -> None:
        """Add a row; on the first process, where the history is."""
        self._read()
        if self.history is None:
            return
        self.history.add(row)
        for listener in self.listeners:
            listener(row)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is left."""
        self.write()

    def write(self) -> None:
        """Write the history now; nothing on processes other than the first."""
        self._read()
        if self.history is not None:
            self.history.write()


def tell(logger: Any, row: Mapping[str, object]) -> None:
    """Log the numbers of a row of the history to a Lightning logger, at the row's step."""
    numbers = {k: float(v) for k, v in row.items() if isinstance(v, float | int) and k != "step"}
    logger.log_metrics(numbers, step=int(str(row["step"])))


class Validation(AfterStep):
    """Calls `validate` with the averaged network in eval mode, at intervals and at the end.

    With several processes the first one validates while the others wait. When it is due, too, is
    the first one's to say: were each to ask its own clock, one could wait while others go on.
    """

    def __init__(self, validate: Validate, every_minutes: float | None, record: Record) -> None:
        self.validate, self.every_minutes, self.record = validate, every_minutes, record
        self._due: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the time of the first validation."""
        self._plan(trainer, cast(LesionModule, pl_module))

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Validate when it is due."""
        due = self._due is not None and module.counters.minutes >= self._due
        if due and module.progress < 1:
            self._run(trainer, module)
            self._plan(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate what training hands over."""
        self._run(trainer, cast(LesionModule, pl_module))

    def _plan(self, trainer: pl.Trainer, module: LesionModule) -> None:
        if self.every_minutes is not None:
            self._due = trainer.strategy.broadcast(module.clock.minutes() + self.every_minutes)

    def _run(self, trainer: pl.Trainer, module: LesionModule) -> None:
        if trainer.is_global_zero and self.record.history is not None:
            scores = _in_eval_mode(self.validate, module.final_network)
            named = {f"validation_{name}": value for name, value in scores.items()}
            self.record.add({**_where(module), **named})
            self.record.write()
        trainer.strategy.barrier()


class ProgressLine(AfterStep):
    """One line on the terminal: share of the budget, time left, step and loss.

    Where standard error is no terminal, a log line each epoch instead.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the line, on the first process alone."""
        if trainer.is_global_zero:
            self._bar = _progress_bar()
            self._bar.add_task("Training", total=1.0, state="")
            self._bar.start()

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Move the line on."""
        if self._bar is None or module.latest is None:
            return
        if not self._bar.disable:
            state = f"step {module.counters.steps}  loss {module.latest_loss:.3g}"
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=min(module.progress, 1.0), state=state)
        elif module.counters.steps % module.settings.steps_per_epoch == 0:
            _log_progress(module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let go of the terminal."""
        self.on_train_end(trainer, pl_module)


def _progress_bar() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _log_progress(module: LesionModule) -> None:
    log.info(
        "Epoch %d, step %d, %.1f minutes (%.0f %% of the budget), loss %.4g.",
        module.epoch,
        module.counters.steps,
        module.counters.minutes,
        100 * module.progress,
        module.latest_loss,
    )


def _where(module: LesionModule) -> dict[str, object]:
    counters = module.counters
    return {"step": counters.steps, "minutes": counters.minutes, "epoch": module.epoch}


def _means(reports: list[StepReport]) -> dict[str, Tensor]:
    """Means of the steps that counted, NaN when none did, and how many did not; on the device."""
    skipped = torch.stack([report.skipped for report in reports])
    terms = {name: [report.terms[name] for report in reports] for name in reports[-1].terms}
    losses = {"loss": [report.loss for report in reports]}
    losses |= {f"loss_{name}": values for name, values in terms.items()}
    sums = {name: torch.stack(v).masked_fill(skipped, 0).sum() for name, v in losses.items()}
    return {
        **{name: total / (~skipped).sum() for name, total in sums.items()},
        "positives": torch.stack([report.positives for report in reports]).mean(),
        "skipped": skipped.sum().float(),
    }


def _in_eval_mode(validate: Validate, network: nn.Module) -> Mapping[str, float]:
    network.eval()
    try:
        return validate(network)
    finally:
        network.train()
