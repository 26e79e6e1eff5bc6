"""Temporary folder of a server for sent scans: private, locked, removed after a killed server."""

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lesionseg.errors import OutputError

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_WAIT_SECONDS = 30.0  # for another server that starts at the same time


@contextmanager
def server_folder() -> Iterator[Path]:
    """Yield an empty folder for scans in progress, private to this user. Remove it at the end.

    A server that is killed leaves its folder, which the next server of the same user removes when
    it starts. To distinguish them, each server holds the lock of its folder. The system releases
    the lock of a killed process.

    Raises:
        OutputError: If the folder of all servers belongs to another user, or cannot be made.
    """
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""  # Windows has a folder per user
    shared = Path(tempfile.gettempdir()).resolve() / f"lesionseg-serve{user}"
    try:
        _make_private(shared)
        # with this lock, no other server removes the new folder before it is locked itself
        with FileLock(shared / _LOCK, timeout=_WAIT_SECONDS):
            _remove_leftovers(shared)
            home = Path(tempfile.mkdtemp(dir=shared))
            lock = FileLock(home / _LOCK)
            lock.acquire(timeout=0)  # does not wait, because nobody else knows the new folder
    except (OSError, Timeout) as error:
        raise OutputError(
            f"{shared}: the folder for scans cannot be made ({error}). Name another folder by the "
            "environment variable TMPDIR."
        ) from error
    try:
        yield home
    finally:
        lock.release()  # Windows cannot remove a file that is in use
        shutil.rmtree(home, ignore_errors=True)


def _make_private(folder: Path) -> None:
    """Make the folder that contains the folders of all servers of this user, private to the user.

    An existing folder is used again. It is checked, because other users can write into the folder
    for temporary files, which contains it.

    Raises:
        OutputError: If the path is a link to a folder, or a folder of another user.
        OSError: If the folder cannot be made, for example because the path is a file.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()  # of a link itself, so that a link is no folder
    # without `getuid` (Windows), the folder for temporary files belongs to the user
    is_of_user = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if not stat.S_ISDIR(status.st_mode) or not is_of_user:
        raise OutputError(
            f"{folder}: this is a link, or it belongs to another user. Remove it, or name another "
            "folder by the environment variable TMPDIR."
        )
    folder.chmod(0o700)


def _remove_leftovers(shared: Path) -> None:
    """Remove the folders of servers that were killed, with the scans in them.

    The lock of such a folder is free. A folder without a lock stays, because it may be in use.
    """
    for folder in shared.iterdir():
        # a cleaner of /tmp may have removed the lock of a running server
        if not (folder / _LOCK).is_file():
            continue
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)  # does not wait
        except Timeout:  # its server is running
            continue
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("Removed the scans of a server that was killed.")
