"""Keep the weights that did best on whole validation volumes."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.errors import TrainingError
from lesionseg.io.atomic import atomic_path
from lesionseg.training.callbacks.step_callbacks import Validate

log = logging.getLogger(__name__)

BEST = Path("checkpoints") / "best.ckpt"
# the first is what nets differ in most; a network without masks has no Dice
PARTS = ("recall_1fp", "dice")


@dataclass(frozen=True)
class Best:
    """The best validation so far, the latest one, and how many there were.

    A value is the sum of recall at one false positive a case and Dice.
    """

    value: float
    latest: float
    n: int


def value_of(scores: Mapping[str, float]) -> float:
    """What validations are compared by.

    >>> value_of({"recall_1fp": 0.5, "dice": 0.25})
    0.75
    """
    return sum(scores.get(part, 0.0) for part in PARTS)


class KeepBest:
    """A `Validate` that writes the weights it is shown to checkpoints/best.ckpt when they do best.

    A resumed training goes on with the best of the one before.
    """

    def __init__(self, validate: Validate, run_dir: Path) -> None:
        self.validate, self.path = validate, run_dir / BEST

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """The scores of `validate`."""
        scores = self.validate(network)
        value, before = value_of(scores), _read(self.path)
        weights, best, n = network.state_dict(), value, 1
        if before is not None:
            n = int(before["n"]) + 1
            if value < before["value"]:
                weights, best = before["weights"], before["value"]
        with atomic_path(self.path) as temporary:
            torch.save({**asdict(Best(best, value, n)), "weights": weights}, temporary)
        return scores


def take_best(network: nn.Module, run_dir: Path, select: str | None) -> bool:
    """Give `network` its best weights where they did better than its last; returns whether.

    `select`: `last` never, `best` always, None when there were two validations or more. Raises
    `TrainingError` when the file does not fit the network.
    """
    state = _read(run_dir / BEST)
    if state is None and select == "best":
        log.warning("No validation was made while training: the last weights are kept.")
    if state is None or select == "last" or (select is None and state["n"] < 2):
        return False
    best = Best(*(state[name] for name in ("value", "latest", "n")))
    if best.value <= best.latest:
        log.info("The last weights are the best of %d validations (%.3f).", best.n, best.latest)
        return False
    weights: dict[str, Tensor] = state["weights"]
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise _unusable(run_dir / BEST, str(error)) from error
    log.info(
        "Of %d validations not the last (%.3f) but an earlier one is kept (%.3f): recall at one "
        "false positive a case plus Dice.",
        best.n,
        best.latest,
        best.value,
    )
    return True


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: state[name] for name in ("value", "latest", "n", "weights")}
    except Exception as error:  # torch.load raises half a dozen kinds for a broken file
        # by its name alone: the text advises to load without `weights_only`
        raise _unusable(path, type(error).__name__) from error


def _unusable(path: Path, seen: str) -> TrainingError:
    return TrainingError(
        "The best weights cannot be read.",
        where=path,
        seen=seen,
        remedy="delete this file and resume: the last weights are kept, or the best of the "
        "validations that are still to come.",
    )
