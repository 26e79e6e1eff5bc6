"""Uploaded scans in temporary folders."""

import asyncio
import errno
import io
import re
import shutil
import struct
import tempfile
import threading
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lesionseg.errors import ContentError, OutputError, ReadError
from lesionseg.io.folder_locks import locked_folder
from lesionseg.io.volumes import case_suffix, is_image_file

CASE = "scan"
_PIECE = 2**20
_HOME = "lesionseg-serve-"
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")
_END = struct.Struct("<4s4H2LH")  # the last record of a zip
_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError)


@dataclass(frozen=True)
class ServeLimits:
    """What requests may cost.

    Args:
        max_bytes: of one request, and of what its zip holds.
        max_files: of one request, and of its zip.
        max_waiting: uploads and scans that are taken at once, others get status 503; and scans
            that stay for further requests.
        request_seconds: to send a request, and again to answer it.
    """

    max_bytes: int = 2**30
    max_files: int = 5000
    max_waiting: int = 32
    request_seconds: float = 900.0


@contextmanager
def home() -> Iterator[Path]:
    """The folder of a server's temporary files; those of servers that were killed leave first.

    A folder whose lock a living server holds stays.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_HOME}*"):
        with suppress(OutputError, OSError):
            if not old.is_symlink():
                with locked_folder(old):
                    shutil.rmtree(old, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_HOME, ignore_cleanup_errors=True) as folder,
        locked_folder(Path(folder)),
    ):
        yield Path(folder)


@asynccontextmanager
async def scratch(home: Path | None) -> AsyncIterator[Path]:
    """A folder for one scan, removed without holding up other requests."""
    folder = await asyncio.to_thread(tempfile.mkdtemp, dir=home)
    try:
        yield Path(folder)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@dataclass(frozen=True)
class Upload:
    """One file of a request; of its name only the suffix is used."""

    name: str
    content: BinaryIO


def store(uploads: Sequence[Upload], folder: Path, limits: ServeLimits) -> None:
    """Write one scan to `folder`: one file, one file per channel, or a DICOM series.

    Several files that are no images by their names are slices, and so is what a zip holds. Raises
    `ReadError` when a zip cannot be read, `ContentError` when it holds more than `limits` or
    nothing was sent, `OutputError` when the disk is full.
    """
    if not uploads:
        raise ContentError("No file was sent.", expected="a form with the scan's file or files")
    try:
        _store(uploads, folder, limits)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError("The server's disk is full.") from error
        raise ReadError("The upload cannot be read.", seen=error.strerror) from error


def _store(uploads: Sequence[Upload], folder: Path, limits: ServeLimits) -> None:
    if len(uploads) == 1 and uploads[0].name.lower().endswith(".zip"):
        _unzip(uploads[0].content, folder / CASE, limits)
        return
    channels = all(is_image_file(Path(u.name)) and not _is_slice(u.name) for u in uploads)
    for number, upload in enumerate(uploads):
        suffix = case_suffix(Path(upload.name)).lower()
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        if len(uploads) == 1:
            path = folder / f"{CASE}{suffix}"
        elif channels:
            path = folder / f"{CASE}_{number:04d}{suffix}"
        else:
            path = folder / CASE / f"{number:05d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(upload.content, file, _PIECE)


def _is_slice(name: str) -> bool:
    return name.lower().endswith((".dcm", ".dicom", ".ima"))


def _unzip(content: BinaryIO, folder: Path, limits: ServeLimits) -> None:
    """Every file of a zip, renamed. `zipfile` gives no more of a file than the directory says."""
    folder.mkdir(parents=True)
    try:
        _check_directory(content, limits)
        with zipfile.ZipFile(content) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            _check_members(members, limits)
            for number, member in enumerate(members):
                path = folder / f"{number:05d}.dcm"
                with archive.open(member) as source, path.open("wb") as to:
                    shutil.copyfileobj(source, to, _PIECE)
    except (*_BROKEN_ZIP, zlib.error) as error:
        raise ReadError("The zip cannot be read.", seen=str(error)) from error


def _check_directory(content: BinaryIO, limits: ServeLimits) -> None:
    """`zipfile` reads the whole directory into memory: its size is asked for first."""
    content.seek(-min(content.seek(0, io.SEEK_END), _END.size + 2**16), io.SEEK_END)
    tail = content.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile("it has no end")
    if _END.unpack_from(tail, at)[5] > 2**10 * limits.max_files:
        raise _too_much(limits)


def _check_members(members: Sequence[zipfile.ZipInfo], limits: ServeLimits) -> None:
    n_bytes = sum(m.file_size for m in members)
    if len(members) > limits.max_files or n_bytes > limits.max_bytes:
        raise _too_much(limits)
    # others unpack without a bound
    if {m.compress_type for m in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ReadError("The zip is packed in a way that is not read.", expected="deflate")


def _too_much(limits: ServeLimits) -> ContentError:
    most = f"at most {limits.max_files} files and {limits.max_bytes / 2**20:g} MB unpacked"
    return ContentError("The zip holds more than may be sent.", expected=most)


class UploadStore:
    """Scans that stay for further requests, by key: few, for a while, in temporary folders.

    At most `size` are kept, the one asked for longest ago goes first; none stays longer than
    `seconds` after it was last asked for, if somebody calls `sweep` now and then (every other
    method does). Keys live in memory alone.
    """

    def __init__(self, size: int = 8, seconds: float = 3600.0) -> None:
        self._size, self._seconds = size, seconds
        # asked for longest ago first
        self._kept: OrderedDict[str, tuple[tempfile.TemporaryDirectory[str], float]] = OrderedDict()
        self._lock = threading.Lock()
        self.home: Path | None = None  # None: the system's temporary folder

    def put(self, key: str, uploads: Sequence[Upload], limits: ServeLimits) -> None:
        """Keep a scan under `key`, in place of an earlier one."""
        folder = tempfile.TemporaryDirectory(dir=self.home, ignore_cleanup_errors=True)
        try:
            store(uploads, Path(folder.name), limits)
        except BaseException:
            folder.cleanup()
            raise
        self.sweep()
        with self._lock:
            self._drop(key)
            self._kept[key] = folder, time.monotonic()
            while len(self._kept) > self._size:
                self._drop(next(iter(self._kept)))

    def get(self, key: str) -> Path | None:
        """The folder of a scan; None when there is none, or no longer."""
        self.sweep()
        with self._lock:
            if key not in self._kept:
                return None
            folder, _ = self._kept.pop(key)
            self._kept[key] = folder, time.monotonic()
            return Path(folder.name)

    def sweep(self) -> None:
        """Forget what nobody has asked for in a long time."""
        now = time.monotonic()
        with self._lock:
            for old in [k for k, (_, t) in self._kept.items() if now - t > self._seconds]:
                self._drop(old)

    def remove(self, key: str) -> bool:
        """Forget a scan; whether there was one."""
        self.sweep()
        with self._lock:
            return self._drop(key)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            for key in list(self._kept):
                self._drop(key)

    def _drop(self, key: str) -> bool:
        if key not in self._kept:
            return False
        self._kept.pop(key)[0].cleanup()
        return True
