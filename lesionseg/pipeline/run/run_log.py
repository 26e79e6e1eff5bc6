"""`train.log`: what a training says, kept in its run directory as well."""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lesionseg
from lesionseg.errors import LesionsegError
from lesionseg.pipeline.run.run_dir import is_claimed

LOG = "train.log"
LINE = "%(asctime)s %(message)s"


class RunLog(logging.Handler):
    """Appends records to the log of a run, from the moment that its directory is claimed.

    What comes before waits in memory, the plan among it: a refused setting leaves no file.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._run, self._waiting = run, list[logging.LogRecord]()
        self._file: logging.FileHandler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record and those that waited, or let it wait."""
        self._waiting.append(record)
        self._write()

    def note(self, text: str) -> None:
        """Write a text that is logged nowhere else."""
        self.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))

    def close(self) -> None:
        """Write what waits, if the directory was claimed, and close the file."""
        self._write()
        if self._file is not None:
            self._file.close()
        super().close()

    def _write(self) -> None:
        if self._file is None:
            if not is_claimed(self._run):
                return
            self._file = logging.FileHandler(self._run / LOG, encoding="utf-8")
            self._file.setFormatter(logging.Formatter(LINE))
        while self._waiting:
            self._file.emit(self._waiting.pop(0))


@contextmanager
def kept_log(run: Path) -> Iterator[Callable[[str], None]]:
    """Append all that is logged meanwhile to the run's log; yields what writes to it alone.

    What is printed stays as it is. An error that ends the run is the log's last line.
    """
    with _heard(log := RunLog(run)):
        yield from _noted(log)


@contextmanager
def _heard(log: RunLog) -> Iterator[None]:
    """Let the log hear all; where nobody has set logging up, warnings are still printed."""
    root, ours = logging.getLogger(), logging.getLogger(lesionseg.__name__)
    level, bare = ours.level, not root.handlers
    handlers = [log, logging.lastResort] if bare and logging.lastResort else [log]
    for handler in handlers:
        root.addHandler(handler)
    if bare:
        ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        ours.setLevel(level)
        log.close()


def _noted(log: RunLog) -> Iterator[Callable[[str], None]]:
    """Note how it begins and, where it does so with an error, how it ends."""
    log.note(f"Training begins or goes on, lesionseg {lesionseg.__version__}.")
    try:
        yield log.note
    except KeyboardInterrupt:
        log.note("Interrupted.")
        raise
    except LesionsegError as error:
        log.note(f"Error: {error}")
        raise
    except BaseException:
        log.note(traceback.format_exc())
        raise
