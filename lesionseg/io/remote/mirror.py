"""A dataset at a URL as a folder of this machine whose files come when they are read.

All names are there from the start, tables with their content. An image is a placeholder of one byte
until it is asked for (`bring`), and becomes one again when others need the room.

<local folder>/mirrors/<hash of the URL>/
├── .lesionseg-mirror.sqlite    what the store said of each file, and which are here
└── <name of the dataset>/      the mirrored folder
"""

import contextlib
import hashlib
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from lesionseg.errors import ReadError
from lesionseg.io.remote.local_disk import LocalDisk
from lesionseg.io.remote.remote_folder import RemoteFile, RemoteFolder

INDEX = ".lesionseg-mirror.sqlite"
# read to recognise a dataset, or to know what else belongs to a case: fetched at once, and kept
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".mhd", ".nhdr")
# a file that was asked for so recently is being read: it stays
IN_USE_SECONDS = 120.0
_NOTE_SECONDS = 10.0
_CONNECTIONS = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (url TEXT, most_bytes INTEGER);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, state TEXT, doubtful INTEGER DEFAULT 0,
    here INTEGER DEFAULT 0, used REAL DEFAULT 0, sha256 BLOB);
CREATE INDEX IF NOT EXISTS by_use ON files (used) WHERE here > 0;
"""


def mirror(url: str, disk: LocalDisk) -> Path:
    """The local folder for a dataset's URL, its names and tables as they are there now.

    What has changed at the store since the last call becomes a placeholder again, what is gone is
    removed. Files together take `disk.most_bytes` at most, tables and files just in use aside.
    Raises `ReadError` when the store cannot be listed, or has no file there.
    """
    base = disk.folder / "mirrors" / hashlib.sha256(url.encode()).hexdigest()[:16]
    root = base / (PurePosixPath(url).name or "data")
    files = RemoteFolder(url).list()
    if not files:
        raise ReadError("There is no file at this URL.", where=url)
    root.mkdir(parents=True, exist_ok=True)
    with _index(base) as index:
        index.executescript(_SCHEMA)
        index.execute("DELETE FROM about")
        index.execute("INSERT INTO about VALUES (?, ?)", (url, disk.most_bytes))
    with _index(base) as index:
        _follow(index, root, files)
    tables = [root / file.path for file in files if file.path.lower().endswith(TABLES)]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(bring, tables))
    return root


def is_mirrored(path: Path) -> bool:
    """Whether a path lies in a mirrored dataset."""
    return _base(path) is not None


def bring(path: Path, at_most: float = math.inf) -> None:
    """See that a mirrored file, or all files right in a mirrored folder, are here.

    Other paths, and files of more than `at_most` bytes, are left alone. Raises `ReadError` when
    the store does not give it.
    """
    base = _base(path)
    if base is None:
        return
    if path.is_dir():
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            files = (file for file in path.iterdir() if file.is_file())
            list(pool.map(partial(bring, at_most=at_most), files))
        return
    name = _name(base, path)
    with _index(base, "DEFERRED") as index:
        row = index.execute(
            "SELECT size, state, doubtful, here, used FROM files WHERE path = ?", (name,)
        ).fetchone()
        (url, most_bytes) = index.execute("SELECT url, most_bytes FROM about").fetchone()
    if row is None or (row[0] or 0) > at_most:  # not of the store, or larger
        return
    size, state, doubtful, here, used = row
    remote = RemoteFile(name, size, state)
    if doubtful:  # the listing said nothing of its state
        remote = RemoteFolder(url).look(name)
        here = here and remote.state and remote.state == state
    if not here:
        _fetch(RemoteFolder(url), path, remote, base, most_bytes)
    elif doubtful or time.time() - used > _NOTE_SECONDS:
        with _index(base) as index:
            index.execute(
                "UPDATE files SET doubtful = 0, used = ? WHERE path = ?", (time.time(), name)
            )


def content_hash(path: Path) -> bytes:
    """SHA-256 of a file's content; a mirrored file's is remembered and needs no second copy.

    Raises `OSError` where it cannot be read, `ReadError` where the store does not give it.
    """
    base = _base(path)
    if base is None:
        return _digest(path)
    name = _name(base, path)
    with _index(base, "DEFERRED") as index:
        known = index.execute(
            "SELECT sha256 FROM files WHERE path = ? AND NOT doubtful", (name,)
        ).fetchone()
    if known and known[0]:
        return bytes(known[0])
    bring(path)
    digest = _digest(path)
    with _index(base) as index:
        index.execute("UPDATE files SET sha256 = ? WHERE path = ?", (digest, name))
    return digest


def _follow(index: sqlite3.Connection, root: Path, files: list[RemoteFile]) -> None:
    """Bring names and states up to date with what the store lists."""
    rows = index.execute("SELECT path, size, state FROM files")
    known = {path: (size, state) for path, size, state in rows}
    for file in files:
        if ".." in PurePosixPath(file.path).parts or PurePosixPath(file.path).is_absolute():
            raise ReadError("A name at the store leads out of its folder.", where=file.path)
        if file.state and known.get(file.path) == (file.size, file.state):
            continue
        if file.path not in known or file.state:
            (root / file.path).parent.mkdir(parents=True, exist_ok=True)
            _hold_place(root / file.path)
            index.execute(
                "INSERT OR REPLACE INTO files (path, size, state) VALUES (?, ?, ?)",
                (file.path, file.size, file.state),
            )
        index.execute("UPDATE files SET doubtful = ? WHERE path = ?", (not file.state, file.path))
    for path in known.keys() - {file.path for file in files}:
        (root / path).unlink(missing_ok=True)
        index.execute("DELETE FROM files WHERE path = ?", (path,))


def _fetch(
    folder: RemoteFolder, path: Path, remote: RemoteFile, base: Path, most_bytes: int
) -> None:
    """Copy a file next to its place, then move it there under the index's lock."""
    temporary = base / f".partial-{uuid.uuid4().hex}"
    try:
        folder.get(remote.path, temporary)
        size = temporary.stat().st_size
        if remote.size is not None and size != remote.size:
            raise ReadError(
                "The file changed while it was copied, or was cut short.",
                where=f"{folder.url}/{remote.path}",
                seen=f"{size} bytes",
                expected=f"{remote.size} bytes",
                remedy="start again.",
            )
        with _index(base) as index:
            temporary.replace(path)
            index.execute(
                "UPDATE files SET here = ?, used = ?, state = ?, size = ?, doubtful = 0,"
                " sha256 = NULL WHERE path = ?",
                (max(size, 1), time.time(), remote.state, remote.size, remote.path),
            )
            root = base / path.relative_to(base).parts[0]
            _make_room(index, root, most_bytes, remote.path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_room(index: sqlite3.Connection, root: Path, most_bytes: int, keep: str) -> None:
    """Turn files not in use into placeholders, longest unused first, until the bound is kept."""
    (total,) = index.execute("SELECT COALESCE(SUM(here), 0) FROM files").fetchone()
    before = time.time() - IN_USE_SECONDS
    unused = index.execute(
        "SELECT path, here FROM files WHERE here > 0 AND used < ? AND path != ? ORDER BY used",
        (before, keep),
    )
    for path, size in unused.fetchall() if total > most_bytes else ():
        if total <= most_bytes:
            return
        if not path.lower().endswith(TABLES):
            _hold_place(root / path)
            index.execute("UPDATE files SET here = 0 WHERE path = ?", (path,))
            total -= size


def _hold_place(path: Path) -> None:
    """Put a placeholder: one byte, so that no reader takes it for the file or for an empty one."""
    temporary = path.with_name(f".partial-{uuid.uuid4().hex}")
    temporary.touch()
    os.truncate(temporary, 1)
    temporary.replace(path)


@contextlib.contextmanager
def _index(base: Path, begin: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """The table of files; what is begun IMMEDIATE is locked against other processes' changes."""
    connection = sqlite3.connect(base / INDEX, timeout=60, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # what is lost can be fetched again
        connection.execute(f"BEGIN {begin}")
        yield connection
        if connection.in_transaction:
            connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise ReadError(
            "The index of fetched files cannot be used.",
            where=base / INDEX,
            seen=error,
            remedy="remove its folder: the files are fetched again.",
        ) from error
    finally:
        connection.close()


def _base(path: Path) -> Path | None:
    """The folder with the index above a mirrored path."""
    return next((folder for folder in path.parents if (folder / INDEX).is_file()), None)


def _name(base: Path, path: Path) -> str:
    return PurePosixPath(*path.relative_to(base).parts[1:]).as_posix()


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
