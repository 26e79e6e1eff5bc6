"""Warnings about a file that is read several times, logged once by a process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_said: set[str] = set()
_lock = Lock()


def warn_once(logger: logging.Logger, text: str, *values: object) -> None:
    """Log a warning, unless this process has logged the same one already."""
    message = text % values
    with _lock:
        is_new = message not in _said
        _said.add(message)
    if is_new:
        logger.warning("%s", message)


@contextmanager
def warning_again() -> Iterator[None]:
    """Log every warning again within the context, for a caller that collects them."""
    with _lock:
        before = set(_said)
        _said.clear()
    try:
        yield
    finally:
        with _lock:
            _said.update(before)
