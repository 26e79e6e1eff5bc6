"""Locating the files of a bundle in a folder, and reading the facts of its model card."""

import re
from collections.abc import Mapping
from pathlib import Path

from lesionseg.errors import BundleError
from lesionseg.io.run_folder import has_config

WEIGHTS = "weights.safetensors"
PLAN = "plan.json"
SELECTION = "selection.json"
CARD = "model_card.md"
_MAX_SHOWN = 8  # file names in the message about a wrong folder


def resolve_bundle(path: Path) -> Path:
    """Return the folder of a bundle.

    Args:
        path: The folder itself, or the run directory that contains it as `bundle`.

    Raises:
        BundleError: Neither folder contains weights and plan.
    """
    for folder in (path, path / "bundle"):
        if (folder / WEIGHTS).is_file() and (folder / PLAN).is_file():
            return folder
    if has_config(path):
        raise BundleError(
            f"{path}: the training has not finished. Run the same `train` command with "
            f"run_dir={path} to continue it."
        )
    content = "does not exist"
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())[:_MAX_SHOWN]
        content = f"contains {', '.join(names) or 'no files'}"
    raise BundleError(
        f"{path} is not a bundle: the folder {content}. Name the folder of a finished training, "
        f"one that contains {WEIGHTS} and {PLAN}, or an nnU-Net model folder."
    )


def read_card_facts(folder: Path) -> Mapping[str, str]:
    """Return the facts in a model card, from lines such as `- date: 2026-01-31` or `license: mit`.

    The result is empty if the bundle has no card.
    """
    path = folder / CARD
    card = path.read_text("utf-8", "replace") if path.is_file() else ""
    return dict(re.findall(r"^(?:- )?([\w ]+): *(\S.*)$", card, re.MULTILINE))
