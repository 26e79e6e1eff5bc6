"""The output of a command: lines of text, progress bars, and the log of a run."""

import logging
import math
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from io import TextIOWrapper
from logging.handlers import MemoryHandler
from pathlib import Path
from types import MappingProxyType

from lesionseg.config import has_config
from lesionseg.errors import LesionsegError, OutputError, count
from lesionseg.version import __version__

log = logging.getLogger(__name__)

Advance = Callable[[str, float, int], None]
_MAX_PROGRESS_LINES = 20  # in the log of a step
_QUIET_SECONDS = 10.0  # at the beginning of a step, in which its progress is not logged
LOG = "train.log"
LOG_FORMAT = logging.Formatter("%(asctime)s %(message)s")
# text that Hydra reads as the same text
_PLAIN_TEXT = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_/][\w./-]*", re.IGNORECASE)


def command_line(command: str, settings: Mapping[str, object] = MappingProxyType({})) -> str:
    """Return a command with its settings as a user would type it in a shell.

    It is the script if a script of a clone runs, otherwise the installed program.
    """
    in_clone = Path(sys.argv[0]).parent.name == "scripts"
    program = f"python scripts/{command}.py" if in_clone else f"lesionseg {command}"
    words = [shlex.quote(f"{key}={override_text(value)}") for key, value in settings.items()]
    return " ".join([program, *words])


def predict_command(
    model: str | Path, *, is_mirrored: bool | None, needs_trust: bool = False
) -> str:
    """Return the command that predicts with a model as its operating points were chosen.

    Args:
        model: The model.
        is_mirrored: The points are those of mirrored views; None: the model does not state it.
        needs_trust: The model names classes that are not imported by default.
    """
    settings: dict[str, object] = {"bundle": model, "input": "SCANS", "output": "FOUND"}
    if is_mirrored:
        settings["inference.flips"] = True
    if needs_trust:
        settings["trust"] = True
    return command_line("predict", settings)


