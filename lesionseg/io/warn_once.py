"""Warnings of readers: logged once, although a file is read several times, and collected."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident

_logged: set[str] = set()
_lock = Lock()
_READERS = "lesionseg.io"


class _Collector(logging.Handler):
    """A handler that keeps the warnings of the thread that created it, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread = get_ident()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        """Keep a text, unless it is that of another thread or a repetition."""
        if get_ident() == self.thread and text not in self.texts:
            self.texts.append(text)


def warn_once(logger: logging.Logger, text: str, *values: object) -> None:
    """Log a warning, unless this process has already logged the same text.

    `collect_warnings` receives it every time.
    """
    message = text % values
    with _lock:
        is_new = message not in _logged
        _logged.add(message)
    if is_new:
        logger.warning("%s", message)
        return
    for handler in logging.getLogger(_READERS).handlers:
        if isinstance(handler, _Collector):
            handler.add(message)


@contextmanager
def collect_warnings(*, silent: bool = False) -> Iterator[list[str]]:
    """Yield a list that receives the warnings of the readers in this thread.

    Warnings contain the names of files. `silent` keeps them out of the log, for all threads.
    """
    readers = logging.getLogger(_READERS)
    collector = _Collector()
    readers.addHandler(collector)
    propagated = readers.propagate
    if silent:
        readers.propagate = False
    try:
        yield collector.texts
    finally:
        readers.propagate = propagated
        readers.removeHandler(collector)
