"""Validation on volumes during a training: weights kept as best.ckpt, score, out of memory."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import nn

from lesionseg.errors import ConfigError
from lesionseg.ops.device_memory import first_line, is_out_of_memory
from lesionseg.training.checkpoints import BEST, read_if_present
from lesionseg.training.processes import broadcast_from_rank_zero

Validate = Callable[[nn.Module], Mapping[str, float]]
SCORE = "score"  # the name of the score by which weights are chosen
SCORE_ERROR = "score_error"  # the name of its standard error


class VolumeValidation(Checkpoint):
    """A callback that validates on whole volumes, and writes the weights to keep to `best.ckpt`.

    These are the last weights, unless earlier ones have a score that is higher by more than its
    standard error. The highest of several uncertain scores is often high by chance.

    It validates between two steps and at the end. It replaces Lightning's validation loop, which
    uses a loader's batches and a separate clock in each process. Here all processes use the same
    clock (`LesionModule.minutes`). The loggers receive the scores as a row, and
    `trainer.callback_metrics` contains them. The other callbacks receive `on_validation_start` and
    `on_validation_end`, so that `EarlyStopping` can follow a score. Between them they receive
    `on_validation_epoch_start` and `on_validation_epoch_end`, so that `EMAWeightAveraging` can
    replace the weights by their average while they are scored.

    A training that is resumed validates at the same times as one without an interruption. Its best
    score is that of `best.ckpt`: the checkpoint from which it resumes may be older, because it is
    written before the validation that follows the same step. A training that starts again removes
    `best.ckpt`.

    Args:
        validate: Returns scores by name for a network in eval mode, with the `SCORE` that chooses
            the weights and its standard error `SCORE_ERROR`. Each of them is 0 if it is missing.
            If the error is NaN, the last weights are kept. Only the first process calls this
            function.
        every_minutes: From the end of a validation to the next one; None validates only at the end.
        folder: Receives `best.ckpt`.
    """

    def __init__(self, validate: Validate, every_minutes: float | None, folder: Path) -> None:
        self.validate = validate
        self.every_minutes = every_minutes  # None validates only at the end
        self.path = folder / BEST
        self.best_score = -math.inf  # before the first validation
        self.best_error = 0.0  # standard error of the best score
        # time of the next validation, in minutes of training; set in `on_train_start`
        self._next_due_minutes = math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return the best score with its error, and the time of the next validation.

        Lightning stores this dictionary in each checkpoint.
        """
        return {
            "best_score": self.best_score,
            "best_error": self.best_error,
            "due": self._next_due_minutes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score with its error, and the time of the next validation.

        Lightning passes the dictionary of the checkpoint. Checkpoints of earlier versions contain
        neither the error nor the time: they become 0 and infinite (not set).
        """
        self.best_score = state_dict["best_score"]
        self.best_error = state_dict.get("best_error", 0.0)
        self._next_due_minutes = state_dict.get("due", math.inf)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Set the time of the next validation, and read the best score of a resumed training.

        The score comes from `best.ckpt`. A new training removes this file. A restored time of the
        next validation is not changed. Otherwise it is the next multiple of `every_minutes`.

        Raises:
            TrainingError: If the training is resumed and `best.ckpt` cannot be read.
        """
        if trainer.global_step > 0:
            self.best_score, self.best_error = broadcast_from_rank_zero(self._read_best)
        elif trainer.is_global_zero:  # the file belongs to a training that starts again
            self.path.unlink(missing_ok=True)
        if self.every_minutes is None:
            self._next_due_minutes = math.inf
        elif math.isinf(self._next_due_minutes):
            self._next_due_minutes = (module.minutes // self.every_minutes + 1) * self.every_minutes

    def _read_best(self) -> tuple[float, float]:
        """Return the score of the weights in `best.ckpt`, and its standard error.

        The two numbers are −∞ and 0 if the file is missing or does not contain them.
        """
        # Lightning stores the `state_dict` of each callback under its `state_key`
        state = (read_if_present(self.path) or {}).get("callbacks", {}).get(self.state_key, {})
        # checkpoints of version 1.0 contain neither
        return float(state.get("best_score", -math.inf)), float(state.get("best_error", 0.0))

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Validate if a validation is due and the previous step is complete.

        A step is not complete between accumulated batches.
        """
        is_new_step = batch_idx % trainer.accumulate_grad_batches == 0
        if is_new_step and module.minutes >= self._next_due_minutes:
            self._validate(trainer, module)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Validate the weights of the last step. Write them to `best.ckpt` if they are the best.

        Earlier weights must be better by more than their standard error to be preferred.
        """
        self._validate(trainer, module, is_last=True)

    def _validate(self, trainer: Any, module: Any, *, is_last: bool = False) -> None:
        """Score the network, log its scores, and write its weights if they are the best.

        Weights are the best if their score is not lower than the best one so far. After the last
        step (`is_last`), the score may be lower by up to the standard error of the best score.
        Weights with a score of NaN are not written. Other callbacks get the hooks of a validation:
        see `VolumeValidation`.

        Args:
            trainer: Lightning's trainer.
            module: The module with the network.
            is_last: True after the last step.

        Raises:
            ConfigError: If memory runs out while the network is scored.
        """
        module.zero_grad()  # releases the memory of the previous step's gradients
        for callback in trainer.callbacks:
            callback.on_validation_start(trainer, module)
        for callback in trainer.callbacks:
            callback.on_validation_epoch_start(trainer, module)

        scores, minutes = broadcast_from_rank_zero(partial(self._score, trainer, module))
        if self.every_minutes is not None:
            # `minutes` is the end of the validation: after one that takes longer than the interval,
            # the next one would otherwise follow without a training step
            self._next_due_minutes = minutes + self.every_minutes
        score = float(scores.setdefault(SCORE, 0.0))
        tolerance = self.best_error if is_last else 0.0
        row = {f"validation_{name}": float(value) for name, value in scores.items()}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step - 1)  # the row of the previous step
            logger.save()
        trainer.callback_metrics.update({name: torch.tensor(v) for name, v in row.items()})
        # before the checkpoint: a callback that averages weights then has the module's own weights
        # back, and stores the average as the weights of the checkpoint
        for callback in trainer.callbacks:
            callback.on_validation_epoch_end(trainer, module)
        # of equal scores the later weights are kept, because they were trained for longer; a score
        # of NaN is never the best, and an error of NaN tolerates any difference
        if not math.isnan(score) and not score < self.best_score - tolerance:
            self.best_score = score
            self.best_error = float(scores.get(SCORE_ERROR, 0.0))
            trainer.save_checkpoint(self.path)
        for callback in trainer.callbacks:
            callback.on_validation_end(trainer, module)

    def _score(self, trainer: Any, module: Any) -> tuple[dict[str, float], float]:
        """Score a copy of the network in eval mode, so that the training continues unchanged.

        Returns:
            The scores by name, and the minutes of training at the end of the validation.

        Raises:
            ConfigError: If memory runs out.
        """
        try:
            network = deepcopy(module.network).eval()
            with torch.no_grad():
                scores = dict(self.validate(network))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(str(error), trainer.global_step) from error
        return scores, module.elapsed_minutes()

    def _out_of_memory(self, why: str, step: int) -> ConfigError:
        """Return the error of a validation that ran out of memory, with advice.

        Smaller tiles or batches are not part of the advice, because they would hardly help: a
        validation stores no activations for gradients, and has already reduced its batch to one
        tile.

        Args:
            why: The message of the original error.
            step: The number of steps so far.
        """
        advice = "End other programs on the device, then run the command again to continue"
        if self.every_minutes is not None:
            advice += (
                ", or train with trainer.validate_every_minutes=null in another run_dir, which "
                "keeps the weights of the last step"
            )
        return ConfigError(
            f"Memory ran out in the validation after step {step} ({first_line(why)}). {advice}."
        )