def override_text(value: object) -> str:
    """Return the text that a user would write after `key=` for a value.

    Texts within lists and mappings have quotes if Hydra would not read them as they are.

    >>> override_text([0.5, None, True]), override_text({"keys": "image"}), override_text("focal")
    ('[0.5,null,true]', '{keys: image}', 'focal')
    >>> override_text(["a, b", "1"])
    "['a, b','1']"
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quoted_text, value))}]"
    if isinstance(value, Mapping):
        items = [f"{key}: {quoted_text(item)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}"
    return str(value)


def quoted_text(value: object) -> str:
    """Return `override_text(value)`, in quotes if Hydra would read another text or type."""
    if isinstance(value, str) and not _PLAIN_TEXT.fullmatch(value):
        return in_quotes(value)
    return override_text(value)


def in_quotes(value: str) -> str:
    r"""Return a text in single quotes, or unchanged if it already is a quoted text of Hydra.

    Hydra reads a backslash as itself unless a quote follows. Backslashes before a quote, and before
    the end, where the closing quote is added, are therefore doubled. A quote gets a backslash.

    >>> print(in_quotes(r"C:\scans"), in_quotes("C:\\"), in_quotes("it's"), in_quotes("'"))
    'C:\scans' 'C:\\' 'it\'s' '\''
    >>> print(in_quotes("'a, b'"), in_quotes("'a' or 'b'"))
    'a, b' '\'a\' or \'b\''
    """
    if re.fullmatch(r"""(['"])(?:\\.|(?!\1)[^\\])*\1""", value, re.DOTALL):
        return value
    before_quotes = re.sub(r"(\\*)'", r"\1\1\\'", value)
    before_end = re.sub(r"(\\+)$", r"\1\1", before_quotes)
    return f"'{before_end}'"


_bars = ContextVar("bars", default=False)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Let `bar` draw on a terminal within this context. By default nothing is drawn."""
    token = _bars.set(True)
    try:
        yield
    finally:
        _bars.reset(token)


def are_bars_shown() -> bool:
    """Return True within `progress_bars`."""
    return _bars.get()


class _ProgressLog:
    """A function that logs the remaining time of a step, about every 5 % of its work.

    It logs nothing in the first seconds, or if the remaining time has not changed.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._began = time.monotonic()
        self._first = math.nan  # the work that was done before the first call
        self._logged_share = 0
        self._logged_time = ""

    def __call__(self, item: str, done: float, total: int) -> None:
        """Log the progress if it is due."""
        if math.isnan(self._first):
            # new work reports its first item first; resumed work begins in the middle
            is_first_of_several = done == 1 and total > 1
            if is_first_of_several:
                self._first = 0.0
            else:
                self._began = time.monotonic()
                self._first = done
        seconds = time.monotonic() - self._began
        share = int(_MAX_PROGRESS_LINES * done / max(total, 1))
        is_due = share > self._logged_share and seconds > _QUIET_SECONDS
        if not (is_due and self._first < done < total):
            return
        self._logged_share = share
        left = seconds * (total - done) / (done - self._first)
        time_left = f"{left / 60:.0f} minutes" if left > 100 else count(round(left), "second")
        if time_left == self._logged_time:
            return
        self._logged_time = time_left
        finished = item if total == 1 else f"{done:g} of {total}"
        log.info("%s: %s (%.0f %%), %s left.", self._step, finished, 100 * done / total, time_left)


@contextmanager
def bar(
    what: str, progress: Advance | None = None, *, shown: bool | None = None
) -> Iterator[Advance]:
    """Yield a function that shows the progress of a step.

    Its arguments are the name of the finished item and the numbers of finished and of all items. A
    step without items passes a text, the finished share and 1.

    Within `progress_bars` it draws a bar on standard error, if that is a terminal. Otherwise it
    logs a line at most every 5 % of a long step, if the remaining time has changed.

    Args:
        what: The name of the step.
        progress: A function to yield instead.
        shown: Draw a bar or not, for a process that does not inherit the context.
    """
    if progress is not None:
        yield progress
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    is_shown = are_bars_shown() if shown is None else shown
    if not is_shown or not console.is_terminal:
        yield _ProgressLog(what)
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
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in table
    ]


class RepeatFilter(logging.Filter):
    """A filter that passes each warning of a reader once, although a file is opened repeatedly."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False if the same message of a reader passed before. Other messages pass."""
        if not record.name.startswith("lesionseg.io"):
            return True
        text = record.getMessage()
        is_new = text not in self._said
        self._said.add(text)
        return is_new


class BufferedLogHandler(MemoryHandler):
    """A handler that appends records to a file as soon as its folder is in use.

    Records stay in memory until then, so that a wrong setting leaves no file behind.

    Args:
        file: The file.
        formatter: The formatter of its lines.
        is_in_use: Returns True if the folder is in use, such as that of a run with a configuration.
        private: Only the owner can read the file.
    """

    def __init__(
        self,
        file: Path,
        formatter: logging.Formatter,
        is_in_use: Callable[[], bool],
        *,
        private: bool,
    ) -> None:
        super().__init__(capacity=0)
        self.file = file
        self.is_in_use = is_in_use
        self.open = partial(open_log, file, formatter, private=private)

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        """Open the file if its folder is in use. Return True if the file is open.

        `MemoryHandler` keeps the records in memory as long as this returns False.
        """
        if self.target is None and self.is_in_use():
            self.setTarget(self.open())
        return self.target is not None

    def close(self) -> None:
        """Close the file. Records that still wait for it are lost."""
        target = self.target
        super().close()
        if target is not None:
            target.close()


class LogFile(logging.FileHandler):
    """A handler that appends to a file until a line cannot be written. One warning says so then.

    A link is not followed, because in an output folder it may lead to any file of the user.
    """

    def _open(self) -> TextIOWrapper:
        """Open the file at its end."""
        return open(
            self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_open_file
        )

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn that the log is incomplete, and write no further line.

        `logging` would print a traceback for each line.
        """
        self.setLevel(sys.maxsize)
        reason = sys.exc_info()[1]
        log.warning("%s: the log is incomplete: %s.", self.baseFilename, _reason(reason))

    def close(self) -> None:
        """Close the file. Lines that could not be written are lost."""
        with suppress(OSError):
            super().close()


def _open_file(path: str, flags: int) -> int:
    """Return the descriptor of an opened file. Raise `OSError` if the path is a link.

    Windows has no flag for this, so the name is tested as well.
    """
    if Path(path).is_symlink():
        raise OSError("it is a link")
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _reason(error: BaseException | None) -> str:
    """Return the words of the system for an error of a file, in lower case."""
    return str(getattr(error, "strerror", None) or error).lower()


def open_log(path: Path, formatter: logging.Formatter, *, private: bool) -> logging.Handler:
    """Open a log file, to append lines to it.

    Args:
        path: The file.
        formatter: The formatter of its lines.
        private: True makes a file readable for its owner only, also one of an earlier run.

    Raises:
        OutputError: If the file cannot be written.
    """
    try:
        handler = LogFile(path)
        if private:
            path.chmod(0o600)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {_reason(error)}. Remove the file, change the "
            "permissions, or name another folder."
        ) from error
    handler.setFormatter(formatter)
    return handler


@contextmanager
def added_handlers(own: Sequence[logging.Handler]) -> Iterator[None]:
    """Add handlers to the root logger within the context.

    If it has no other handler, they receive messages of our loggers from level INFO on. Python
    prints warnings by `lastResort` only if there is no handler, so it is added too.
    """
    root = logging.getLogger()
    ours = logging.getLogger("lesionseg")
    level = ours.level
    handlers = [*own]
    if not root.handlers and logging.lastResort:
        handlers.append(logging.lastResort)
        ours.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        ours.setLevel(level)


@contextmanager
def run_log(run: Path, *, private: bool = False) -> Iterator[Callable[[str], None]]:
    """Append the records of this context to the run's log. Yield a function that writes to it.

    The log is written from when the run directory has a configuration. With `private`, only its
    owner can read it. The output on the terminal does not change. An error that ends the run is the
    last line; an unknown one has its traceback.
    """
    handler = BufferedLogHandler(run / LOG, LOG_FORMAT, partial(has_config, run), private=private)

    def note(text: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))

    try:
        with added_handlers([handler]):
            note(f"lesionseg {__version__} started or resumed.")
            yield note
    except BaseException as error:
        known = isinstance(error, LesionsegError | KeyboardInterrupt)
        with suppress(OutputError):  # the log itself may be the file that cannot be written
            note(f"{type(error).__name__}: {error}" if known else traceback.format_exc())
        raise
    finally:
        handler.close()
