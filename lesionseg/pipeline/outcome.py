"""The result of a command: `cli` prints it, a notebook keeps it."""

from typing import Protocol


class Outcome(Protocol):
    """What every command returns. Nothing is printed until `summary` is called by the caller."""

    def summary(self) -> list[str]:
        """Return the lines that tell a reader what came out and where it is."""
        ...

    @property
    def next(self) -> str | None:
        """The command to type next; None if there is none."""
        ...

    @property
    def exit_status(self) -> int:
        """0 if all is done, 3 if some cases failed, 1 if nothing ran."""
        return 0
