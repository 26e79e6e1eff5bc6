"""A simulated dataset on disk: written once, whole or not at all, and known by its settings."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lesionseg.errors import ConfigError, OutputError
from lesionseg.io.atomic import read_json, write_json
from lesionseg.pipeline.run.progress import bar

log = logging.getLogger(__name__)

SETTINGS = "simulation.json"


def simulate_once(root: Path, write: Callable[..., None]) -> None:
    """Let `write(folder, progress=…)` simulate a dataset at `root`, unless it lies there already.

    `write` is a `functools.partial`; its arguments are kept beside the data. Raises `ConfigError`
    when `root` was simulated with others, `OutputError` when it cannot be written.
    """
    settings = dict(getattr(write, "keywords", {}))
    if root.exists():
        _refuse_other(root, settings)
        return
    log.info("Simulating a dataset in %s (these are no real scans)", root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            made = Path(folder) / root.name
            with bar("Simulating scans") as advance:
                write(made, progress=advance)
            write_json(made / SETTINGS, settings)
            if not root.exists():  # another process may have been quicker
                made.replace(root)
    except OSError as error:
        raise OutputError("The simulated dataset cannot be written.", where=root) from error


def _refuse_other(root: Path, settings: Mapping[str, Any]) -> None:
    """What was simulated with other settings must not pass for what was asked for."""
    kept = root / SETTINGS
    before = read_json(kept) if kept.is_file() else settings
    changed = [
        f"{key}: {before.get(key)} → {settings.get(key)}"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise ConfigError(
            "This dataset was simulated with other settings.",
            where=root,
            seen="; ".join(changed),
            remedy="name another folder, data.root=, or remove this one.",
        )
