"""The lock of the folder into which a command writes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from lesionseg.io.files import locked_folder
from lesionseg.pipeline.scores_folder import require_no_run

_EXAMPLES = {"evaluate": "test2", "follow": "changes"}  # folders for the message of each owner
F = TypeVar("F", bound=Callable[..., Any])


def hold_lock(key: str, owner: str = "") -> Callable[[F], F]:
    """Decorate a command so that it holds the lock of a folder while it runs.

    Args:
        key: The setting that names the folder. If it is None, nothing is locked.
        owner: The command if it writes scores, which may not replace those of a training, see
            `require_no_run`.
    """

    def decorate(command: F) -> F:
        @wraps(command)
        def run_locked(cfg: Any, *args: Any, **options: Any) -> Any:
            folder = getattr(cfg, key)
            with nullcontext() if folder is None else locked_folder(Path(folder)):
                if owner:
                    require_no_run(Path(folder), _EXAMPLES[owner])
                return command(cfg, *args, **options)

        return cast(F, run_locked)

    return decorate
