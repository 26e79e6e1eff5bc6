"""What is in files, `.gz` ones unpacked: opened, and hashed no more often than need be."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from lesionseg.errors import ReadError

_PIECE = 2**22
_Digests = dict[tuple[Path, bool], bytes]  # by path, and whether unpacked
_known: ContextVar[_Digests | None] = ContextVar("digests of the case that is read", default=None)


@contextmanager
def hashed_once() -> Iterator[None]:
    """Within, in this thread, files are hashed once, and `.gz` ones while they are unpacked.

    No file may change meanwhile.
    """
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def file_digest(path: Path, *, unpacked: bool = False) -> bytes:
    """SHA-256 of a file, or of what is in a `.gz` one. Raises `ReadError` naming it."""
    unpacked = unpacked and path.suffix == ".gz"
    known = _known.get()
    if known is None or (path, unpacked) not in known:
        digest = _digest(path, unpacked)
        if known is None:
            return digest
        known[path, unpacked] = digest
    return known[path, unpacked]


def _digest(path: Path, unpacked: bool) -> bytes:
    digest = hashlib.sha256()
    try:
        with gzip.open(path) if unpacked else path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError("The file cannot be read.", where=path, seen=error) from error
    return digest.digest()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file from its start, a `.gz` one unpacked."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            yield file
        return
    known = _known.get()
    with gzip.open(path) if known is None else _Hashing(path, known) as stream:
        yield stream  # type: ignore[misc]  # GzipFile is a binary stream in all but name


class _Hashing(gzip.GzipFile):
    """Leaves the hash of what is unpacked once it was read to its end without a gap."""

    def __init__(self, path: Path, known: _Digests) -> None:
        super().__init__(path)
        self._path, self._digests = path, known
        self._digest, self._hashed = hashlib.sha256(), 0

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        piece = super().read(size)
        if start <= self._hashed < start + len(piece):
            self._digest.update(memoryview(piece)[self._hashed - start :])
            self._hashed = start + len(piece)
        elif not piece and size and start == self._hashed:
            self._digests[self._path, True] = self._digest.digest()
        return piece
