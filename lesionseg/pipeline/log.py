"""The output of a command: lines, a bar on the terminal, and the log of its run."""

import logging
import math
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import MemoryHandler
from pathlib import Path

from lesionseg import __version__
from lesionseg.errors import LesionsegError, count

log = logging.getLogger(__name__)

Advance = Callable[[str, float, int], None]
_LINES, _LONG_SECONDS = 20, 10.0  # lines of a log on a step, which takes longer than this
LOG = "train.log"


def command_line(command: str, **settings: object) -> str:
    """Return a command as the user would type it: by the script of a clone, or as installed."""
    in_clone = Path(sys.argv[0]).parent.name == "scripts"
    program = f"python scripts/{command}.py" if in_clone else f"lesionseg {command}"
    return " ".join([program, *(shlex.quote(f"{k}={v}") for k, v in settings.items())])


_bars = ContextVar("bars", default=False)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Let `bar` draw on a terminal meanwhile. Without it the library draws nothing."""
    token = _bars.set(True)
    try:
        yield
    finally:
        _bars.reset(token)


def bars_are_shown() -> bool:
    """Return True within `progress_bars`."""
    return _bars.get()


@contextmanager
def bar(
    what: str, progress: Advance | None = None, *, shown: bool | None = None
) -> Iterator[Advance]:
    """Yield a function that shows progress; it takes (item, done, total) or (text, share, 1).

    It draws a bar on standard error within `progress_bars`, if that is a terminal. Otherwise a long
    step logs a line at most every 5 %, each time that the time left has changed.

    Args:
        what: the name of the step.
        progress: takes the place of the bar.
        shown: whether to draw a bar, for a process that inherits no context.
    """
    if progress is not None:
        yield progress
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    began, first, said, last_left = time.monotonic(), math.nan, 0, ""

    def say_advance(item: str, done: float, total: int) -> None:
        nonlocal began, first, said, last_left
        if math.isnan(first):
            # resumed work begins in the middle; new work with its first item
            began, first = (began, 0.0) if done == 1 < total else (time.monotonic(), done)
        seconds = time.monotonic() - began
        share = int(_LINES * done / max(total, 1))
        if share > said and seconds > _LONG_SECONDS and first < done < total:
            said = share
            left = seconds * (total - done) / (done - first)
            text = f"{left / 60:.0f} minutes" if left > 100 else count(round(left), "second")
            if text == last_left:  # a line that says the same again is no news
                return
            last_left = text
            seen = item if total == 1 else f"{done:g} of {total}"
            log.info("%s: %s (%.0f %%), %s left.", what, seen, 100 * done / total, text)

    is_shown = bars_are_shown() if shown is None else shown
    if not is_shown or not console.is_terminal:
        yield say_advance
        return
    with Progress(*Progress.get_default_columns(), "{task.fields[item]}", console=console) as drawn:
        task = drawn.add_task(what, total=None, item="")

        def advance(item: str, done: float, total: int) -> None:
            drawn.update(task, completed=done, total=total, item=item)

        yield advance


def align_columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines of equal columns. The first column is aligned left, the others right.

    >>> align_columns([["", "a"], ["recall", "0.5"]])
    ['          a', 'recall  0.5']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in table
    ]


class Once(logging.Filter):
    """A filter that passes each warning of the readers once: a file is opened several times."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a warning that came before."""
        if not record.name.startswith("lesionseg.io"):
            return True
        text = record.getMessage()
        is_new = text not in self._said
        self._said.add(text)
        return is_new


class RunLog(MemoryHandler):
    """A handler that appends records to the log of a run.

    Until the run directory has a configuration, records wait in memory: a wrong setting leaves no
    file.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(capacity=0)
        self.run = run

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        """Return True if the run has a configuration, so that its log may be written."""
        if self.target is None and (self.run / "config.yaml").is_file():
            file = logging.FileHandler(self.run / LOG, encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self.setTarget(file)
        return self.target is not None


@contextmanager
def run_log(run: Path) -> Iterator[Callable[[str], None]]:
    """Append all that is logged meanwhile to the run's log. Yield a function that writes to it.

    The terminal shows the same as without it. An error that ends the run is the log's last line.
    """
    root, ours = logging.getLogger(), logging.getLogger("lesionseg")
    handler, level = RunLog(run), ours.level
    handlers: list[logging.Handler] = [handler]
    if not root.handlers and logging.lastResort:  # nobody set logging up: warnings are printed
        handlers.append(logging.lastResort)
        ours.setLevel(logging.INFO)

    def note(text: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))

    for each in handlers:
        root.addHandler(each)
    note(f"lesionseg {__version__} started or resumed.")
    try:
        yield note
    except BaseException as error:
        known = isinstance(error, LesionsegError | KeyboardInterrupt)
        note(f"{type(error).__name__}: {error}" if known else traceback.format_exc())
        raise
    finally:
        for each in handlers:
            root.removeHandler(each)
        ours.setLevel(level)
        if handler.target is not None:
            handler.target.close()
        handler.close()
