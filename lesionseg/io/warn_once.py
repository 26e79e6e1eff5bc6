"""Warnings of readers: logged once, although a file is read several times, and collected."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident

_logged: set[str] = set()
_lock = Lock()
_READERS = "lesionseg.io"  # the logger whose handlers are those of `collect_warnings`


def warn_once(logger: logging.Logger, text: str, *values: object) -> None:
    """Log the warning `text % values`, unless this process had the same warning before.

    A warning that `collect_warnings` kept out of the log counts as well.

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
    """Yield a list to which the warnings of the readers in this thread are appended.

    Each text occurs once. Warnings contain the names of files. `silent` keeps them out of the log,
    for all threads.
    """
    texts: list[str] = []
    thread = get_ident()

    def collect_and_drop(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if get_ident() == thread and text not in texts:
            texts.append(text)
        return False  # the handler does nothing else

    collector = logging.Handler(logging.WARNING)
    collector.addFilter(collect_and_drop)
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
