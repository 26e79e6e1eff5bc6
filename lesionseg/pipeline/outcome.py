"""The result of a command, which `cli` prints and a notebook uses."""

from typing import Any


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
