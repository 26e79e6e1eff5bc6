"""Warnings that a process logs only once, although the file is read several times."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_logged: set[str] = set()
_lock = Lock()


def warn_once(logger: logging.Logger, text: str, *values: object) -> None:
    """Log a warning, unless this process has already logged the same text."""
    message = text % values
    with _lock:
        is_new = message not in _logged
        _logged.add(message)
    if is_new:
        logger.warning("%s", message)


@contextmanager
def repeat_warnings() -> Iterator[None]:
    """Log all warnings again within the context, for a caller that collects them."""
    with _lock:
        before = set(_logged)
        _logged.clear()
    try:
        yield
    finally:
        with _lock:
            _logged.update(before)
