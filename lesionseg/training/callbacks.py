"""Callbacks: last.ckpt, stop signals, metrics.csv, progress bar, warnings on focal loss."""

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

    - The interval is at least `pause`. It is also at least `PAUSE_SHARE` times as long as writing
      the last checkpoint took, because a GPU is idle meanwhile.
    - All processes use the same clock (`LesionModule.minutes`).
    - The file is called next.ckpt until Lightning has written the row of its step to metrics.csv.
    - If the training has one process, a scheduler's signal (`STOP_SIGNALS`) ends it after the
      present step, with a checkpoint. A second signal ends it at once.

    Attributes:
        has_stopped: True if a signal ended the training while the loader read a batch. The error of
            the loader is then a consequence of the signal.
    """

    def __init__(self, folder: Path, pause: timedelta) -> None:
        self.folder = folder
        self.pause = pause.total_seconds()  # shortest time between checkpoints
        self._next_due_s = self.pause  # time of the next checkpoint, in seconds of training
        self._ended_early = False  # True if a callback ended the training before its budget
        self.has_stopped = False
        self._is_stopping = False  # True after a signal
        # the handlers that were set before the training, by number of the signal
        self._earlier_handlers: dict[int, Any] = {}

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Remove next.ckpt, the unfinished checkpoint of a training that was killed."""
        if trainer.is_global_zero:
            (self.folder / "next.ckpt").unlink(missing_ok=True)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Schedule the first checkpoint one pause after the start, and handle signals.

        A resumed training also waits one pause. `STOP_SIGNALS` are handled only if the training has
        one process, because several processes would stop at different steps. The earlier handlers
        are stored, to be restored at the end.
        """
        self._next_due_s = 60 * module.minutes + self.pause
        if trainer.world_size == 1:
            with suppress(ValueError):  # only the main thread may set a handler
                for number in STOP_SIGNALS:
                    # `signal.signal` returns the earlier handler
                    self._earlier_handlers[number] = signal.signal(
                        number, partial(self._handle_signal, trainer)
                    )

    def _handle_signal(self, trainer: Any, *_: Any) -> None:
        """Handle a scheduler's signal: request a stop before the next step.

        At a second signal, or while callbacks run after a step, end at once by raising
        `KeyboardInterrupt`.

        Args:
            trainer: Lightning's trainer.
            *_: Number and stack frame of the signal; not used.
        """
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        # Lightning counts a batch as processed after its step, as completed after the callbacks
        is_in_callbacks = batches.processed > batches.completed
        if self._is_stopping or is_in_callbacks:
            raise KeyboardInterrupt
        self._is_stopping = True

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Restore the handlers of the signals. Write the checkpoint if a signal caused the error.

        A scheduler's signal also ends the loader's workers. Reading the next batch then fails
        before the next step begins. In this case the checkpoint is written here, and `has_stopped`
        becomes True.
        """
        self._restore_handlers()
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        # Lightning counts a batch as ready when it has been read, as completed after its step
        is_between_steps = batches.ready == batches.completed
        if self._is_stopping and is_between_steps:
            trainer.save_checkpoint(self.folder / LAST)
            self.has_stopped = True

    def _restore_handlers(self) -> None:
        """Restore the signal handlers that were set before the training."""
        while self._earlier_handlers:
            number, handler = self._earlier_handlers.popitem()
            signal.signal(number, handler)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Rename the checkpoint of the previous step, and stop if a signal requested it.

        By now Lightning has written the row of the previous step to metrics.csv. To stop, this
        method writes last.ckpt and raises `KeyboardInterrupt`. It stops only if the previous step
        is complete (not between accumulated batches).
        """
        self._rename_checkpoint(trainer)
        if self._is_stopping and batch_idx % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.folder / LAST)
            raise KeyboardInterrupt

    def _rename_checkpoint(self, trainer: Any) -> None:
        """Rename next.ckpt to last.ckpt, if next.ckpt exists. Only the first process does so."""
        new = self.folder / "next.ckpt"
        if trainer.is_global_zero and new.is_file():
            new.replace(new.with_name(LAST))

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the module's clock, and write a checkpoint if it is due and the step is complete.

        The stream of tiles can resume only between steps, not between accumulated batches. The next
        checkpoint is due after the longer one of `pause` and `PAUSE_SHARE` times the duration of
        this one.
        """
        module.update_minutes()  # Lightning calls the module's own hook after those of callbacks
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not is_step or 60 * module.minutes < self._next_due_s:
            return
        began = time.monotonic()
        trainer.save_checkpoint(self.folder / "next.ckpt")
        duration = time.monotonic() - began
        # equal in all processes, so that they write the next checkpoint at the same step
        duration = broadcast_from_rank_zero(lambda: duration)
        self._next_due_s = 60 * module.minutes + duration + max(self.pause, PAUSE_SHARE * duration)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Write the last checkpoint, and pass on a stop that a signal requested.

        If the budget is not spent, another callback has ended the training. The checkpoint records
        this as `ended_early`.
        """
        self._ended_early = module.progress < 1  # `progress` is the spent fraction of the budget
        trainer.save_checkpoint(self.folder / "next.ckpt")
        self._rename_checkpoint(trainer)
        self._restore_handlers()
        if self._is_stopping:
            raise KeyboardInterrupt

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Add `ended_early`: True if a callback such as EarlyStopping ended the training.

        Such a training is finished: `fit` does not continue it.
        """
        checkpoint["ended_early"] = self._ended_early


