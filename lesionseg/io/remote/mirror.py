"""A dataset at a URL as a folder of this machine whose files come when they are read.

All names are there from the start, tables with their content. An image is a placeholder of one byte
until it is asked for (`bring`), and becomes one again when others need the room. Results written
into the folder go to the store by `send`.

<local folder>/mirrors/<hash of the URL>/
├── .lesionseg-mirror.sqlite    what the store said of each file, and which are here
└── <name of the dataset>/      the mirrored folder
"""

import hashlib
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from lesionseg.errors import ReadError
from lesionseg.io.remote.local_disk import LocalDisk, partial_name, sweep
from lesionseg.io.remote.remote_folder import RemoteFile, RemoteFolder

FOLDER, INDEX = "mirrors", ".lesionseg-mirror.sqlite"
# read to recognise a dataset, or to know what else belongs to a case: fetched at once, and kept
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".mhd", ".nhdr")
# a file that was asked for so recently is being read: it stays
IN_USE_SECONDS = 120.0
_NOTE = 10.0  # seconds
_CONNECTIONS = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (url TEXT, most_bytes INTEGER);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, state TEXT, here INTEGER, used REAL);
CREATE INDEX IF NOT EXISTS by_use ON files (used) WHERE here > 0;
"""
_PUT = "INSERT OR REPLACE INTO files (path, size, state, here, used) VALUES (?, ?, ?, ?, ?)"


# what the store said of a file, its bytes here, and when it was used
_Known = tuple[RemoteFile, int, float]


def mirror(url: str, disk: LocalDisk, *, new: bool = False, tables: Sequence[str] = TABLES) -> Path:
    """The local folder for a dataset's URL, its names and tables as they are there now.

    What has changed at the store since the last call becomes a placeholder again, what is gone is
    removed. Files together take `disk.most_bytes` at most, tables and files just in use aside.
    Raises `ReadError` when the store cannot be listed, or, unless it may be `new`, has no file.
    """
    base = disk.folder / FOLDER / hashlib.sha256(url.encode()).hexdigest()[:16]
    root = base / (PurePosixPath(url).name or "data")
    files = _listed(RemoteFolder(url))
    if not files and not new:
        raise ReadError("There is no file below this URL.", where=url, remedy="name a folder.")
    base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # scans are their user's alone
    root.mkdir(parents=True, exist_ok=True)
    sweep(base)
    with _index(base) as index:
        index.executescript(_SCHEMA)
        index.execute("DELETE FROM about")
        index.execute("INSERT INTO about VALUES (?, ?)", (url, disk.most_bytes))
    with _index(base) as index:
        _follow(index, root, files)
    _bring(base, [root / f.path for f in files if f.path.lower().endswith(tuple(tables))])
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
    if base is not None:
        _bring(base, _files(path), at_most)


def send(paths: Iterable[Path]) -> None:
    """Copy files of a mirrored folder to the store; those that are not here are removed there.

    Other paths are left alone. Raises `OutputError`.
    """
    for base, path in ((_base(path), path) for path in paths):
        if base is None:
            continue
        name, (folder, disk) = _name(base, path), _about(base)
        here = path.is_file()
        if here:
            folder.put(name, path)
        elif _look_up(base, [path]):
            folder.remove(name)
        with _index(base) as index:
            index.execute("DELETE FROM files WHERE path = ?", (name,))
            if here:
                size = path.stat().st_size
                index.execute(_PUT, (name, size, "", max(size, 1), time.time()))
                _make_room(index, base, disk, {path: size})


def states(path: Path) -> tuple[tuple[str, int, str], ...] | None:
    """Path, bytes and state of a mirrored file, or of all in a folder, as the store listed them.

    None where it does not tell.
    """
    base = _base(path)
    known = {} if base is None else _look_up(base, _files(path))
    files = {str(path): file for path, (file, *_) in sorted(known.items())}
    if not files or not all(file.state for file in files.values()):
        return None
    return tuple((path, file.size or 0, file.state) for path, file in files.items())


def _bring(base: Path, paths: Sequence[Path], at_most: float = math.inf) -> None:
    known = {p: k for p, k in _look_up(base, paths).items() if (k[0].size or 0) <= at_most}
    missing = {path: file for path, (file, here, _) in known.items() if not here}
    if missing:
        _fetch(base, missing)
    now = time.time()
    old = [(now, file.path) for file, here, used in known.values() if here and now - used > _NOTE]
    if old:
        with _index(base) as index:
            index.executemany("UPDATE files SET used = ? WHERE path = ?", old)


def _listed(folder: RemoteFolder) -> list[RemoteFile]:
    """The files at the store; those of which its list tells no state are asked for."""
    files = folder.list()
    silent = [file.path for file in files if not file.state]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        answers = list(pool.map(folder.look, silent))
    return [file for file in files if file.state] + answers


def _follow(index: sqlite3.Connection, root: Path, files: list[RemoteFile]) -> None:
    """Bring names and states up to date with what the store lists."""
    rows = index.execute("SELECT path, size, state FROM files")
    known = {path: (size, state) for path, size, state in rows}
    for file in files:
        if ".." in PurePosixPath(file.path).parts or PurePosixPath(file.path).is_absolute():
            raise ReadError("A name at the store leads out of its folder.", where=file.path)
        if file.state and known.get(file.path) == (file.size, file.state):
            continue
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        _hold_place(root / file.path)
        index.execute(_PUT, (file.path, file.size, file.state, 0, 0))
    for path in known.keys() - {file.path for file in files}:
        (root / path).unlink(missing_ok=True)
        index.execute("DELETE FROM files WHERE path = ?", (path,))


def _fetch(base: Path, files: Mapping[Path, RemoteFile]) -> None:
    """Copy files next to their places, then move them there under the index's lock."""
    folder, disk = _about(base)
    copies = {path: base / partial_name() for path in files}
    try:
        folder.get({files[path].path: copy for path, copy in copies.items()})
        sizes = {path: copy.stat().st_size for path, copy in copies.items()}
        for path, file in files.items():
            if file.size not in (None, sizes[path]):
                raise ReadError(
                    "The file changed while it was copied, or was cut short.",
                    where=f"{folder.url}/{file.path}",
                    seen=f"{sizes[path]} bytes",
                    expected=f"{file.size} bytes",
                    remedy="start again.",
                )
        with _index(base) as index:
            for path, file in files.items():
                copies[path].replace(path)
                row = (file.path, file.size, file.state, max(sizes[path], 1), time.time())
                index.execute(_PUT, row)
            _make_room(index, base, disk, sizes)
    finally:
        for copy in copies.values():
            copy.unlink(missing_ok=True)


