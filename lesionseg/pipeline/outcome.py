"""Base class of a command's result (lines, next command, `--json`, exit status); its function."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lesionseg.config import COMMANDS
from lesionseg.extra import find_extra


def find_recipe(command: str) -> Callable[..., Any]:
    """Import and return the function of a command: `lesionseg.pipeline.<command>.<command>`.

    The function has the settings as its argument and returns an `Outcome`. The function of an extra
    comes from the extra's package.

    Raises:
        ConfigError: If the command belongs to an extra that is not installed.
    """
    # the commands of extras have no settings class here
    is_core = COMMANDS.kinds[command]
    module = import_module(f"lesionseg.pipeline.{command}") if is_core else find_extra(command)
    result: Callable[..., Any] = getattr(module, command)
    return result


class Outcome:
    """The result of any command. A command prints nothing itself."""

    def summary(self) -> list[str]:
        """Return the lines that the command prints: the results, and the paths of their files."""
        return []

    @property
    def next(self) -> str | None:
        """The command that the user should run next, as text; None if there is none."""
        return None

    def record(self) -> dict[str, Any]:
        """Return the results and the paths of files as plain data, for `--json`."""
        return {}

    @property
    def exit_status(self) -> int:
        """The exit status: 0 if all is done, 3 if some cases failed, 1 if no result is usable."""
        return 0