class AfterValidation(pl.Callback):
    """A callback that calls a function after each validation except the one at the end.

    It is used to stop an unpromising training: the function may raise an exception, which `fit`
    passes on. A training that has spent its budget is never stopped in this way.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self._has_ended = False

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Record that the next validation is the last one, after which the function is not called.

        `VolumeValidation` validates in the same hook, but later: Lightning calls checkpoint
        callbacks after all other callbacks.
        """
        self._has_ended = True

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Call the function, unless the training has ended."""
        if not self._has_ended:
            self.function()


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's writer of checkpoints, changed so that a file is complete or absent.

    Each checkpoint is written under a temporary name in its folder, and then renamed. Lightning
    would write it to TMPDIR and move it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint. If the process is killed meanwhile, the previous file stays complete.

        Args:
            checkpoint: The content.
            path: The file.
            storage_options: Required by Lightning; not used.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class History(CSVLogger):
    """A logger of metrics.csv in `run_dir`. Its constructor removes an existing file.

    A resumed training keeps the rows of its first `n_steps` steps.
    """

    def __init__(self, run_dir: Path, n_steps: int) -> None:
        super().__init__(run_dir, name="", version="")  # writes into run_dir, not a subfolder
        # `minutes` of the last row of a training step; NaN differs from all, also from None
        self._last_minutes = math.nan
        path = run_dir / "metrics.csv"
        rows = None
        if n_steps and path.is_file() and is_rank_zero():
            rows = _read_history(path, n_steps)
        writer = self.experiment  # this property creates Lightning's writer, which removes the file
        if rows is not None:
            with atomic_path(path) as temporary:
                rows.to_csv(temporary, index=False)
            writer.metrics_keys = list(rows.columns)  # the writer then appends to these columns

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row to metrics.csv, but not twice for the same step.

        When a training ends, Lightning logs the last row again. It has the same `minutes` as the
        last row of a training step. Rows without `minutes`, such as scores of a validation, are
        always added.

        Args:
            metrics: Numbers by column.
            step: The number of the step, from 0.
        """
        if metrics.get("minutes") != self._last_minutes:
            super().log_metrics(metrics, step)
        self._last_minutes = metrics.get("minutes", self._last_minutes)


def _read_history(path: Path, n_steps: int) -> pd.DataFrame | None:
    """Return the rows of metrics.csv of the first `n_steps` steps, to continue the file.

    If the file is empty or damaged, log a warning and return None.
    """
    try:
        rows = pd.read_csv(path)
        # steps count from 0; a text that is no number becomes NaN, and its row is left out
        return rows[pd.to_numeric(rows["step"], errors="coerce") < n_steps]
    except (ValueError, KeyError):  # pandas' own errors are ValueErrors
        log.warning("%s cannot be read. It begins again with step %d.", path, n_steps)
        return None


