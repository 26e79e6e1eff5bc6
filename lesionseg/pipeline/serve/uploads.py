"""What clients send, in temporary folders, under names that say nothing of the patient."""

import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.formats.volumes import case_suffix, is_image_file

CASE = "scan"
_PIECE = 2**20


@dataclass(frozen=True)
class Upload:
    """One file of a request; of its name only the suffix is used."""

    name: str
    content: BinaryIO


def store(uploads: Sequence[Upload], folder: Path, max_bytes: int) -> None:
    """Write one scan to `folder`: one file, one file per channel, or a DICOM series.

    Several files that are no images by their names are slices, and so is what a zip holds. Raises
    `ReadError` when a zip cannot be read, `ContentError` when it holds more than `max_bytes`.
    """
    first = Path(uploads[0].name) if uploads else Path()
    if len(uploads) == 1 and first.suffix.lower() == ".zip":
        _unzip(uploads[0].content, folder / CASE, max_bytes)
        return
    channels = all(is_image_file(Path(u.name)) and not _is_slice(u.name) for u in uploads)
    for number, upload in enumerate(uploads):
        suffix = case_suffix(Path(upload.name)).lower()
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


def _unzip(content: BinaryIO, folder: Path, max_bytes: int) -> None:
    """Every file of a zip, renamed; counted while it is unpacked, whatever its directory says."""
    folder.mkdir(parents=True)
    remaining = max_bytes
    try:
        with zipfile.ZipFile(content) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            for number, member in enumerate(members):
                with (
                    archive.open(member) as source,
                    (folder / f"{number:05d}.dcm").open("wb") as to,
                ):
                    while piece := source.read(_PIECE):
                        remaining -= len(piece)
                        if remaining < 0:
                            raise ContentError(
                                "The zip holds more than may be sent.",
                                expected=f"at most {max_bytes / 2**20:.0f} MB unpacked",
                            )
                        to.write(piece)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ReadError("The zip cannot be read.", seen=str(error)) from error


class Shelf:
    """Scans that stay for further requests, by key: few, for a while, in temporary folders.

    At most `size` are kept, the one asked for longest ago goes first; none stays longer than
    `seconds` after it was last asked for, if somebody calls `sweep` now and then (every other
    method does). Keys live in memory alone.
    """

    def __init__(self, size: int = 8, seconds: float = 3600.0) -> None:
        self._size, self._seconds = size, seconds
        self._folders: dict[str, tempfile.TemporaryDirectory[str]] = {}
        self._touched: dict[str, float] = {}
        self._lock = threading.Lock()

    def put(self, key: str, uploads: Sequence[Upload], max_bytes: int) -> None:
        """Keep a scan under `key`, in place of an earlier one."""
        folder = tempfile.TemporaryDirectory(prefix="lesionseg-", ignore_cleanup_errors=True)
        try:
            store(uploads, Path(folder.name), max_bytes)
        except BaseException:
            folder.cleanup()
            raise
        self.sweep()
        with self._lock:
            self._drop(key)
            self._folders[key], self._touched[key] = folder, time.monotonic()
            while len(self._folders) > self._size:
                self._drop(min(self._touched, key=lambda k: self._touched[k]))

    def get(self, key: str) -> Path | None:
        """The folder of a scan; None when there is none, or no longer."""
        self.sweep()
        with self._lock:
            if key not in self._folders:
                return None
            self._touched[key] = time.monotonic()
            return Path(self._folders[key].name)

    def sweep(self) -> None:
        """Forget what nobody has asked for in a long time."""
        now = time.monotonic()
        with self._lock:
            for old in [k for k, t in self._touched.items() if now - t > self._seconds]:
                self._drop(old)

    def remove(self, key: str) -> bool:
        """Forget a scan; whether there was one."""
        self.sweep()
        with self._lock:
            return self._drop(key)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            for key in list(self._folders):
                self._drop(key)

    def _drop(self, key: str) -> bool:
        folder = self._folders.pop(key, None)
        self._touched.pop(key, None)
        if folder is not None:
            folder.cleanup()
        return folder is not None
