"""Atomic files, missing files, lock of a folder: error if two programs write into it.

A file is written under a temporary name in the same folder and then renamed. If the program is
killed, the old file remains.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lesionseg.errors import OutputError

LOCK = ".lock"  # the lock of a whole folder; parts of the work may have further locks
_LOCKS = ".*lock"  # pattern of all locks, such as `.predictions.csv.lock` of `predict`
# suffixes of texts, tables and documents, which contain no image
TEXT_SUFFIXES = (
    ".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml", ".xml", ".html", ".htm",
    ".pdf", ".log", ".bval", ".bvec", ".py", ".sh", ".db", ".ini", ".lock", ".xlsx", ".docx",
)  # fmt: skip
_MAX_DEPTH = 4  # levels of folders that are searched: run/fold_0/validation/probabilities
TEMPORARY_NAMES = f".{'[0-9a-f]' * 8}-"  # beginning of the temporary names of `atomic_path`


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, renamed to `path` on success, deleted on failure.

    The caller writes the temporary file, so that an interrupted program never leaves half a file at
    `path`. The temporary name begins with a dot, because readers skip hidden files, and ends with
    the suffix of `path`, because writers choose the format by it. Missing parent folders are
    created.

    Raises:
        OutputError: If the file cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("r+b") as file:  # Windows flushes only files open for writing
                os.fsync(file)  # otherwise, a power failure after the rename could empty the file
            temporary.replace(path)
    finally:
        with suppress(OSError):  # if the parent is a file, the temporary file does not exist
            temporary.unlink(missing_ok=True)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Convert an `OSError` within the context into an `OutputError` that names the path."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}. Free space, change the "
            "permissions, or name another output."
        ) from error


def digest_of(*parts: str | bytes | memoryview | Path) -> str:
    """Compute the SHA-256 of the joined bytes of all parts, as 64 hexadecimal digits.

    The bytes of a text are its UTF-8 form, with "?" for characters that cannot be encoded. The
    bytes of a `Path` are the content of the file. The digest of one file equals the output of
    `sha256sum`.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)  # adds the content to `digest`
        else:
            digest.update(part.encode(errors="replace") if isinstance(part, str) else part)
    return digest.hexdigest()


def download_folder() -> Path:
    """Return the cache folder of downloads, `$XDG_CACHE_HOME/lesionseg` or `~/.cache/lesionseg`.

    The folder may not exist yet.
    """
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent, "lesionseg").expanduser().absolute()


def is_broken_link(path: Path) -> bool:
    """Return True for a symbolic link to a missing file, or a link in a circle of links."""
    return path.is_symlink() and not path.exists()


def is_file_or_broken_link(path: Path) -> bool:
    """Return True for a file and for a broken symbolic link.

    Listings of folders include broken links, so that the user sees the error when they are read.
    """
    return path.is_file() or is_broken_link(path)


def content_place(path: Path) -> object:
    """Return a key of a file's content on the disk (device and inode), to compare two paths.

    The keys of two paths are equal if they are symbolic or hard links to the same content. If the
    path cannot be accessed, the path itself is returned.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # no file, links in a circle; an impossible name
        return path
    return status.st_dev, status.st_ino


def explain_missing(path: Path) -> str:
    """Return the error message, with advice, for a missing file or a broken link."""
    if is_broken_link(path):
        return (
            f"{path}: the link points to nothing. Fetch its file (datalad get, git annex get), "
            "mount the disk that it points to, or remove the link."
        )
    return f"{path}: no such file. Check its name and folder."


@contextmanager
def locked_folder(folder: Path, name: str = LOCK, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock of a folder within the context, so that no second process writes into it.

    A folder that does not exist is created, and removed at the end if it is empty. With the lock
    `LOCK`, temporary files that killed processes have left are removed first, except in folders
    that have another lock. The system releases the lock if the process ends for any reason.

    Args:
        folder: The folder.
        name: The name of the lock file within the folder.
        wait_seconds: The longest time to wait for another process to release the lock.

    Raises:
        OutputError: If another process holds the lock, or the folder cannot be created.
    """
    lock = FileLock(folder / name)
    with made_folder(folder):
        with output_errors(folder):
            try:
                lock.acquire(timeout=wait_seconds)
            except Timeout as error:
                raise OutputError(
                    f"{folder}: another process is writing into this folder. Wait until it has "
                    "finished, or name another folder."
                ) from error
        try:
            if name == LOCK:
                _remove_temporary_files(folder)
            yield
        finally:
            with suppress(OSError):
                (folder / name).unlink()  # before the release: no other process holds this file
            lock.release()


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder for results. At the end of the context, remove it if it is new and empty.

    A command that fails therefore leaves no empty folders. Parents that are new and empty are
    removed, too. A folder that existed before stays.

    Raises:
        OutputError: If the folder cannot be created.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # ends at the first folder that is not empty
            for path in new_folders:
                path.rmdir()


def _remove_temporary_files(folder: Path) -> None:
    """Remove temporary files of killed processes in a folder and in three levels below it.

    The caller holds the lock `LOCK` of `folder`. A file stays if another process may still write
    it, because `folder` or a folder below it on the file's path has another lock file, or if it
    cannot be removed.
    """
    for depth in range(_MAX_DEPTH):
        for temporary in folder.glob(f"{'*/' * depth}{TEMPORARY_NAMES}*"):
            folders = temporary.parents[: depth + 1]  # from that of the file up to `folder`
            if not {lock for inner in folders for lock in inner.glob(_LOCKS)} - {folder / LOCK}:
                with suppress(OSError):
                    temporary.unlink()
