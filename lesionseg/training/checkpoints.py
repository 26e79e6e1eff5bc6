"""Reading of last.ckpt and best.ckpt without running code; error of an unusable checkpoint."""

from pathlib import Path
from typing import Any

import torch

from lesionseg.errors import TrainingError

LAST = "last.ckpt"  # the training continues from it
BEST = "best.ckpt"  # the weights with the best validation


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training to the CPU. No code that the file contains is run.

    torch's `weights_only` accepts only tensors, numbers, texts and containers.

    Args:
        path: The file.

    Returns:
        The content of the file.

    Raises:
        TrainingError: If the file is missing or damaged, or is not a checkpoint of a training.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # entries of Lightning and of `LesionModule`, which each checkpoint of a training has
        missing = {"global_step", "minutes", "skipped", "state_dict"} - checkpoint.keys()
        if missing:
            raise KeyError(", ".join(missing))
    except Exception as error:  # torch.load raises half a dozen kinds for a broken file
        # the message contains only the error's name: its text advises against `weights_only`
        raise unusable_checkpoint(path, type(error).__name__) from error
    return checkpoint


def read_if_present(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint as `read_checkpoint` does. Return None if the file does not exist."""
    return read_checkpoint(path) if path.is_file() else None


def unusable_checkpoint(path: Path, why: str) -> TrainingError:
    """Return the error of a checkpoint that cannot be read, or that does not fit the network.

    The advice in the message differs between `best.ckpt`, which the training can do without, and
    `last.ckpt`.

    Args:
        path: The file.
        why: The reason, for the message.
    """
    if path.name == BEST:
        return TrainingError(
            f"{path}: the weights that scored best cannot be used ({why}). Choose another run_dir, "
            "or delete this file to go without them: the training then keeps the best weights of "
            "its remaining validations or, if it is finished, those of its last step."
        )
    return TrainingError(
        f"{path}: training cannot be resumed from this checkpoint ({why}). Choose another run_dir, "
        "or delete the checkpoint to start again."
    )
