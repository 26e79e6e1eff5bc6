"""Warnings of readers: logged once, although a file is read several times, and collected."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from threading import Lock, get_ident

_logged: set[str] = set()
_lock = Lock()
_READERS = "lesionseg.io"  # the logger whose handlers are those of `collect_warnings`
_MAX_WARNINGS = 10**6


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
        handler.handle(logging.makeLogRecord({"msg": message}))


@contextmanager
def collect_warnings(*, silent: bool = False) -> Iterator[list[str]]:
    """Yield a list that contains the warnings of the readers in this thread after the context.

    Each text occurs once. Warnings contain the names of files. `silent` keeps them out of the log,
    for all threads.
    """
    texts: list[str] = []
    thread = get_ident()
    collector = BufferingHandler(_MAX_WARNINGS)
    collector.setLevel(logging.WARNING)
    collector.addFilter(lambda _: get_ident() == thread)
    readers = logging.getLogger(_READERS)
    readers.addHandler(collector)
    propagated = readers.propagate
    if silent:
        readers.propagate = False
    try:
        yield texts
    finally:
        readers.propagate = propagated
        readers.removeHandler(collector)
        texts += dict.fromkeys(record.getMessage() for record in collector.buffer)
