"""Callbacks of a training: checkpoints, metrics.csv, progress, focal statistics."""

import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor

from lesionseg.child_process import STOP_SIGNALS
from lesionseg.io.files import atomic_path
from lesionseg.training.checkpoints import LAST
from lesionseg.training.objective import FinestLogits
from lesionseg.training.processes import broadcast_from_rank_zero, is_rank_zero

log = logging.getLogger(__name__)

# The pause between checkpoints, as a multiple of the time to write the last one: at most 2 % of the
# time is spent on writing.
PAUSE_SHARE = 50
STRETCH = 20  # logged batches to average over: a single one has few lesions or none
HARD_SHARE = 0.01  # share of the background voxels with the highest lesion probability
# Warn if this hard background has a larger share of the gradient. If lesions and background are
# balanced, the whole background has half of it. A much larger share comes from outliers.
MAX_HARD_GRADIENT = 0.65
MIN_LESION_GRADIENT = 0.01  # warn if lesions have a smaller share of the gradient
# Warn if the mean probability in lesions is below FOUND_FROM after this share of the budget.
FOUND_FROM = 0.02
FOUND_AFTER = 0.25
HARD_NAME = "grad_share/hard_background"
LESION_NAME = "grad_share/lesion"
P_NAME = "p/lesion"


class LastCheckpoint(Checkpoint):
    """A callback that writes checkpoints/last.ckpt between steps, at intervals and at the end.

    The interval is at least `pause`, and at least `PAUSE_SHARE` times the time that the last
    checkpoint took, because a GPU is idle during it. All processes use the same clock
    (`LesionModule.minutes`). The file is called next.ckpt until Lightning has written the row of
    its step to metrics.csv.

    If the training has one process, a signal of a scheduler (`STOP_SIGNALS`) ends it after its
    step, with a checkpoint. During a validation, and at a second signal, it ends at once. If
    `has_stopped` is True, an error of the loader is a consequence of the signal.
    """

    def __init__(self, folder: Path, pause: timedelta) -> None:
        self.folder = folder
        self.pause = pause.total_seconds()
        self._due = self.pause  # seconds of training
        self._ended_early = False
        self.has_stopped = False
        self._is_stopping = False
        self._handlers: dict[int, Any] = {}  # those of the signals before the training

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Remove the unfinished checkpoint of a training that was killed."""
        if trainer.is_global_zero:
            (self.folder / "next.ckpt").unlink(missing_ok=True)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Schedule the first checkpoint one pause after the start, also of a resumed training."""
        self._due = 60 * module.minutes + self.pause
        if trainer.world_size == 1:  # the processes of a training would stop at different steps
            with suppress(ValueError):  # only the main thread may set a handler
                for number in STOP_SIGNALS:
                    self._handlers[number] = signal.signal(number, partial(self._stop, trainer))

    def _stop(self, trainer: Any, *_: Any) -> None:
        """Stop before the next step. Raise `KeyboardInterrupt` if that may take long."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        is_validating = batches.processed > batches.completed
        if self._is_stopping or is_validating:
            raise KeyboardInterrupt
        self._is_stopping = True

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Restore the handlers of the signals.

        A scheduler's signal also ends the loader's workers. If the training needs their next batch,
        this error comes before the next step. Write the checkpoint, and set `has_stopped`.
        """
        self._restore_handlers()
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        is_between_steps = batches.ready == batches.completed
        if self._is_stopping and is_between_steps:
            trainer.save_checkpoint(self.folder / LAST)
            self.has_stopped = True

    def _restore_handlers(self) -> None:
        """Restore the handlers that the signals had before the training."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Rename the checkpoint of the previous step, whose row has been written by now.

        If the training is to stop and the step is complete, write a checkpoint and raise
        `KeyboardInterrupt`.
        """
        self._rename(trainer)
        if self._is_stopping and batch_idx % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.folder / LAST)
            raise KeyboardInterrupt

    def _rename(self, trainer: Any) -> None:
        """Rename next.ckpt, if it exists, to last.ckpt."""
        new = self.folder / "next.ckpt"
        if trainer.is_global_zero and new.is_file():
            new.replace(new.with_name(LAST))

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the module's clock, and write a checkpoint if it is due and the step is complete.

        The stream of tiles can resume only between steps, not between accumulated batches.
        """
        module.update_minutes()  # Lightning calls the module's own hook after those of callbacks
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not is_step or 60 * module.minutes < self._due:
            return
        began = time.monotonic()
        trainer.save_checkpoint(self.folder / "next.ckpt")
        took = time.monotonic() - began
        took = broadcast_from_rank_zero(lambda: took)
        self._due = 60 * module.minutes + took + max(self.pause, PAUSE_SHARE * took)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Write the last checkpoint. It states if another callback ended the training."""
        self._ended_early = module.progress < 1
        trainer.save_checkpoint(self.folder / "next.ckpt")
        self._rename(trainer)
        self._restore_handlers()
        if self._is_stopping:
            raise KeyboardInterrupt

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Add whether the training ended before its budget was spent, such as by EarlyStopping."""
        checkpoint["ended_early"] = self._ended_early


class AfterValidation(pl.Callback):
    """A callback that calls a function after each validation except the one at the end.

    The function may raise an exception to stop the training, which `fit` passes on. A training
    that has spent its budget is therefore never stopped.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self._has_ended = False

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Note that the next validation is the last one.

        `VolumeValidation` validates in the same hook, but later: Lightning calls checkpoint
        callbacks after all others.
        """
        self._has_ended = True

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Call the function if the training continues."""
        if not self._has_ended:
            self.function()


