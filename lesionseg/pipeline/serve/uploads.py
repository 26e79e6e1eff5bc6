"""Write the files of a request to a folder, and queue scans for the network."""

import asyncio
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, fail_after, move_on_after, to_thread
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.layouts.checks import CHANNEL
from lesionseg.io.layouts.input_images import TEXT_SUFFIXES
from lesionseg.io.volumes import case_suffix, is_image_file, strip_suffix

T = TypeVar("T")
CASE = "scan"
MAX_FILES = 5000  # of one scan
_DIRECTORY_BYTES = 1024 * MAX_FILES  # of the directory of a zip
_MAX_FIELDS = 20  # of a form, besides its files
STALLED_SECONDS = 60.0  # without a byte, after which an upload is given up
_SentFile = tuple[Path, Callable[[], Any]]  # its name, and a function that opens it


async def receive(request: Request, folder: Path, *, max_bytes: int) -> None:
    """Write the scan in a form's field `file` or `files` to `folder`, see `store`.

    The form is not a parameter of the route, because FastAPI would read it before it calls the
    dependencies.

    Raises:
        HTTPException: with status 400 if the form cannot be read.
        TimeoutError: if no byte arrives for `STALLED_SECONDS`.
    """

    async def receive_in_time() -> Message:
        with fail_after(STALLED_SECONDS):
            return await request.receive()

    timed = Request(request.scope, receive_in_time)
    try:
        async with timed.form(max_files=MAX_FILES, max_fields=_MAX_FIELDS) as form:
            sent = [*form.getlist("file"), *form.getlist("files")]
            files = [file for file in sent if not isinstance(file, str)]
            await to_thread.run_sync(store, files, folder, max_bytes)
    except (ClientDisconnect, ValueError, LookupError) as error:  # of the parser and of encodings
        raise HTTPException(
            400, "The form cannot be read. Send multipart/form-data with the scan as `file`."
        ) from error


def store(files: Sequence[UploadFile], folder: Path, max_bytes: int) -> None:
    """Write one scan to `folder`: a file, one file per channel, a DICOM series, or a zip of these.

    The files get new names. Only the suffixes of the sent names are used, and their order, which
    is that of the channels (see `_sort_channels`). Files without the suffix of an image may be
    DICOM slices. Texts next to images, such as the JSON files of dcm2niix, and the index of a DICOM
    CD are left out.

    Raises:
        ReadError: if the zip cannot be read.
        ContentError: if the zip contains more than `max_bytes`, or no file was sent.
    """
    received = [
        (Path(file.filename or "a.nii.gz"), partial(nullcontext, file.file)) for file in files
    ]
    sent: list[_SentFile] = list(received)
    try:
        if len(sent) == 1 and sent[0][0].suffix.lower() == ".zip":
            _check_directory(files[0].file)
            sent = _open_zip(zipfile.ZipFile(files[0].file), max_bytes)
        if not sent:
            raise ContentError("No file was sent. Send a form with the scan as `file`.")
        images = [(name, open_file) for name, open_file in sent if _may_be_image(name)]
        sent = _sort_channels(images or sent)
        names = [name for name, _ in sent]
        are_channels = all(is_image_file(n) and n.suffix.lower() not in DICOM for n in names)
        for number, (name, open_file) in enumerate(sent):
            path = folder / f"{CASE}_{number:04d}{case_suffix(name).lower()}"
            if not are_channels:
                path = folder / CASE / f"{number:05d}{_slice_suffix(name)}"
            path.parent.mkdir(exist_ok=True)
            with open_file() as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ReadError(f"The zip cannot be read: {error}. Make it again.") from error


def _sort_channels(sent: Sequence[_SentFile]) -> list[_SentFile]:
    """Sort files by the channel numbers in their names, `_0000`, `_0001` and so on.

    If other numbers occur, such as those of patients, the files stay in their order.
    """
    by_number: dict[int, _SentFile] = {}
    for name, open_file in sent:
        match = CHANNEL.fullmatch(strip_suffix(name))
        if match:
            by_number[int(match[2])] = (name, open_file)
    channels = range(len(sent))
    if by_number.keys() != set(channels):
        return list(sent)
    return [by_number[channel] for channel in channels]


def _check_directory(file: Any) -> None:
    """Raise `ContentError` if the directory of a zip is large, because zipfile reads all of it."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # also of zips above 4 GB
    if end is not None and end[zipfile._ECD_SIZE] > _DIRECTORY_BYTES:  # type: ignore[attr-defined]
        raise ContentError(f"A zip may contain at most {MAX_FILES} files. Send one scan at a time.")


def _open_zip(archive: zipfile.ZipFile, max_bytes: int) -> list[_SentFile]:
    """Return the files of a zip, sorted by name. Raise an error if they are too many or too large.

    zipfile never extracts more bytes than the directory of the zip states.
    """
    found = (m for m in archive.infolist() if not m.is_dir() and not _is_hidden(m))
    members = sorted(found, key=lambda m: m.filename)
    if len(members) > MAX_FILES or sum(m.file_size for m in members) > max_bytes:
        raise ContentError(
            f"A zip may contain at most {MAX_FILES} files and {max_bytes >> 20} MB. Send one scan "
            "at a time."
        )
    if {m.compress_type for m in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ReadError("The compression of the zip is not supported. Use deflate.")
    return [(Path(member.filename), partial(archive.open, member)) for member in members]


def _may_be_image(name: Path) -> bool:
    """Return False for a text and for the index of a DICOM CD."""
    return name.suffix.lower() not in TEXT_SUFFIXES and name.name.upper() != "DICOMDIR"


def _slice_suffix(name: Path) -> str:
    """Return the suffix of a DICOM file, or "" for the last number of a UID."""
    suffix = name.suffix.lower()
    return suffix if suffix.strip(".").isalpha() else ""


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    """Return True for the files that macOS adds to a zip, and for the index of a DICOM CD."""
    return any(p.startswith((".", "__MACOSX", "DICOMDIR")) for p in Path(member.filename).parts)


class InferenceQueue:
    """A queue of scans for the network, one at a time.

    A scan is cancelled if its client leaves, or if it takes more than `seconds`.
    """

    def __init__(self, max_waiting: int, seconds: float) -> None:
        self._max_waiting = max_waiting
        self._seconds = seconds
        self._turn = CapacityLimiter(1)
        self._n_places = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserve a place in the queue for a scan, from its upload to its answer.

        Raises:
            HTTPException: with status 503 if the queue is full.
        """
        if self._n_places >= self._max_waiting:
            raise HTTPException(
                503, "Too many scans are waiting. Try again later.", {"Retry-After": "10"}
            )
        self._n_places += 1
        try:
            yield
        finally:
            self._n_places -= 1

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """Run `work` in a thread and return its result.

        `work` should call `anyio.from_thread.check_cancelled` often. This function waits until
        `work` has ended, also after a cancellation, because the caller then removes its folder.

        Raises:
            HTTPException: with status 503 if it took too long, or the server stops.
        """
        # a server that stops cancels the task
        with suppress(asyncio.CancelledError), move_on_after(self._seconds) as scope:

            async def cancel_when_left() -> None:
                while not await request.is_disconnected():
                    await asyncio.sleep(0.2)
                scope.cancel()

            watching = asyncio.create_task(cancel_when_left())
            try:
                return await to_thread.run_sync(work, limiter=self._turn)
            finally:
                watching.cancel()
                scope.cancel()
        raise HTTPException(
            503,
            "This took too long, or the server stops. Try again later.",
            {"Retry-After": "60"},
        )
