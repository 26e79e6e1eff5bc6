"""Datasets and results at a URL: downloading files before reading, and uploading results.

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
    """A file of a store.

    Attributes:
        path: The path by which the store finds it, for a web server its URL.
        state: A text that changes with the content of the file. It is empty if the store states
            neither a digest nor a date.
    """

    path: str
    state: str


def download(place: str, *, new: bool = False, endings: str | tuple[str, ...] = "") -> Path:
    """Download a folder at a URL into a local copy in `download_folder`, and return its path.

    Files that have not changed in the store are not downloaded again, if it states digests or
    dates. Downloaded and uploaded files that the store no longer contains are removed. Other local
    files stay. The modification time of a download is a number computed from its state.
    `stored_names` returns the names of all files of the store.

    Args:
        place: A URL, or a path, which is returned as it is.
        new: True if the folder may have no files yet.
        endings: Only files whose name has one of these endings are downloaded.

    Raises:
        ReadError: If the store cannot be read, or the URL has no files although `new` is False.
        ConfigError: If the store is unknown, or its package is not installed.
        OutputError: If the disk is full, or the folder of the local copy, or the list of its files,
            cannot be written.
    """
    if not is_url(place):
        return Path(place)
    base = download_folder() / digest_of(place)[:16]
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
        system, root = _open_file_system(place)
        before = read_json(states) if states.is_file() else {}
        changes = uploads.read_text("utf-8").splitlines() if uploads.is_file() else []
        listed = _list_files(system, root, is_encoded=place.startswith(_WEB))
        # other local files may be those of a process that has not uploaded them yet
        known = _list_known(before, changes)
        for name in known - listed.keys():
            (copy / name).unlink(missing_ok=True)
        current: dict[str, str] = {}
        wanted: dict[str, _StoredFile] = {}
        for name, stored in listed.items():
            is_unchanged = name in known and before.get(name) == stored.state
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
    """Return the names of the files that a URL had when `download` returned `copy`.

    Return an empty set if `place` is a path.
    """
    states = copy.parent / _STATES
    return set(read_json(states)) if is_url(place) and states.is_file() else set()


def _list_files(system: Any, root: str, *, is_encoded: bool) -> dict[str, _StoredFile]:
    """Return the files of a store by their paths in the local copy. A missing folder has none.

    Args:
        system: The file system of the store.
        root: The folder in the store.
        is_encoded: True if the store states names in percent-encoding, such as `P%201.nii.gz`.

    Raises:
        ValueError: If the path of a file is not located in the folder or cannot be decoded, or two
            files have the same one.
    """
    listed: dict[str, _StoredFile] = {}
    found: dict[str, Mapping[str, Any]] = {}
    with suppress(FileNotFoundError):
        found = system.find(root, detail=True)
    folder = root.rstrip("/")
    for path, info in found.items():
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
    """Decode a relative path in percent-encoding.

    Raise `ValueError` for an encoded separator or zero byte.
    """
    parts = [unquote(part) for part in encoded.split("/")]
    for part in parts:
        if any(character in part for character in "/\\\0"):
            raise ValueError(f"the file name {part!r} contains a slash or a zero byte")
    return "/".join(parts)


def _describe_file(info: Mapping[str, Any]) -> str:
    """Return size, digests and dates of a file as a text, or "" without digest and date."""
    values = [info[key] for key in _KEYS if info.get(key) is not None]
    return " ".join(map(str, [info.get("size"), *values])) if values else ""


def _fetch(system: Any, files: Mapping[str, _StoredFile], copy: Path) -> None:
    """Download several files at once. The keys of `files` are their paths below `copy`."""
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
    system.get([stored.path for stored in files.values()], [str(copy / name) for name in files])


def _set_time(path: Path, state: str) -> None:
    """Set the modification time to a number computed from `state`, a text.

    Copies of the same content then have the same time on every machine. Caches that compare times
    therefore stay valid.
    """
    digits = digest_of(state)
    nanoseconds = int(digits[:15], 16)  # 60 bits, because a time is a signed number of 64 bits
    os.utime(path, ns=(nanoseconds, nanoseconds))


def upload(paths: Iterable[Path], copy: Path, place: str) -> None:
    """Upload files of a local copy. Do nothing if `place` is a path.

    Args:
        paths: Files in `copy`. A file that does not exist is removed from the store.
        copy: The path that `download` returned for `place`.
        place: The URL.

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
                _note_change(path, copy, "")
            else:
                if system.exists(target):
                    system.rm_file(target)
                _note_change(path, copy, _REMOVED)


def _note_change(path: Path, copy: Path, mark: str) -> None:
    """Record that a file was uploaded or, with the mark `_REMOVED`, removed from the store.

    `download` then removes the local copy of an uploaded file if the store loses it, but keeps a
    new local file of a removed one.
    """
    with (
        FileLock(copy.parent / _LOCK),
        (copy.parent / _UPLOADS).open("a", encoding="utf-8") as file,
    ):
        file.write(f"{mark}{path.relative_to(copy).as_posix()}\n")


def _list_known(before: Iterable[str], changes: Iterable[str]) -> set[str]:
    """Return the paths that the store had after the last download and the changes since then.

    `before` are the paths of the last download, `changes` the lines of `_note_change`.
    """
    known = set(before)
    for change in changes:
        name = change.removeprefix(_REMOVED)
        if name == change:
            known.add(name)
        else:
            known.discard(name)
    return known


@contextmanager
def _store_errors(failure: str, kind: type[LesionsegError]) -> Iterator[None]:
    """Convert any error of a store into `kind`, and that of a full disk into `OutputError`.

    The errors of lesionseg stay as they are. `failure` is the beginning of the message.
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
    """Return the file system of a URL and the path within it.

    Raises:
        ConfigError: If the beginning of the URL is unknown, or a package is missing.
    """
    try:
        from fsspec.core import url_to_fs

        # no cache of listings, because other processes write too
        system, root = url_to_fs(place, use_listings_cache=False)
        system.invalidate_cache()  # that of `hf://` has no setting
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
