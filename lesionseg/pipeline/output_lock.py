"""The lock of the folder into which a command writes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from lesionseg.io.files import locked_folder

F = TypeVar("F", bound=Callable[..., Any])


def hold_lock(key: str) -> Callable[[F], F]:
    """Decorate a command so that it holds the lock of a folder while it runs.

    Args:
        key: The setting that names the folder. If it is None, nothing is locked.
    """

    def decorate(command: F) -> F:
        @wraps(command)
        def run_locked(cfg: Any, *args: Any, **options: Any) -> Any:
            folder = getattr(cfg, key)
            with nullcontext() if folder is None else locked_folder(Path(folder)):
                return command(cfg, *args, **options)

        return cast(F, run_locked)

    return decorate
