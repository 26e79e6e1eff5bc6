"""What was sent, written to a folder, and the queue in front of the network."""

import asyncio
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.layouts.checks import CHANNEL
from lesionseg.io.volumes import case_suffix, is_image_file, strip_suffix

T = TypeVar("T")
CASE = "scan"
MAX_FILES = 5000  # of one scan


async def receive(request: Request, folder: Path, *, max_bytes: int) -> None:
    """Write the scan in a form's field `file` or `files` to `folder`, as `store` does.

    Status 400 where the form cannot be read. FastAPI would read a form that is a parameter before
    it asks the dependencies.
    """
    try:
        async with request.form(max_files=MAX_FILES) as form:
            sent = [*form.getlist("file"), *form.getlist("files")]
            files = [file for file in sent if not isinstance(file, str)]
            await to_thread.run_sync(store, files, folder, max_bytes)
    except (ClientDisconnect, ValueError, LookupError) as error:  # the parser's, and of encodings
        raise HTTPException(400, "The form cannot be read.") from error


def store(files: Sequence[UploadFile], folder: Path, max_bytes: int) -> None:
    """Write one scan to `folder`: a file, one file per channel, a DICOM series, or a zip of these.

    Of names only the suffix is used, and the number of a channel; files of a zip come in the order
    of their names. Files that are no images by their names may be slices. Raises
    `ReadError` for a zip that cannot be read, `ContentError` for one that holds more than
    `max_bytes`, and for no file.
    """
    names = [Path(file.filename or "a.nii.gz") for file in files]
    opens: list[Callable[[], Any]] = [partial(nullcontext, file.file) for file in files]
    try:
        if len(files) == 1 and names[0].suffix.lower() == ".zip":
            archive = zipfile.ZipFile(files[0].file)
            found = (m for m in archive.infolist() if not m.is_dir() and not _is_hidden(m))
            members = sorted(found, key=lambda m: m.filename)  # channels are numbered
            # zipfile gives no more of a file than the directory says
            if len(members) > MAX_FILES or sum(m.file_size for m in members) > max_bytes:
                raise ContentError(f"A zip holds at most {MAX_FILES} files, {max_bytes >> 20} MB.")
            if {m.compress_type for m in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ReadError("The zip is packed in a way that is not read; use deflate.")
            names = [Path(member.filename) for member in members]
            opens = [partial(archive.open, member) for member in members]
        if not names:
            raise ContentError("No file was sent; send a form with the scan as `file`.")
        pairs = list(zip(names, opens, strict=True))
        if all(CHANNEL.fullmatch(strip_suffix(name)) for name in names):
            pairs.sort(key=lambda pair: pair[0])
        channels = all(is_image_file(n) and n.suffix.lower() not in DICOM for n in names)
        for number, (name, opened) in enumerate(pairs):
            image = f"{CASE}_{number:04d}{case_suffix(name).lower()}"
            suffix = s if (s := name.suffix.lower()).strip(".").isalpha() else ""
            path = folder / (image if channels else f"{CASE}/{number:05d}{suffix}")
            path.parent.mkdir(exist_ok=True)
            with opened() as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ReadError(f"The zip cannot be read: {error}.") from error


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    """What a Mac adds to its zips, and the index of a CD."""
    return any(p.startswith((".", "__MACOSX", "DICOMDIR")) for p in Path(member.filename).parts)


class InferenceQueue:
    """One scan at a time at the network; who leaves, or waits too long, loses the turn."""

    def __init__(self, max_waiting: int, seconds: float) -> None:
        self._max_waiting, self._seconds = max_waiting, seconds
        self._turn, self._n_here = CapacityLimiter(1), 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Of a scan from its upload on; status 503 where too many are here."""
        if self._n_here >= self._max_waiting:
            raise HTTPException(503, "Too many scans wait.", {"Retry-After": "10"})
        self._n_here += 1
        try:
            yield
        finally:
            self._n_here -= 1

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """What `work` returns, in a thread; `anyio.from_thread.check_cancelled` should end it.

        It has ended when this does, whatever happens: the scan's folder is removed next.
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
        raise HTTPException(503, "This took too long, or the server stops.", {"Retry-After": "60"})