class AtomicCheckpoints(TorchCheckpointIO):
    """A writer of checkpoints under a temporary name in their folder, which are then renamed.

    Lightning would write them to TMPDIR and move them.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write the file. If the process is killed meanwhile, the old file stays complete."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class History(CSVLogger):
    """A logger of metrics.csv in `run_dir`. Its constructor removes an existing file.

    A resumed training keeps the rows of its first `n_steps` steps.
    """

    def __init__(self, run_dir: Path, n_steps: int) -> None:
        super().__init__(run_dir, name="", version="")
        self._minutes = math.nan  # of the last row of a training step
        path = run_dir / "metrics.csv"
        rows = None
        if n_steps and path.is_file() and is_rank_zero():
            rows = _read_history(path, n_steps)
        writer = self.experiment  # creating Lightning's writer removes the file
        if rows is not None:
            with atomic_path(path) as temporary:
                rows.to_csv(temporary, index=False)
            writer.metrics_keys = list(rows.columns)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row, unless Lightning repeats the last one because the training ends."""
        if metrics.get("minutes") != self._minutes:
            super().log_metrics(metrics, step)
        self._minutes = metrics.get("minutes", self._minutes)


def _read_history(path: Path, n_steps: int) -> pd.DataFrame | None:
    """Return the rows of the first `n_steps` steps.

    If the file is empty or damaged, log a warning and return None.
    """
    try:
        rows = pd.read_csv(path)
        return rows[pd.to_numeric(rows["step"], errors="coerce") < n_steps]
    except (ValueError, KeyError):  # pandas' own errors are ValueErrors
        log.warning("%s cannot be read. It begins again with step %d.", path, n_steps)
        return None


class ProgressCallback(pl.Callback):
    """A callback that shows one progress bar for the training, with step and smoothed loss.

    `bar` opens the bar and yields a function of (text, done, total). Here `done` is the spent share
    of the budget, and `total` is 1.
    """

    def __init__(
        self, bar: Callable[[], AbstractContextManager[Callable[[str, float, int], None]]]
    ) -> None:
        self.bar = bar
        self.loss = math.nan
        self._open = ExitStack()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Open the bar."""
        if trainer.is_global_zero:
            self._advance = self._open.enter_context(self.bar())

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Advance the bar. The loss is read only after a logged step, because reading waits."""
        if not trainer.is_global_zero:
            return
        logged = trainer.logged_metrics
        if trainer.global_step % trainer.log_every_n_steps == 0 and "loss" in logged:
            newest = float(logged["loss"])
            self.loss = newest if math.isnan(self.loss) else 0.8 * self.loss + 0.2 * newest
        # NaN: no loss has been logged yet
        loss = "" if math.isnan(self.loss) else f", smoothed loss {self.loss:.3g}"
        self._advance(f"step {trainer.global_step}{loss}", min(module.progress, 1.0), 1)

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        self._open.close()

    def on_exception(self, *_: Any) -> None:
        """Close the bar."""
        self._open.close()


