"""Locks on folders: of several processes one writes, and what killed ones left half is removed."""

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import ParamSpec, TypeVar

from lesionseg.errors import OutputError
from lesionseg.io.atomic import HALF, writing

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

LOCK = ".lock"  # of a whole folder; parts of the work may have locks of their own
_DEPTH = 4  # run/fold_0/validation/probabilities


def locks(setting: str, *, shared: bool = False) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a command: it holds the lock of the folder that its argument `setting` names.

    `shared`: see `locked_folder`. Without a folder (None) there is no lock.
    """

    def decorate(command: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(command)

        @wraps(command)
        def locked(*args: P.args, **settings: P.kwargs) -> T:
            folder = signature.bind(*args, **settings).arguments.get(setting)
            if folder is None:
                return command(*args, **settings)
            with locked_folder(Path(folder), shared=shared):
                return command(*args, **settings)

        return locked

    return decorate


@contextmanager
def locked_folder(folder: Path, name: str = LOCK, *, shared: bool = False) -> Iterator[None]:
    """Keep other processes that ask for the same lock out of a folder, which is made if need be.

    Those that all take it as `shared` work side by side; who has `LOCK` alone removes the
    half-written files of killed processes. The system ends the lock with the process, however that
    ends. Where a disk or Windows knows none, none is taken. Raises `OutputError` if another has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    file, is_new = folder / name, not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        if name == LOCK and not shared:
            _remove_halves(folder)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else others share it still
            file.unlink()
            if is_new:  # and nothing came into it
                folder.rmdir()
        os.close(descriptor)


def _remove_halves(folder: Path) -> None:
    """Remove what killed processes left of `atomic_path`, as deep as commands write."""
    for half in chain(*(folder.glob("*/" * depth + HALF) for depth in range(_DEPTH))):
        with suppress(OSError):
            half.unlink()


def _locked(file: Path, kind: int) -> int:
    """The descriptor of a lock's file, locked; another process may have removed an earlier one."""
    import fcntl

    while True:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                "Another process is writing into this folder.",
                where=file.parent,
                remedy="Wait until it ends, or name another folder.",
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked: %s.", file.parent, error.strerror)
            return descriptor
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Whether such a process runs here; on Windows, where to ask is to end it, always."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to somebody else
        return True
    return True
