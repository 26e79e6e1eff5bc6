"""Local disk lent to copies of remote files: a folder and the most bytes they may take."""

import contextlib
import os
import random
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lesionseg.io.folder_locks import is_alive

PARTIAL = ".partial-"
_DAY_SECONDS = 86400
# how often, in shares of the bound that have arrived, the copies are counted
_COUNT_EVERY = 0.01


def default_folder() -> Path:
    """`lesionseg` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lesionseg"


@dataclass(frozen=True)
class LocalDisk:
    """Where local copies lie and how many bytes they may take together.

    The bound is kept within about a hundredth for each process that fetches. One copy may pass it
    where it is smaller than that.
    """

    folder: Path = field(default_factory=default_folder)
    most_bytes: int = 100 * 10**9

    def make_room(self, pattern: str, keep: Path, arrived: int) -> None:
        """Remove those folders that were used longest ago until the bound is kept.

        `pattern` says which folders below ours are copies; `keep` is one that has just come, with
        `arrived` bytes. A folder counts as used when its time is set.
        """
        total = 0
        if not self.is_due(arrived):
            return
        for _, size, folder in sorted(_copies(self.folder, pattern), reverse=True):
            total += size
            if total > self.most_bytes and folder != keep:
                remove_whole(folder)
                total -= size

    def is_due(self, arrived: int) -> bool:
        """Whether to count now: at random, on average once a hundredth of the bound arrives."""
        return random.random() < arrived / (_COUNT_EVERY * max(self.most_bytes, 1))


def local_disk(folder: str | Path | None, gigabytes: float) -> LocalDisk:
    """As the settings name it; None: the user's cache folder."""
    return LocalDisk(
        (Path(folder) if folder else default_folder()).absolute(), int(gigabytes * 1e9)
    )


def remove_whole(folder: Path) -> None:
    """Remove a folder so that no process sees half of it."""
    away = folder.with_name(partial_name())
    try:
        folder.replace(away)
    except OSError:  # another process was first
        return
    shutil.rmtree(away, ignore_errors=True)


def partial_name() -> str:
    """A name for what is being made, and goes to its place whole; it says by which process."""
    return f"{PARTIAL}{uuid.uuid4().hex}-{os.getpid()}-{socket.gethostname()}"


def sweep(folder: Path) -> None:
    """Remove what runs that were killed have left in a folder.

    Those of this machine at once; of others what is a day old.
    """
    for partial in folder.glob(f"{PARTIAL}*"):
        try:
            left = _is_left(partial)
        except FileNotFoundError:
            continue
        if left and partial.is_file():
            partial.unlink(missing_ok=True)
        elif left:
            shutil.rmtree(partial, ignore_errors=True)


def _is_left(partial: Path) -> bool:
    made_by = re.fullmatch(r"[0-9a-f]+-(\d+)-(.+)", partial.name.removeprefix(PARTIAL))
    if made_by and made_by[2] == socket.gethostname() and not is_alive(int(made_by[1])):
        return True
    return time.time() - partial.stat().st_mtime > _DAY_SECONDS


def folder_bytes(folder: Path) -> int:
    """Bytes of the files right in a folder; 0 where another process has just removed it."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0


def _copies(root: Path, pattern: str) -> Iterator[tuple[float, int, Path]]:
    """When each copy was used, its bytes and its folder; those that vanish meanwhile left out."""
    for folder in root.glob(pattern):
        if not folder.name.startswith(PARTIAL):
            with contextlib.suppress(OSError):
                yield folder.stat().st_mtime, folder_bytes(folder), folder
