"""Decorator `hold_lock`: a command locks its output folder; the rule is in io/files.py.

`io.files.locked_folder` is the lock, and `io.results.folder.claim` refuses run directories.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from lesionseg.io.results.folder import claim

F = TypeVar("F", bound=Callable[..., Any])


def hold_lock(key: str, owner: str = "") -> Callable[[F], F]:
    """Return a decorator with which a command locks its output folder while it runs.

    The lock prevents a second process from writing to the same folder.

    Args:
        key: The setting that names the folder. If the setting is None, nothing is locked.
        owner: The name of the command, if it writes scores. Such a command may not write into the
            run directory of a training, see `claim`. "" for the other commands.
    """

    def decorate(command: F) -> F:
        """Wrap the function of a command."""

        @wraps(command)
        def run_locked(cfg: Any, *args: Any, **options: Any) -> Any:
            """Lock the folder that the settings name, and run the command."""
            folder = getattr(cfg, key)
            with nullcontext() if folder is None else claim(Path(folder), owner):
                return command(cfg, *args, **options)

        return cast(F, run_locked)

    return decorate
