"""Locks on folders: of several processes one writes, and what killed ones left half is removed."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import FileLock, Timeout

from lesionseg.errors import OutputError
from lesionseg.io.atomic import HALF, writing

P = ParamSpec("P")
T = TypeVar("T")

LOCK = ".lock"  # of a whole folder; parts of the work may have locks of their own
_DEPTH = 4  # run/fold_0/validation/probabilities


def locks(setting: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a command: it holds the lock of the folder that its argument `setting` names.

    Without a folder (None) there is no lock.
    """

    def decorate(command: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(command)

        @wraps(command)
        def locked(*args: P.args, **settings: P.kwargs) -> T:
            folder = signature.bind(*args, **settings).arguments.get(setting)
            if folder is None:
                return command(*args, **settings)
            with locked_folder(Path(folder)):
                return command(*args, **settings)

        return locked

    return decorate


@contextmanager
def locked_folder(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Keep other processes that ask for the same lock out of a folder, which is made if need be.

    Who has `LOCK` removes the half-written files of killed processes. The system ends the lock with
    the process, however that ends. Raises `OutputError` if another has it.
    """
    lock, is_new = FileLock(folder / name), not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"{folder}: another process is writing into this folder. Wait, or name another one."
            ) from error
    try:
        for depth in range(_DEPTH if name == LOCK else 0):
            for half in folder.glob("*/" * depth + HALF):
                with suppress(OSError):
                    half.unlink()
        yield
    finally:
        with suppress(OSError):
            (folder / name).unlink()  # while it is locked: nobody else holds this file
            if is_new:  # and nothing came into it
                folder.rmdir()
        lock.release()
