"""Data folder at a URL (S3, GCS, HTTP): download of changed files, upload of results, errors.

All stores of fsspec can be used: `s3://bucket/folder`, `gs://…`, `http://…`, `memory://…`,
`hf://datasets/user/name[@revision]/folder`.
Endpoint, key and region come from the settings of the store: `~/.config/fsspec/*.json`, variables
such as `FSSPEC_S3_ENDPOINT_URL`, or the usual files of the cloud.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from lesionseg.config import is_url
from lesionseg.errors import ConfigError, LesionsegError, OutputError, ReadError, pip_install
from lesionseg.io.files import digest_of, download_folder, output_errors
from lesionseg.io.text import read_json, write_json

# keys under which stores state a digest or date that changes with the content
_KEYS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "sha", "blob_id", "LastModified",
    "last_modified", "Last-Modified", "modificationTime", "modify", "mtime", "updated", "created",
)  # fmt: skip
_LOCK = ".lock"
_STATES = "states.json"  # next to a local copy: the files of the store and their states
_UPLOADS = "uploads.txt"  # next to a local copy: a line for each file changed since its download
_REMOVED = "\t"  # the line of a file that was removed from the store begins with it
_WEB = ("http://", "https://")  # stores whose listings state names in percent-encoding
_EXTRAS = {"http": "remote", "https": "remote", "s3": "remote", "s3a": "remote", "hf": "hub"}


@dataclass(frozen=True)
class _StoredFile:
    """A file in a store at a URL, such as an object in S3.

    Attributes:
        path: The path of the file in the store. For a web server, its URL.
        state: A text that changes with the content of the file. It is empty if the store states
            neither a digest nor a date of the file.
    """

    path: str
    state: str


def download(place: str, *, new: bool = False, endings: str | tuple[str, ...] = "") -> Path:
    """Download a folder at a URL into a local copy in `download_folder`, and return its path.

    - A file is downloaded if it is new or changed in the store, or if the store states neither
      digests nor dates.
    - A local file that was downloaded or uploaded before is removed if the store no longer contains
      it. Other local files stay.
    - The modification time of a local file is computed from its state in the store (`_set_time`).

    `stored_names` returns the names of all files of the store afterwards.

    Args:
        place: A URL. A local path is returned unchanged.
        new: True if the folder may have no files yet.
        endings: Only files whose name ends with one of these texts are downloaded.

    Raises:
        ReadError: If the store cannot be read, or the URL has no files although `new` is False.
        ConfigError: If the store is unknown, or its package is not installed.
        OutputError: If the disk is full, or the folder of the local copy, or the list of its files,
            cannot be written.
    """
    if not is_url(place):
        return Path(place)
    # the folder of this URL in the cache
    base = download_folder() / digest_of(place)[:16]
    # the local folder has the name of the folder in the store, which readers may need
    copy = base / (PurePosixPath(place).name or "data")
    states = base / _STATES
    uploads = base / _UPLOADS
    with output_errors(base):
        base.mkdir(mode=0o700, parents=True, exist_ok=True)  # other users must not read the scans
        copy.mkdir(exist_ok=True)
    with (
        FileLock(base / _LOCK),
        _store_errors(f"{place}: the folder cannot be downloaded", ReadError),
    ):
        # list the store, and remove local files that it no longer contains
        system, root = _open_file_system(place)
        states_before = read_json(states) if states.is_file() else {}
        changes = uploads.read_text("utf-8").splitlines() if uploads.is_file() else []
        listed = _list_files(system, root, is_encoded=place.startswith(_WEB))
        # other local files may be those of a process that has not uploaded them yet
        known_files = _list_known(states_before, changes)
        for name in known_files - listed.keys():
            (copy / name).unlink(missing_ok=True)
        # compare the states of the files: `current` need no download
        current: dict[str, str] = {}
        wanted: dict[str, _StoredFile] = {}
        for name, stored in listed.items():
            is_unchanged = name in known_files and states_before.get(name) == stored.state
            if is_unchanged and stored.state and (copy / name).is_file():
                current[name] = stored.state
            elif name.endswith(endings):
                wanted[name] = stored
        if wanted:
            write_json(states, current)  # so that an interrupted download is repeated
            _fetch(system, wanted, copy)
        for name, stored in wanted.items():
            _set_time(copy / name, stored.state or digest_of(copy / name))
            current[name] = stored.state
        # the local copy of another file may be older, so that it has no state
        write_json(states, {**dict.fromkeys(listed, ""), **current})
        uploads.unlink(missing_ok=True)
    if not listed and not new:
        raise ReadError(f"{place}: there are no files at this URL. Check its spelling.")
    return copy


def stored_names(copy: Path, place: str) -> set[str]:
    """Return the relative paths of all files at a URL, as listed by the last `download`.

    Args:
        copy: The local copy that `download` returned.
        place: The URL. For a local path, the result is empty.
    """
    states = copy.parent / _STATES
    return set(read_json(states)) if is_url(place) and states.is_file() else set()


def _list_files(system: Any, root: str, *, is_encoded: bool) -> dict[str, _StoredFile]:
    """List the files of a folder in a store.

    Args:
        system: The fsspec file system of the store.
        root: The folder in the store.
        is_encoded: True if the store lists names in percent-encoding, such as `P%201.nii.gz`.

    Returns:
        The files by their paths below the folder, which are also their paths in the local copy.
        Empty if the folder does not exist.

    Raises:
        ValueError: If a path leads out of the folder or cannot be decoded, or two files have the
            same path.
    """
    listed: dict[str, _StoredFile] = {}
    info_by_path: dict[str, Mapping[str, Any]] = {}
    with suppress(FileNotFoundError):
        info_by_path = system.find(root, detail=True)
    folder = root.rstrip("/")
    for path, info in info_by_path.items():
        if folder and not path.startswith(f"{folder}/"):
            raise ValueError(f"{path} is not in a folder at this URL")
        name = path.removeprefix(f"{folder}/")
        if is_encoded:
            name = _decode_name(name)
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise ValueError("a file name leads out of the folder")
        if name in listed:
            raise ValueError(f"two files have the name {name!r}")
        state = _describe_file(info)
        if not state:  # a listing by HTTP has only names, but each file may have a date
            with suppress(FileNotFoundError):  # downloading it reports the error
                state = _describe_file(system.info(path))
        listed[name] = _StoredFile(path, state)
    return listed


def _decode_name(encoded: str) -> str:
    """Decode a relative path in percent-encoding, such as `a/P%201.nii.gz` to `a/P 1.nii.gz`.

    Raise `ValueError` for an encoded slash or backslash, which could lead the local path out of the
    folder, and for a zero byte, which no path can contain. The caller rejects `..`.
    """
    parts = [unquote(part) for part in encoded.split("/")]
    for part in parts:
        if any(character in part for character in "/\\\0"):
            raise ValueError(f"the file name {part!r} contains a slash or a zero byte")
    return "/".join(parts)


def _describe_file(info: Mapping[str, Any]) -> str:
    """Return a text of size, digests and dates of a file, which changes with its content.

    `info` is what fsspec knows about the file. Return "" if it has neither a digest nor a date.
    """
    values = [info[key] for key in _KEYS if info.get(key) is not None]
    return " ".join(map(str, [info.get("size"), *values])) if values else ""


def _fetch(system: Any, files: Mapping[str, _StoredFile], copy: Path) -> None:
    """Download several files of a store at once.

    Args:
        system: The fsspec file system of the store.
        files: The files by their paths below `copy`.
        copy: The folder of the local copy.
    """
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
    system.get([stored.path for stored in files.values()], [str(copy / name) for name in files])


def _set_time(path: Path, state: str) -> None:
    """Set the modification time of a file to a number computed from its state in the store.

    Copies of the same content then have the same time on every machine, so that caches that compare
    modification times stay valid. The number is not a real time.
    """
    digits = digest_of(state)
    nanoseconds = int(digits[:15], 16)  # 60 bits, because a time is a signed number of 64 bits
    os.utime(path, ns=(nanoseconds, nanoseconds))


def upload(paths: Iterable[Path], copy: Path, place: str) -> None:
    """Upload files of a local copy, such as results, to the store. For a local path, do nothing.

    Args:
        paths: Files in `copy`. A file that does not exist locally is removed from the store.
        copy: The path that `download` returned for `place`.
        place: The URL, or a local path.

    Raises:
        OutputError: If the store cannot be opened or refuses a file.
        ConfigError: If the store is unknown, or its package is not installed.
    """
    if not is_url(place):
        return
    with _store_errors(f"{place}: the store cannot be opened", OutputError):
        system, root = _open_file_system(place)
    for path in paths:
        target = f"{root.rstrip('/')}/{path.relative_to(copy).as_posix()}"
        with _store_errors(f"{place}: {path.name} cannot be uploaded", OutputError):
            if path.is_file():
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                system.put_file(str(path), target)
                _note_change(path, copy, mark="")
            else:
                if system.exists(target):
                    system.rm_file(target)
                _note_change(path, copy, mark=_REMOVED)


def _note_change(path: Path, copy: Path, mark: str) -> None:
    """Record in a text file that `path` was uploaded to the store or removed from it.

    The next `download` reads this record, because the list of files that the last `download` stored
    is older:

    - Uploaded: if the store no longer contains the file, `download` removes the local file.
    - Removed: the store does not contain the file, but a program may have written a new local file
      of this name since. `download` does not remove this local file.

    Args:
        path: The file in the local copy.
        copy: The folder of the local copy.
        mark: `_REMOVED` for a removed file, "" for an uploaded file.
    """
    with (
        FileLock(copy.parent / _LOCK),
        (copy.parent / _UPLOADS).open("a", encoding="utf-8") as file,
    ):
        file.write(f"{mark}{path.relative_to(copy).as_posix()}\n")


def _list_known(before: Iterable[str], changes: Iterable[str]) -> set[str]:
    """Return the paths in the store after the last download and this program's later changes.

    Args:
        before: The paths in the store at the last download.
        changes: The uploads and removals since then, as lines of `_note_change`.
    """
    known = set(before)
    for change in changes:
        name = change.removeprefix(_REMOVED)
        if name == change:  # without the mark: uploaded
            known.add(name)
        else:
            known.discard(name)
    return known


@contextmanager
def _store_errors(failure: str, kind: type[LesionsegError]) -> Iterator[None]:
    """Convert any error of a store within the context into an error of lesionseg with advice.

    An error of lesionseg is raised again. A full local disk becomes an `OutputError`.

    Args:
        failure: The beginning of the message: what failed.
        kind: The type of the error that is raised.
    """
    try:
        yield
    except LesionsegError:
        raise
    except Exception as error:  # stores raise errors of their own packages
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            raise OutputError(
                f"{failure}: {error.strerror}. Free space on the disk of {download_folder()}."
            ) from error
        raise kind(
            f"{failure} ({error!r}). Check the URL, the connection, your permissions and the "
            "settings of the store."
        ) from error


def _open_file_system(place: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path of the folder in this file system.

    Raises:
        ConfigError: If the scheme of the URL, such as `s3`, is unknown, or the package for it is
            missing. The message says how to install it.
    """
    try:
        from fsspec.core import url_to_fs

        # no cache of listings, because other processes write too
        system, root = url_to_fs(place, use_listings_cache=False)
        system.invalidate_cache()  # `hf://` ignores the argument above
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(place.partition("://")[0])
        if extra is None and "'fsspec'" in str(error):
            extra = "remote"
        # otherwise fsspec states the package of the store, such as gcsfs
        advice = "Install the stated package."
        if isinstance(error, ValueError):
            advice = "Correct the URL."
        elif extra is not None:
            advice = f"Run {pip_install(extra)}."
        raise ConfigError(f"{place}: the store cannot be used ({error}). {advice}") from error
    return system, root
