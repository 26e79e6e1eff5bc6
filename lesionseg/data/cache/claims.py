"""Claims on cases: several processes, on one machine or many, divide one cache's work.

A claim says who is at a case and since when. It saves work and guards nothing: entries are moved
into place whole, so that two processes which make the same case do no harm.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lesionseg.errors import ReadError
from lesionseg.io.atomic import create_file
from lesionseg.io.case_ids import bounded_name
from lesionseg.io.folder_locks import is_alive

# longer than any case takes, and than a shard of them is kept back
STALE_SECONDS = 1800.0


class ClaimStore(Protocol):
    """Small files by name; `io.remote.RemoteFolder` is one."""

    def create(self, path: str, content: bytes) -> bool:
        """Write it unless it is there; whether it was written."""

    def read(self, path: str) -> bytes:
        """Its content; raises `ReadError` when it is not there."""

    def remove(self, path: str) -> None:
        """Remove it, if it is there."""


@dataclass(frozen=True)
class ClaimFolder:
    """Claims in a folder of this machine, or one that several machines share."""

    folder: Path

    def create(self, path: str, content: bytes) -> bool:
        """Write it unless it is there; whether it was written."""
        return create_file(self.folder / path, content)

    def read(self, path: str) -> bytes:
        """Its content; raises `ReadError` when it is not there."""
        try:
            return (self.folder / path).read_bytes()
        except OSError as error:
            raise ReadError("There is no such claim.", where=self.folder / path) from error

    def remove(self, path: str) -> None:
        """Remove it, if it is there."""
        (self.folder / path).unlink(missing_ok=True)


@dataclass(frozen=True)
class Claims:
    """Who is at which case."""

    store: ClaimStore

    def take(self, case: str) -> bool:
        """Whether the case is ours now: it was free, or its claim is a dead process's or old."""
        mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
        name = bounded_name(case)
        if self.store.create(name, mine.encode()):
            return True
        try:
            is_abandoned = _left_behind(self.store.read(name))
        except ReadError:  # given back in this moment
            return self.store.create(name, mine.encode())
        if not is_abandoned:
            return False
        self.store.remove(name)
        return self.store.create(name, mine.encode())

    def give_back(self, case: str) -> None:
        """The case is made, or given up."""
        self.store.remove(bounded_name(case))


def _left_behind(claim: bytes) -> bool:
    """Whether whoever made the claim cannot be at it any more."""
    try:
        holder = json.loads(claim)
        host, pid, since = str(holder["host"]), int(holder["pid"]), float(holder["since"])
    except (ValueError, KeyError, TypeError):  # who wrote it died over it
        return True
    if time.time() - since > STALE_SECONDS:
        return True
    return host == socket.gethostname() and not is_alive(pid)
