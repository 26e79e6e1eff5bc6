"""Progress bars, train.log, log format, commands printed for a shell, columns of text tables."""

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
_MAX_PROGRESS_LINES = 20  # in the log of a step: one per 5 %
_QUIET_SECONDS = 10.0  # at the beginning of a step, in which its progress is not logged
LOG = "train.log"
LOG_FORMAT = logging.Formatter("%(asctime)s %(message)s")
# text that Hydra reads as the same text
_PLAIN_TEXT = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_/][\w./-]*", re.IGNORECASE)


def command_line(command: str, settings: Mapping[str, object] = MappingProxyType({})) -> str:
    """Return a command with its settings as a user would type it in a shell, for messages.

    The program is `python scripts/<command>.py` if a script of a clone runs now, otherwise
    `lesionseg <command>`. Settings are written as `key=value`, with quotes for the shell if
    necessary.
    """
    in_clone = Path(sys.argv[0]).parent.name == "scripts"
    program = f"python scripts/{command}.py" if in_clone else f"lesionseg {command}"
    words = [shlex.quote(f"{key}={override_text(value)}") for key, value in settings.items()]
    return " ".join([program, *words])


def predict_command(
    model: str | Path, *, is_mirrored: bool | None, needs_trust: bool = False
) -> str:
    """Return the command with which a user can predict with a model, for the output of `train`.

    `SCANS` and `FOUND` are written for the input and the output, which the user replaces.

    Args:
        model: The bundle or run directory.
        is_mirrored: True adds `inference.flips=true`, because the operating points were chosen on
            mirrored views. None: the model does not say, and nothing is added.
        needs_trust: True adds `trust=true`, because the model names classes that are imported only
            with the user's consent.
    """
    settings: dict[str, object] = {"bundle": model, "input": "SCANS", "output": "FOUND"}
    if is_mirrored:
        settings["inference.flips"] = True
    if needs_trust:
        settings["trust"] = True
    return command_line("predict", settings)


