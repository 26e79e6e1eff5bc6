"""Warnings of readers: logged once per process although a file is read often, and collected."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident

_logged: set[str] = set()
_lock = Lock()
_READERS = "lesionseg.io"  # the logger whose handlers are those of `collect_warnings`


def warn_once(logger: logging.Logger, text: str, *values: object) -> None:
    """Log the warning `text % values`, unless this process has had the same warning before.

    Many cases can cause the same warning, and a file may be read several times. A warning that a
    silent `collect_warnings` has hidden from the log counts as logged. The list of
    `collect_warnings` gets every warning, also a repeated one.

    Args:
        logger: The logger of the calling module.
        text: The text with `%s` and similar placeholders, as for `logging`.
        values: The values of the placeholders.
    """
    message = text % values
    with _lock:
        is_new = message not in _logged
        _logged.add(message)
    if is_new:
        logger.warning("%s", message)
        return
    # not logged again, but passed to the handlers of `collect_warnings`
    for handler in logging.getLogger(_READERS).handlers:
        handler.handle(logging.makeLogRecord({"msg": message}))


@contextmanager
def collect_warnings(*, silent: bool = False) -> Iterator[list[str]]:
    """Yield a list to which the warnings that readers log in this thread are appended.

    Each text occurs once in the list. The texts contain the paths of files. With `silent`, the
    warnings of all threads are not written to the log within the context.
    """
    texts: list[str] = []
    thread = get_ident()

    def collect_and_drop(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if get_ident() == thread and text not in texts:
            texts.append(text)
        return False  # so that the handler itself does nothing

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
