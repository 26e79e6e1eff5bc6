"""What a command shows: lines, and a bar on the terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str, int, int], None]


def say(text: str) -> None:
    """Write to standard output; a sign that its encoding lacks, as Windows' in a pipe, is a `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")


@contextmanager
def bar(what: str) -> Iterator[Advance]:
    """A bar on standard error; call what it yields with (item, done, total).

    Nothing is drawn where standard error is no terminal.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[item]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, item="")

        def advance(item: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, item=item)

        yield advance