def override_text(value: object) -> str:
    """Return the text that a user would write after `key=` for a value.

    A text is returned unchanged. A text in a list or mapping gets quotes if Hydra would not read it
    as the same text.

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
    """Return `override_text(value)`, in quotes if Hydra would read another text or another type."""
    if isinstance(value, str) and not _PLAIN_TEXT.fullmatch(value):
        return in_quotes(value)
    return override_text(value)


def in_quotes(value: str) -> str:
    r"""Return a text in single quotes for Hydra, or unchanged if it is already in quotes.

    Hydra reads a backslash as itself unless a quote follows. Backslashes before a quote, and before
    the end, where the closing quote is added, are therefore doubled. A quote gets a backslash.

    >>> print(in_quotes(r"C:\scans"), in_quotes("C:\\"), in_quotes("it's"), in_quotes("'"))
    'C:\scans' 'C:\\' 'it\'s' '\''
    >>> print(in_quotes("'a, b'"), in_quotes("'a' or 'b'"))
    'a, b' '\'a\' or \'b\''
    """
    # a quote, then escaped characters and characters other than this quote, then the same quote
    if re.fullmatch(r"""(['"])(?:\\.|(?!\1)[^\\])*\1""", value, re.DOTALL):
        return value
    before_quotes = re.sub(r"(\\*)'", r"\1\1\\'", value)
    before_end = re.sub(r"(\\+)$", r"\1\1", before_quotes)
    return f"'{before_end}'"


_bars = ContextVar("bars", default=False)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Let `bar` draw progress bars on a terminal within this context.

    The command line uses it. By default nothing is drawn, so that a notebook or a test stays quiet.
    """
    token = _bars.set(True)
    try:
        yield
    finally:
        _bars.reset(token)


def are_bars_shown() -> bool:
    """Return True within the context `progress_bars`."""
    return _bars.get()


class _ProgressLog:
    """A function that logs the remaining time of a step, about every 5 % of its work.

    `bar` yields it if no progress bar is drawn. Nothing is logged in the first 10 seconds, or if
    the remaining time has not changed.
    """

    def __init__(self, step: str) -> None:
        """Start measuring the time of a step. `step` is its name in the log."""
        self._step = step
        self._began = time.monotonic()
        self._done_before = math.nan  # work of an earlier run; unknown until the first call
        self._n_logged_steps = 0  # steps of 5 % that were done at the last logged line
        self._logged_time = ""  # the remaining time in that line

    def __call__(self, item: str, done: float, total: int) -> None:
        """Log progress and remaining time, if a further 5 % are done and the time left has changed.

        Nothing is logged in the first 10 seconds. The remaining time is extrapolated from the speed
        of this run, without work that an earlier run did.

        Args:
            item: The name of the finished item.
            done: The number of finished items, or the finished fraction if `total` is 1.
            total: The number of all items.
        """
        if math.isnan(self._done_before):
            # new work reports its first item first; resumed work begins in the middle
            is_first_of_several = done == 1 and total > 1
            if is_first_of_several:
                self._done_before = 0.0
            else:
                self._began = time.monotonic()
                self._done_before = done
        elapsed_s = time.monotonic() - self._began
        # 20 steps of 5 %; unknown work has the total 0
        n_steps = int(_MAX_PROGRESS_LINES * done / max(total, 1))
        is_due = n_steps > self._n_logged_steps and elapsed_s > _QUIET_SECONDS
        if not (is_due and self._done_before < done < total):
            return
        self._n_logged_steps = n_steps
        left_s = elapsed_s * (total - done) / (done - self._done_before)  # at the speed so far
        time_left = f"{left_s / 60:.0f} minutes" if left_s > 100 else count(round(left_s), "second")
        if time_left == self._logged_time:
            return
        self._logged_time = time_left
        finished = item if total == 1 else f"{done:g} of {total}"
        log.info("%s: %s (%.0f %%), %s left.", self._step, finished, 100 * done / total, time_left)


@contextmanager
def bar(
    what: str, progress: Advance | None = None, *, shown: bool | None = None
) -> Iterator[Advance]:
    """Yield a function that shows the progress of a step, as a bar or as lines in the log.

    The yielded function has three arguments: the name of the finished item, the number of finished
    items and the number of all items. A step without items passes a text, the finished fraction and
    1.

    Within `progress_bars`, the function draws a bar on standard error, if that is a terminal.
    Otherwise it logs a line at most every 5 % of a long step, if the remaining time has changed.

    Args:
        what: The name of the step.
        progress: A function to yield instead, such as the `progress` of a caller.
        shown: True or False replaces the context `progress_bars`, for a process that does not
            inherit the context.
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
        task = drawn.add_task(what, total=None, item="")  # the first call gives the total

        def advance(item: str, done: float, total: int) -> None:
            """Update the bar."""
            drawn.update(task, completed=done, total=total, item=item)

        yield advance


def align_columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as text lines, with each column padded to its longest cell.

    The first column is aligned left, the others right. Columns are two spaces apart.

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
        """Begin with no message seen."""
        super().__init__()
        self._earlier_messages: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False if a file reader (`lesionseg.io`) has logged the same message before.

        A reader that opens a file repeatedly would otherwise repeat its warnings. Messages of other
        modules always pass. `logging` drops records for which this returns False.
        """
        if not record.name.startswith("lesionseg.io"):
            return True
        text = record.getMessage()
        is_new = text not in self._earlier_messages
        self._earlier_messages.add(text)
        return is_new


class BufferedLogHandler(MemoryHandler):
    """A handler that writes log records to a file, which it opens only when its folder is in use.

    Records stay in memory until then, so that a wrong setting leaves no file behind.

    Args:
        file: The path of the file.
        formatter: The formatter of its lines.
        is_in_use: Returns True if the folder is in use, for example if a run directory has a
            configuration.
        private: True makes the file readable for its owner only.
    """

    def __init__(
        self,
        file: Path,
        formatter: logging.Formatter,
        is_in_use: Callable[[], bool],
        *,
        private: bool,
    ) -> None:
        """Prepare the handler. The file is not opened yet."""
        super().__init__(capacity=0)  # without effect: `shouldFlush` ignores the number of records
        self.file = file
        self.is_in_use = is_in_use
        self.open = partial(open_log, file, formatter, private=private)

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        """Return True if the log file is open, and open it first if its folder is in use.

        `logging.handlers.MemoryHandler` calls this for each record, and keeps the records in memory
        as long as this returns False.
        """
        if self.target is None and self.is_in_use():
            self.setTarget(self.open())
        return self.target is not None

    def close(self) -> None:
        """Close the file. Records that were never written to it are lost."""
        target = self.target
        super().close()
        if target is not None:
            target.close()


class LogFile(logging.FileHandler):
    """A handler that appends to a file, and stops with one warning if a line cannot be written.

    A symbolic link is not followed, because in an output folder it may lead to any file of the
    user.
    """

    def _open(self) -> TextIOWrapper:
        """Open the file for appending. `logging.FileHandler` calls this."""
        return open(
            self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_open_file
        )

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn once that the log is incomplete, and write no further line.

        `logging` calls this if a line cannot be written. By default it would print a traceback for
        each line.
        """
        self.setLevel(sys.maxsize)  # above the level of every record
        reason = sys.exc_info()[1]
        log.warning("%s: the log is incomplete: %s.", self.baseFilename, _system_reason(reason))

    def close(self) -> None:
        """Close the file. Lines that the system could not write to the disk are lost."""
        with suppress(OSError):
            super().close()


def _open_file(path: str, flags: int) -> int:
    """Open a file and return its descriptor, for `open(…, opener=…)`, but refuse a symbolic link.

    Windows has no flag for this, so the path is tested first. Raise `OSError` if the path is a
    link.
    """
    if Path(path).is_symlink():
        raise OSError("it is a link")
    # the umask removes permissions from 0o666, as for other new files
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _system_reason(error: BaseException | None) -> str:
    """Return the operating system's text for an error in lower case ("permission denied")."""
    return str(getattr(error, "strerror", None) or error).lower()


def open_log(path: Path, formatter: logging.Formatter, *, private: bool) -> logging.Handler:
    """Open a log file for appending, and return its handler.

    Args:
        path: The path of the file.
        formatter: The formatter of its lines.
        private: True makes the file readable for its owner only, even if an earlier run made it.

    Raises:
        OutputError: If the file cannot be written.
    """
    try:
        handler = LogFile(path)
        if private:
            path.chmod(0o600)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {_system_reason(error)}. Remove the file, change the "
            "permissions, or name another folder."
        ) from error
    handler.setFormatter(formatter)
    return handler


@contextmanager
def added_handlers(own: Sequence[logging.Handler]) -> Iterator[None]:
    """Add handlers to the root logger within the context, and remove them at the end.

    If the root logger had no handler, logging was not configured, as in a notebook. Messages of
    lesionseg are then logged from level INFO on. Python prints warnings through
    `logging.lastResort` only while there is no other handler, so `lastResort` is added as well.
    """
    root = logging.getLogger()
    package_logger = logging.getLogger("lesionseg")
    level = package_logger.level
    handlers = [*own]
    if not root.handlers and logging.lastResort:
        handlers.append(logging.lastResort)
        package_logger.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        package_logger.setLevel(level)


@contextmanager
def run_log(run: Path, *, private: bool = False) -> Iterator[Callable[[str], None]]:
    """Append all log records of this context to the run's log file, `train.log`.

    Records wait in memory until the run directory has a configuration. The output on the terminal
    does not change. An error that ends the run becomes the last line. An error that lesionseg does
    not raise itself is logged with its traceback.

    Args:
        run: The run directory.
        private: True makes the file readable for its owner only.

    Yields:
        A function that writes a line to this file only.
    """
    handler = BufferedLogHandler(run / LOG, LOG_FORMAT, partial(has_config, run), private=private)

    def note(text: str) -> None:
        """Write a line to the file of the run, but not to the terminal."""
        handler.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))

    try:
        with added_handlers([handler]):
            note(f"lesionseg {__version__} started or resumed.")
            yield note
    except BaseException as error:
        is_expected = isinstance(error, LesionsegError | KeyboardInterrupt)
        with suppress(OutputError):  # the log itself may be the file that cannot be written
            note(f"{type(error).__name__}: {error}" if is_expected else traceback.format_exc())
        raise
    finally:
        handler.close()