class WorkerLogHandler(pl.Callback):
    """A callback that sets up logging in processes that Lightning spawns, which have none.

    The first process writes to the handler that `open_handler` returns, and warnings also to the
    terminal. The other processes report only errors.
    """

    def __init__(self, open_handler: Callable[[], logging.Handler]) -> None:
        self.open_handler = open_handler

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Add the handlers if this process was spawned."""
        if not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            return
        ours = logging.getLogger("lesionseg")
        ours.setLevel(logging.INFO if trainer.is_global_zero else logging.ERROR)
        if trainer.is_global_zero:
            root = logging.getLogger()
            root.addHandler(self.open_handler())
            if logging.lastResort is not None:
                root.addHandler(logging.lastResort)


class FocalStatistics(pl.Callback):
    """A callback that logs gradient shares and the probability in lesions, and warns of faults.

    For the finest logits it computes the mean probability in lesions, and two shares of the
    gradient's L1 norm: the share of lesions, and the share of the hardest 1 % of background. Each
    warning appears once.
    """

    def __init__(self) -> None:
        self._on_device: dict[str, Tensor] = {}  # of the observed step; NaN if not defined
        self._rows: deque[dict[str, float]] = deque(maxlen=STRETCH)
        self._warned: set[str] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        """Observe the batch if its step is logged."""
        self._on_device = {}
        module.observer = self.observe if module.is_logged else None

    def observe(self, finest: FinestLogits) -> None:
        """Compute the probability in lesions, and register a hook for the gradient.

        The host does not wait for a GPU: the statistics stay on it until `latest` reads them.
        """
        logits = finest.logits
        class_axis = finest.class_axis
        valid = finest.valid
        values = logits.detach().movedim(class_axis, 1).float()
        if finest.activation == "softmax":
            p = 1 - values.softmax(1)[:, 0]  # channel 0 is background
        else:
            p = values.sigmoid().amax(1)
        lesion = finest.labels > 0
        if lesion.ndim > p.ndim:
            lesion = lesion.any(1)
        lesion = lesion & valid
        background = ~lesion & valid
        self._on_device = {P_NAME: _sum_within(p, lesion) / lesion.sum()}

        def keep_shares(gradient: Tensor) -> None:
            """Keep two shares of the gradient's L1 norm: of lesions, and of hard background."""
            size = gradient.movedim(class_axis, 1).abs().float().sum(1)
            total = _sum_within(size, valid)
            total = total.where(total.isfinite(), math.nan)  # 0 gives 0 / 0, which is NaN, too
            self._on_device[HARD_NAME] = _sum_of_hardest(size, p, background) / total
            self._on_device[LESION_NAME] = _sum_within(size, lesion) / total

        if logits.requires_grad:
            logits.register_hook(keep_shares)  # type: ignore[no-untyped-call]

    def latest(self) -> dict[str, float]:
        """Return the defined statistics of the observed step by name; {} if none was observed.

        The host waits once for a GPU.
        """
        if not self._on_device:
            return {}
        values = torch.stack(list(self._on_device.values())).tolist()
        named = dict(zip(self._on_device, values, strict=True))
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Log the statistics of the step, and warn if the means of the last 20 logged show a fault.

        Nothing is logged if the step was not observed, or was skipped, which the module counts.
        """
        latest = self.latest()
        if not latest:
            return
        module.count_skipped()
        if module.skipped_in_a_row:
            return
        module.log_dict(latest)
        self._rows.append(latest)
        if not trainer.is_global_zero or len(self._rows) < STRETCH:
            return
        warnings = _find_problems(pd.DataFrame(list(self._rows)).mean().to_dict(), module.progress)
        for name in warnings.keys() - self._warned:
            self._warned.add(name)
            log.warning("Step %d: %s", trainer.global_step, warnings[name])


def _sum_within(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the values in a mask. An index by the mask would wait for a GPU."""
    return values.where(mask, 0).sum()


def _sum_of_hardest(size: Tensor, p: Tensor, background: Tensor) -> Tensor:
    """Return the sum of `size` over the 1 % of background voxels with the highest probability `p`.

    All have the same shape. The sum is over at least one voxel, and is 0 if there is no background.
    """
    n_hardest = (HARD_SHARE * background.sum()).round().clamp_min(1)
    maximum = max(1, round(HARD_SHARE * p.numel()))  # the host knows only this limit of `n_hardest`
    hardest = p.masked_fill(~background, -1.0).flatten().topk(min(maximum, p.numel()))
    is_counted = torch.arange(len(hardest.values), device=p.device) < n_hardest
    is_counted &= hardest.values >= 0  # fewer voxels than that are background
    return _sum_within(size.flatten()[hardest.indices], is_counted)


def _find_problems(means: Mapping[str, float], progress: float) -> dict[str, str]:
    """Return a warning for each fault that the mean statistics show, by the fault's name.

    `progress` is the share of the budget that is spent. A missing statistic shows no fault.
    """
    # a missing number is NaN, and each comparison with NaN is False
    hard = means.get(HARD_NAME, np.nan)
    lesion = means.get(LESION_NAME, np.nan)
    p = means.get(P_NAME, np.nan)
    warnings: dict[str, str] = {}
    if hard > MAX_HARD_GRADIENT:
        warnings["hard"] = (
            f"The hardest 1 % of background has {hard:.0%} of the gradient. The reference may "
            "lack lesions, or γ is too high. Check the reference, or lower loss.gamma "
            "(detection.gamma for anchors)."
        )
    has_seen_lesions = p >= 0  # False for NaN: without lesions, their share of 0 is no fault
    if lesion < MIN_LESION_GRADIENT and has_seen_lesions:
        warnings["few"] = (
            f"Lesions have only {lesion:.1%} of the gradient. Raise loss.alpha "
            "(detection.alpha for anchors), or use more tiles with lesions "
            "(sampling.lesion_share)."
        )
    if p < FOUND_FROM and progress >= FOUND_AFTER:
        warnings["collapse"] = (
            f"After {progress:.0%} of the budget the mean probability in lesions is {p:.2g}, "
            "so that no lesion would be found. Raise loss.alpha (detection.alpha for anchors), "
            "use more tiles with lesions (sampling.lesion_share), train longer, or set a finer "
            "model.spacing_mm."
        )
    return warnings
