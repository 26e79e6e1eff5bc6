"""The lock of the folder into which a command writes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from lesionseg.io.files import locked_folder
from lesionseg.pipeline.scores_folder import require_no_run

F = TypeVar("F", bound=Callable[..., Any])


def hold_lock(key: str, *, instead: str = "") -> Callable[[F], F]:
    """Decorate a command so that it holds the lock of a folder while it runs.

    Args:
        key: The setting that names the folder. If it is None, nothing is locked.
        instead: The name of a folder for the message of `require_no_run`, which is called first.
            Without it, the folder may be that of a training.
    """

    def decorate(command: F) -> F:
        @wraps(command)
        def run_locked(cfg: Any, *args: Any, **options: Any) -> Any:
            folder = getattr(cfg, key)
            with nullcontext() if folder is None else locked_folder(Path(folder)):
                if instead:
                    require_no_run(Path(folder), instead)
                return command(cfg, *args, **options)

        return cast(F, run_locked)

    return decorate
