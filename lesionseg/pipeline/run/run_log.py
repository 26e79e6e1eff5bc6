"""What a run says in writing: its log file, and messages in which no patient or file is named."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

import lesionseg
from lesionseg.core import CaseFiles
from lesionseg.errors import LesionsegError
from lesionseg.io.local_files import content_files
from lesionseg.io.volumes import strip_suffix
from lesionseg.pipeline.run.run_dir import is_claimed

LOG = "train.log"
# of a log; then it becomes train.log.1, and so on, and the oldest goes
MOST_BYTES, OLDER_LOGS = 10**7, 3
LINE = "%(asctime)s %(message)s"
_QUOTED = re.compile(r"'[^']*'")
_SHORTEST = 3  # letters: a case called "a" is no identifier, and the word stands everywhere


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
            self._file = RotatingFileHandler(
                self._run / LOG, maxBytes=MOST_BYTES, backupCount=OLDER_LOGS, encoding="utf-8"
            )
            self._file.setFormatter(logging.Formatter(LINE))
        while self._waiting:
            self._file.emit(self._waiting.pop(0))


@contextmanager
def kept_log(run: Path) -> Iterator[Callable[[str], None]]:
    """Append all that is logged meanwhile to the run's log; yields what writes to it alone.

    What is printed stays as it is. An error that ends the run is the log's last line.
    """
    with _attached(log := RunLog(run)):
        yield from _with_its_ends(log)


@contextmanager
def _attached(log: RunLog) -> Iterator[None]:
    """Attach the log to all loggers; warnings are still printed where nobody set logging up."""
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


def _with_its_ends(log: RunLog) -> Iterator[Callable[[str], None]]:
    """Note how a run begins and, where it does so with an error, how it ends."""
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


def redact_error(error: LesionsegError, files: CaseFiles | None, pseudonym: str) -> str:
    """What is wrong, what was seen and what to do, with a case's names replaced by `pseudonym`.

    Of a case that is not known (None) it gives what is wrong and what to do, quotes emptied.
    """
    if files is None:
        message = " ".join(part for part in (error.what, error.remedy) if part)
        return _QUOTED.sub("'…'", message)
    nowhere = LesionsegError(
        error.what, seen=error.seen, expected=error.expected, remedy=error.remedy
    )
    return redact(str(nowhere), files, pseudonym)


def redact_any(error: Exception, files: CaseFiles, pseudonym: str) -> str:
    """What any error says of a case, redacted; only its class where names are unknown."""
    try:
        if isinstance(error, LesionsegError):
            return redact_error(error, files, pseudonym)
        return redact(repr(error), files, pseudonym)
    except Exception:  # a path that no disk takes, or links that lead in a circle
        return f"{type(error).__name__}; its text is withheld, for it may name the patient."


def redact(text: str, files: CaseFiles, pseudonym: str) -> str:
    """A text in which paths, file names, the case's id and its group are replaced."""
    words: dict[str, str] = {}
    for name, called in _names(files, pseudonym):
        if len(name) >= _SHORTEST:
            words.setdefault(name, called)  # a file often is called as its case
    for name in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", words[name], text)
    return text.replace(repr(files.case), pseudonym)


def _names(files: CaseFiles, pseudonym: str) -> Iterator[tuple[str, str]]:
    yield from ((files.case, pseudonym), (files.group, "its patient"))
    single = len(files.images) == 1
    paths = [(f, "the image" if single else f"image {i}") for i, f in enumerate(files.images, 1)]
    if files.reference is not None:
        paths.append((files.reference, "the reference"))
    for path, called in paths:
        yield from _of_path(path, called)
        if path.exists():  # slices of a series, or voxels beside their header
            for number, file in enumerate(content_files(path), start=1):
                yield from _of_path(file, f"file {number}")


def _of_path(path: Path, called: str) -> Iterator[tuple[str, str]]:
    for form in (path, path.absolute(), path.resolve()):
        yield str(form), called
        yield str(form.parent), "its folder"
    yield path.name, called
    yield strip_suffix(path), called