def _make_room(
    index: sqlite3.Connection, base: Path, disk: LocalDisk, arrived: Mapping[Path, int]
) -> None:
    """Turn files not in use into placeholders, longest unused first, until the bound is kept.

    `arrived`: bytes of the files that have just come.
    """
    if not disk.is_due(sum(arrived.values())):
        return
    (total,) = index.execute("SELECT COALESCE(SUM(here), 0) FROM files").fetchone()
    before, keep = time.time() - IN_USE_SECONDS, {_name(base, path) for path in arrived}
    root = base / next(iter(arrived)).relative_to(base).parts[0]
    unused = index.execute(
        "SELECT path, here FROM files WHERE here > 0 AND used < ? ORDER BY used", (before,)
    )
    for path, size in unused.fetchall() if total > disk.most_bytes else ():
        if total <= disk.most_bytes:
            return
        if path not in keep and not path.lower().endswith(TABLES):
            _hold_place(root / path)
            index.execute("UPDATE files SET here = 0 WHERE path = ?", (path,))
            total -= size


def _hold_place(path: Path) -> None:
    """Put a placeholder: one byte, so that no reader takes it for the file or for an empty one."""
    temporary = path.with_name(partial_name())
    temporary.touch()
    os.truncate(temporary, 1)
    temporary.replace(path)


@contextmanager
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


def _about(base: Path) -> tuple[RemoteFolder, LocalDisk]:
    with _index(base, "DEFERRED") as index:
        url, most_bytes = index.execute("SELECT url, most_bytes FROM about").fetchone()
    return RemoteFolder(url), LocalDisk(base, most_bytes)


def _look_up(base: Path, paths: Iterable[Path]) -> dict[Path, _Known]:
    """What is known of these paths; those that are not of the store are left out."""
    columns = "SELECT path, size, state, here, used FROM files WHERE path = ?"
    with _index(base, "DEFERRED") as index:
        rows = {path: index.execute(columns, (_name(base, path),)).fetchone() for path in paths}
    return {path: (RemoteFile(*row[:3]), *row[3:]) for path, row in rows.items() if row is not None}


def _files(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]


def _base(path: Path) -> Path | None:
    """The folder with the index above a mirrored path; most paths need no look at the disk."""
    if FOLDER not in path.parts:
        return None
    return next((folder for folder in path.parents if (folder / INDEX).is_file()), None)


def _name(base: Path, path: Path) -> str:
    return PurePosixPath(*path.relative_to(base).parts[1:]).as_posix()
