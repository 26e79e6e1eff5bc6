"""The claim of a command on the folder into which it writes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from lesionseg.io.results.folder import claim

F = TypeVar("F", bound=Callable[..., Any])


def hold_lock(key: str, owner: str = "") -> Callable[[F], F]:
    """Decorate a command so that it claims a folder and holds its lock while it runs.

    Args:
        key: The setting that names the folder. If it is None, nothing is locked.
        owner: The command if it writes scores, which may not replace those of a training, see
            `claim`.
    """

    def decorate(command: F) -> F:
        @wraps(command)
        def run_locked(cfg: Any, *args: Any, **options: Any) -> Any:
            folder = getattr(cfg, key)
            with nullcontext() if folder is None else claim(Path(folder), owner):
                return command(cfg, *args, **options)

        return cast(F, run_locked)

    return decorate
