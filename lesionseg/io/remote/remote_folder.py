"""Folders at a URL: object stores, web servers and whatever else fsspec knows.

`s3://bucket/folder`, `gs://…`, `http://…`, `memory://…`, `file://…`. Endpoint, key and region
come from the store's own settings: fsspec's `~/.config/fsspec/*.json`, the
variables `FSSPEC_S3_ENDPOINT_URL` and the like, or the cloud's usual files.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EBUSY
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.errors import ConfigError, OutputError, ReadError, pip_install
from lesionseg.io.atomic import create_file

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
        with self._asking("") as (system, root):
            try:
                infos = system.find(root, detail=True)
            except FileNotFoundError:
                return []
        prefix = root.rstrip("/") + "/"
        files = [
            RemoteFile(path.removeprefix(prefix), info.get("size"), _state(info))
            for path, info in infos.items()
            if path.startswith(prefix)
        ]
        return sorted(files, key=lambda file: file.path)

    def look(self, path: str) -> RemoteFile:
        """Size and state of one file; raises `ReadError` when it is not there."""
        with self._asking(path) as (system, place):
            info = system.info(place)
        return RemoteFile(path, info.get("size"), _state(info))

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file's bytes, or some of them; raises `ReadError` when they are not there."""
        with self._asking(path) as (system, place):
            content: bytes = system.cat_file(place, start=start, end=stop)
        if start is not None and stop is not None and len(content) > stop - start:
            content = content[start:stop]  # a web server that knows no ranges sends the whole
        return content

    def get(self, targets: Mapping[str, Path]) -> None:
        """Copy files to local paths, many at once; raises `ReadError` when one is not there."""
        shown = next(iter(targets)) if len(targets) == 1 else ""
        with self._asking(shown) as (system, place):
            root = place.removesuffix(shown)
            places = [_below(root, path) for path in targets]
            system.get(places, [str(target) for target in targets.values()])

    def put(self, path: str, source: Path) -> None:
        """Copy a local file there; readers see the whole of it or nothing.

        Object stores show an object when its upload has ended; elsewhere the file is moved into
        place. Raises `OutputError`.
        """
        with self._asking(path, writing=True) as (system, place):
            if not _on_disk(system):
                system.put_file(str(source), place)
                return
            system.put_file(str(source), f"{place}.partial")
            Path(f"{place}.partial").replace(place)

    def create(self, path: str, content: bytes) -> bool:
        """Write a small file unless there is one; whether it was written.

        At once and only one of several callers succeeds where the store can do that (local disks,
        S3); elsewhere two may in the same moment. Raises `OutputError`.
        """
        with self._asking(path, writing=True) as (system, place):
            if _on_disk(system):
                return create_file(Path(place), content)
            try:
                system.pipe_file(place, content, mode="create")
            except FileExistsError:
                return False
        return True

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when it is not there. Raises `OutputError`."""
        with self._asking(path, writing=True) as (system, place), suppress(FileNotFoundError):
            system.rm_file(place)

    @contextmanager
    def _asking(
        self, path: str, *, writing: bool = False
    ) -> "Iterator[tuple[AbstractFileSystem, str]]":
        """The store and the file's place in it; what the store raises becomes our errors."""
        system, root = self._open()
        place = _below(root, path) if path else root
        if writing and _on_disk(system):
            system.makedirs(place.rpartition("/")[0], exist_ok=True)
        try:
            yield system, place
        except Exception as error:  # stores raise errors of their own packages
            where = f"{self.url}/{path}" if path else self.url
            if isinstance(error, FileNotFoundError) and not writing:
                raise ReadError("There is no such file.", where=where) from error
            kind, what = (OutputError, "written to") if writing else (ReadError, "read from")
            raise kind(
                f"The file cannot be {what} its store.",
                where=where,
                seen=repr(error),
                remedy=_remedy(error, writing),
            ) from error

    def _open(self) -> "tuple[AbstractFileSystem, str]":
        try:
            from fsspec.core import url_to_fs

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


def _on_disk(system: "AbstractFileSystem") -> bool:
    return "file" in system.protocol


def _state(info: Mapping[str, Any]) -> str:
    for names in (_VERSIONS, _DATES):
        for name in names:
            if info.get(name):
                return f"{name} {info[name]}"
    return ""


def _remedy(error: Exception, writing: bool) -> str:
    if "Credentials" in type(error).__name__:
        return (
            "there is no key for this store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "what else your cloud reads. FSSPEC_S3_ANON=true reads what is open to everybody."
        )
    if isinstance(error, PermissionError):
        return "the store does not let you: ask its owner, or use another key."
    if getattr(error, "errno", None) == EBUSY:
        return "the store wants fewer requests: start again later, with fewer workers."
    also = "web servers are for reading only." if writing else "look at the network."
    return f"check the address and who may go there; {also}"
