"""The function of a command, and its result, which `cli` prints and a notebook uses."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lesionseg.config import COMMANDS
from lesionseg.extra import find_extra


def find_recipe(command: str) -> Callable[..., Any]:
    """Import the function of a command, which takes its settings and returns an `Outcome`.

    Raises:
        ConfigError: If it is that of an extra that is missing.
    """
    is_core = COMMANDS.kinds[command]
    home = import_module(f"lesionseg.pipeline.{command}") if is_core else find_extra(command)
    result: Callable[..., Any] = getattr(home, command)
    return result


class Outcome:
    """The result of any command. A command prints nothing itself."""

    def summary(self) -> list[str]:
        """Return lines with the results and their files, for a reader."""
        return []

    @property
    def next(self) -> str | None:
        """The command to run next, as text; None if there is none."""
        return None

    def record(self) -> dict[str, Any]:
        """Return the results and the paths of their files, for `--json`."""
        return {}

    @property
    def exit_status(self) -> int:
        """0 if all is done, 3 if some cases failed, 1 if there is no usable result."""
        return 0