class ProgressCallback(pl.Callback):
    """A callback that shows a progress bar for the whole training, with step and smoothed loss.

    Lightning's own bar cannot be used, because the stream of batches has no end.

    Args:
        bar: Opens the bar and yields a function of (text, done, total), which updates it. This
            class passes the spent fraction of the budget as `done`, and 1 as `total`.
    """

    def __init__(
        self, bar: Callable[[], AbstractContextManager[Callable[[str, float, int], None]]]
    ) -> None:
        self.bar = bar
        self.loss = math.nan  # smoothed; NaN before the first logged step
        self._open_bar = ExitStack()  # closes the bar

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Open the progress bar. Only the first process shows it."""
        if trainer.is_global_zero:
            self._advance = self._open_bar.enter_context(self.bar())

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Advance the progress bar, and show the step and the smoothed loss.

        The loss is read only after a logged step, because reading makes the host wait for a GPU.
        The smoothed loss is a moving average with the weights 0.8 for the previous value and 0.2
        for the new one.
        """
        if not trainer.is_global_zero:
            return
        logged = trainer.logged_metrics
        if trainer.global_step % trainer.log_every_n_steps == 0 and "loss" in logged:
            newest = float(logged["loss"])
            self.loss = newest if math.isnan(self.loss) else 0.8 * self.loss + 0.2 * newest
        # NaN: no loss has been logged yet
        loss_text = "" if math.isnan(self.loss) else f", smoothed loss {self.loss:.3g}"
        # the progress bar gets text, done and total; progress is a fraction
        self._advance(f"step {trainer.global_step}{loss_text}", min(module.progress, 1.0), 1)

    def on_train_end(self, *_: Any) -> None:
        """Close the progress bar."""
        self._open_bar.close()

    def on_exception(self, *_: Any) -> None:
        """Close the progress bar after an error or an interruption."""
        self._open_bar.close()


class WorkerLogHandler(pl.Callback):
    """A callback that sets up logging in processes that Lightning spawns.

    A spawned process starts without the handlers of its parent. The first process writes to the
    handler that `open_handler` returns, and warnings also to the terminal. The other processes
    report only errors.
    """

    def __init__(self, open_handler: Callable[[], logging.Handler]) -> None:
        self.open_handler = open_handler

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Set up logging if Lightning spawned this process; otherwise do nothing.

        The first process gets handlers. The other processes report only errors.
        """
        if not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            return
        package = logging.getLogger("lesionseg")
        package.setLevel(logging.INFO if trainer.is_global_zero else logging.ERROR)
        if trainer.is_global_zero:
            root = logging.getLogger()
            root.addHandler(self.open_handler())
            if logging.lastResort is not None:  # Python's handler of warnings for the terminal
                root.addHandler(logging.lastResort)


class FocalStatistics(pl.Callback):
    """A callback that logs how focal loss weights lesions, and warns if its settings do not suit.

    For the finest logits of a logged step it computes three numbers:

    - `p/lesion`: the mean probability in lesion voxels.
    - `grad_share/lesion`: the fraction of the gradient's L1 norm that comes from lesion voxels.
    - `grad_share/hard_background`: the fraction from the 1 % of background voxels with the highest
      probability.

    Each warning of `_find_problems` is logged at most once.
    """

    def __init__(self) -> None:
        self._on_device: dict[str, Tensor] = {}  # statistics of the observed step, some NaN
        self._last_rows: deque[dict[str, float]] = deque(maxlen=STRETCH)
        self._warned: set[str] = set()  # names of the problems that were logged

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        """Make the module call `observe` with the logits of this batch, if its step is logged."""
        self._on_device = {}
        module.observer = self.observe if module.is_logged else None

    def observe(self, finest: FinestLogits) -> None:
        """Compute the mean probability in lesions, and register a hook for the gradient fractions.

        These are the statistics that the class describes. Without lesion voxels, the mean is NaN.
        The hook runs in the backward pass, which follows. Without a gradient, such as in a
        validation, there is no hook. The results stay on the GPU until `latest` reads them, so the
        host does not wait.

        Args:
            finest: Logits of any floating type, with their labels and valid voxels.
        """
        logits = finest.logits
        class_axis = finest.class_axis
        valid = finest.valid
        logits_fp32 = logits.detach().movedim(class_axis, 1).float()
        if finest.activation == "softmax":
            p = 1 - logits_fp32.softmax(1)[:, 0]  # channel 0 is background
        else:
            p = logits_fp32.sigmoid().amax(1)  # of the most probable class
        lesion = finest.labels > 0
        if lesion.ndim > p.ndim:  # with regions, labels have a class axis
            lesion = lesion.any(1)
        lesion = lesion & valid
        background = ~lesion & valid
        self._on_device = {P_NAME: _sum_within(p, lesion) / lesion.sum()}

        def store_gradient_shares(gradient: Tensor) -> None:
            """Store which fractions of the gradient come from lesions and from hard background.

            The gradient of a voxel is the sum of its absolute values over the classes. Each
            fraction is a sum of gradients over the sum of all valid voxels. Hard background is the
            1 % of background voxels (`HARD_SHARE`) with the highest lesion probability. The
            fractions are NaN if the gradient is 0 or not finite.
            """
            size = gradient.movedim(class_axis, 1).abs().float().sum(1)
            total = _sum_within(size, valid)
            total = total.where(total.isfinite(), math.nan)  # a total of 0 gives 0 / 0, also NaN
            self._on_device[HARD_NAME] = _sum_of_hardest(size, p, background) / total
            self._on_device[LESION_NAME] = _sum_within(size, lesion) / total

        if logits.requires_grad:
            logits.register_hook(store_gradient_shares)  # type: ignore[no-untyped-call]

    def latest(self) -> dict[str, float]:
        """Return the statistics of the observed step by name, without undefined ones (NaN).

        Return {} if the step was not observed. The host waits once for a GPU.
        """
        if not self._on_device:
            return {}
        values = torch.stack(list(self._on_device.values())).tolist()  # one copy from the GPU
        named = dict(zip(self._on_device, values, strict=True))
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Log the statistics of the step, and warn if the last 20 logged steps show a fault.

        Nothing is logged if the step was not observed, or if it was skipped because its gradient
        was not finite.
        """
        latest = self.latest()
        if not latest:
            return
        module.count_skipped()  # now, so that `skipped_in_a_row` includes this step
        if module.skipped_in_a_row:
            return
        module.log_dict(latest)
        self._last_rows.append(latest)
        if not trainer.is_global_zero or len(self._last_rows) < STRETCH:
            return
        warnings = _find_problems(
            pd.DataFrame(list(self._last_rows)).mean().to_dict(), module.progress
        )
        for name in warnings.keys() - self._warned:
            self._warned.add(name)
            log.warning("Step %d: %s", trainer.global_step, warnings[name])


