"""Folders at a URL: object stores, web servers and whatever else fsspec knows.

`s3://bucket/folder`, `gs://…`, `http://…`, `memory://…`, `file://…`. Endpoint, key and region
come from the store's own settings: fsspec's `~/.config/fsspec/*.json`, the
variables `FSSPEC_S3_ENDPOINT_URL` and the like, or the cloud's usual files.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.errors import ConfigError, OutputError, ReadError, pip_install

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# what stores call the number or date that changes with a file's content, the best first
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest")
_DATES = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")


@dataclass(frozen=True)
class RemoteFile:
    """What a store says of a file: its path below the folder, its size (None: unknown), its state.

    `state` changes when the content does; empty where the store does not say.
    """

    path: str
    size: int | None
    state: str


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL. It travels as text: each process makes connections of its own.

    Raises `ConfigError` on first use when fsspec, or what it needs for the store, is missing.
    """

    url: str

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}")

    def list(self) -> list[RemoteFile]:
        """All files below, in order of path; none where there is no such folder."""
        system, root = self._open()
        prefix = root.rstrip("/") + "/"
        with _reading(self.url):
            try:
                infos = system.find(root, detail=True)
            except FileNotFoundError:
                return []
        files = [
            RemoteFile(path.removeprefix(prefix), info.get("size"), _state(info))
            for path, info in infos.items()
            if path.startswith(prefix)
        ]
        return sorted(files, key=lambda file: file.path)

    def look(self, path: str) -> RemoteFile:
        """Size and state of one file; raises `ReadError` when it is not there."""
        system, root = self._open()
        with _reading(f"{self.url}/{path}"):
            info = system.info(_below(root, path))
        return RemoteFile(path, info.get("size"), _state(info))

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file's bytes, or some of them; raises `ReadError` when they are not there."""
        system, root = self._open()
        with _reading(f"{self.url}/{path}"):
            content: bytes = system.cat_file(_below(root, path), start=start, end=stop)
        if start is not None and stop is not None and len(content) > stop - start:
            content = content[start:stop]  # a web server that knows no ranges sends the whole
        return content

    def get(self, path: str, target: Path) -> None:
        """Copy a file to a local path; raises `ReadError` when it is not there."""
        system, root = self._open()
        with _reading(f"{self.url}/{path}"):
            system.get_file(_below(root, path), str(target))

    def put(self, path: str, source: Path) -> None:
        """Copy a local file there; readers see the whole of it or nothing.

        Object stores show an object when its upload has ended; elsewhere the file is moved into
        place. Raises `OutputError`.
        """
        system, root = self._open()
        target = _below(root, path)
        with _writing(f"{self.url}/{path}"):
            if "file" not in _protocols(system):
                system.put_file(str(source), target)
                return
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(source), f"{target}.partial")
            Path(f"{target}.partial").replace(target)

    def create(self, path: str, content: bytes) -> bool:
        """Write a small file unless there is one; whether it was written.

        At once and only one of several callers succeeds where the store can do that (local disks,
        S3); elsewhere two may in the same moment.
        """
        system, root = self._open()
        target = _below(root, path)
        with _writing(f"{self.url}/{path}"):
            try:
                if "file" in _protocols(system):
                    system.makedirs(target.rpartition("/")[0], exist_ok=True)
                    with Path(target).open("xb") as stream:
                        stream.write(content)
                else:
                    system.pipe_file(target, content, mode="create")
            except FileExistsError:
                return False
        return True

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        system, root = self._open()
        with _writing(f"{self.url}/{path}"):
            try:
                system.rm_file(_below(root, path))
            except FileNotFoundError:
                return

    def _open(self) -> "tuple[AbstractFileSystem, str]":
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ConfigError(
                "Folders at a URL need the package fsspec.",
                where=self.url,
                remedy=pip_install("remote"),
            ) from error
        try:
            # listings change while others write: none is remembered
            system, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                "The kind of store is not known, or its package is missing.",
                where=self.url,
                seen=error,
                remedy=f"{pip_install('remote')}, or the package that the message names.",
            ) from error
        return system, root


def is_url(place: str) -> bool:
    """Whether it is a URL and no path.

    >>> is_url("s3://bucket/set"), is_url("data/set"), is_url("C:/set")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][\w+.-]*://", place) is not None


def _below(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}"


def _protocols(system: "AbstractFileSystem") -> tuple[str, ...]:
    protocol = system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _state(info: Mapping[str, Any]) -> str:
    for names in (_VERSIONS, _DATES):
        for name in names:
            if info.get(name):
                return f"{name} {info[name]}"
    return ""


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ReadError("There is no such file.", where=url) from error
    except Exception as error:  # stores raise errors of their own packages
        raise ReadError(
            "The file cannot be read from its store.",
            where=url,
            seen=repr(error),
            remedy="check the address, the network and who may read there.",
        ) from error


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # stores raise errors of their own packages
        raise OutputError(
            "The file cannot be written to its store.",
            where=url,
            seen=repr(error),
            remedy="check that it may be written to; web servers are for reading only.",
        ) from error
