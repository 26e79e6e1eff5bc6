"""Uploaded scans in a temporary folder, the prediction of one, and the answer to the client."""

import io
import re
import shutil
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lesionseg.errors import ContentError, DatasetError, LesionsegError, OutputError, ReadError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import locked_folder
from lesionseg.io.formats.volumes import case_suffix, is_image_file, result_suffix
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import write_prediction
from lesionseg.pipeline.serve.gate import ServeLimits

CASE = "scan"
_PIECE = 2**20
_HOME = "lesionseg-serve-"
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    zlib.error,
)


@contextmanager
def home() -> Iterator[Path]:
    """The folder of a server's temporary files; those of servers that were killed leave first.

    A folder whose lock a living server holds stays.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_HOME}*"):
        with suppress(OutputError, OSError):
            if old.is_symlink():
                continue
            with locked_folder(old):
                shutil.rmtree(old, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_HOME, ignore_cleanup_errors=True) as folder,
        locked_folder(Path(folder)),
    ):
        yield Path(folder)


@dataclass(frozen=True)
class Upload:
    """One file of a request; of its name only the suffix is used."""

    name: str
    content: BinaryIO


def store(uploads: Sequence[Upload], folder: Path, limits: ServeLimits) -> None:
    """Write one scan to `folder`: one file, one file per channel, or a DICOM series.

    Several files that are no images by their names are slices, and so is what a zip holds. Raises
    `ReadError` when a zip cannot be read, `ContentError` when it holds more than `limits`.
    """
    first = Path(uploads[0].name) if uploads else Path()
    if len(uploads) == 1 and first.suffix.lower() == ".zip":
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
    """Every file of a zip, renamed; counted while it is unpacked, whatever its directory says."""
    folder.mkdir(parents=True)
    remaining = limits.max_bytes
    try:
        with zipfile.ZipFile(content) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if len(members) > limits.max_files:
                raise ContentError(
                    "The zip holds too many files.",
                    seen=len(members),
                    expected=f"at most {limits.max_files}",
                )
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
                                expected=f"at most {limits.max_bytes / 2**20:.0f} MB unpacked",
                            )
                        to.write(piece)
    except _BROKEN_ZIP as error:
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


@dataclass(frozen=True)
class Answer:
    """The files of a prediction by name, `scan_mask.nii.gz` and so on, and what was counted."""

    files: Mapping[str, bytes]
    n_candidates: int
    n_accepted: int

    def file(self, kind: str) -> tuple[str, bytes]:
        """Name and content of one file: `mask`, `instances` or `candidates`."""
        name = next(name for name in self.files if name.startswith(f"{CASE}_{kind}"))
        return name, self.files[name]

    def zipped(self) -> bytes:
        """All files as a zip."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in self.files.items():
                archive.writestr(name, content)
        return buffer.getvalue()


class Answerer:
    """Predicts scans one at a time, whoever asks.

    What goes wrong with a scan is raised as a `LesionsegError` that names no file of the server's.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._lock = threading.Lock()

    def answer(
        self, folder: Path, *, suffix: str | None = None, halt: threading.Event | None = None
    ) -> Answer:
        """Predict the one scan in `folder`; `suffix` is the masks' format, else the scan's own.

        `halt` ends it after the next batch of tiles with `ReadError`.
        """
        try:
            return self._answer(folder, suffix, halt or threading.Event())
        except LesionsegError as error:
            raise _without_path(error, folder) from error
        except MemoryError as error:
            raise ContentError("The scan needs more memory than the server has.") from error
        except Exception as error:  # a damaged file may make any library raise anything
            raise ReadError("The scan cannot be predicted.", seen=type(error).__name__) from error

    def _answer(self, folder: Path, suffix: str | None, halt: threading.Event) -> Answer:
        plan = self.predictor.plan
        cases = find_images(folder, len(plan.channel_names))
        if len(cases) != 1:
            raise DatasetError("Send one scan at a time.", seen=f"{len(cases)} scans")
        files = cases[0]
        with self._lock:
            _go_on(halt)
            volume = self.predictor.scans.read(files)
            _go_on(halt)
            prediction = self.predictor.predict_volume(
                volume, CASE, on_tile=lambda _done, _of: _go_on(halt)
            )
        chosen = suffix or result_suffix(files.images[0], plan.dims)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as output:
            write_prediction(Path(output), prediction, suffix=chosen, like=files.images[0])
            written = {p.name: p.read_bytes() for p in sorted(Path(output).iterdir())}
        accepted = sum(c.accepted for c in prediction.candidates)
        return Answer(written, len(prediction.candidates), accepted)


def _go_on(halt: threading.Event) -> None:
    if halt.is_set():
        raise ReadError("The request was given up.")


def _without_path(error: LesionsegError, folder: Path) -> LesionsegError:
    """The same error, our folder's path cut out of what it says."""
    texts: dict[str, Any] = {}
    for name in ("what", "where", "seen", "expected", "remedy"):
        value = getattr(error, name)
        text = "" if value is None else str(value)
        text = text.replace(str(folder.resolve()), "").replace(str(folder), "")
        texts[name] = text.lstrip("/\\") or None
    what = texts.pop("what") or "The scan cannot be predicted."
    return type(error)(what, **texts)