def _sum_within(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of `values` over the elements of `mask`.

    Indexing by the mask would give the same sum, but would make the host wait for a GPU.
    """
    return values.where(mask, 0).sum()


def _sum_of_hardest(size: Tensor, p: Tensor, background: Tensor) -> Tensor:
    """Sum the gradient sizes over the 1 % of background voxels with the highest probability.

    The sum is over at least one voxel. Without background it is 0.

    Args:
        size: The gradient size of each voxel.
        p: The lesion probability of each voxel.
        background: True for valid background voxels. All three tensors have the same shape.
    """
    n_hardest = (HARD_SHARE * background.sum()).round().clamp_min(1)
    # `topk` needs a number that the host knows: the upper limit of `n_hardest`
    max_hardest = max(1, round(HARD_SHARE * p.numel()))
    # -1 is below each probability, so background voxels come first
    hardest = p.masked_fill(~background, -1.0).flatten().topk(min(max_hardest, p.numel()))
    is_counted = torch.arange(len(hardest.values), device=p.device) < n_hardest
    is_counted &= hardest.values >= 0  # -1 is no background
    return _sum_within(size.flatten()[hardest.indices], is_counted)


def _find_problems(means: Mapping[str, float], progress: float) -> dict[str, str]:
    """Return a warning for each fault that the mean statistics show.

    A missing statistic shows no fault. The three faults:

    - "hard": hard background has too large a fraction of the gradient.
    - "few": lesions have too small a fraction of the gradient, although there are lesions.
    - "collapse": the probability in lesions is still near 0 after a quarter of the budget.

    Args:
        means: The mean statistics by name, as logged.
        progress: The fraction of the budget that is spent.

    Returns:
        The text of each warning by the name of the fault.
    """
    # a missing number is NaN, and each comparison with NaN is False
    hard = means.get(HARD_NAME, np.nan)  # fractions of the gradient
    lesion = means.get(LESION_NAME, np.nan)
    p = means.get(P_NAME, np.nan)
    warnings: dict[str, str] = {}
    if hard > MAX_HARD_GRADIENT:
        warnings["hard"] = (
            f"The hardest 1 % of background has {hard:.0%} of the gradient. The reference may "
            "lack lesions, or γ is too high. Check the reference, or lower loss.gamma "
            "(detection.gamma for anchors)."
        )
    has_lesions = p >= 0  # False for NaN: without lesions, their share of 0 is no fault
    if lesion < MIN_LESION_GRADIENT and has_lesions:
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
