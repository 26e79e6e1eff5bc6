"""Scans that were sent, in temporary folders, and the queue in front of the network."""

import asyncio
import re
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from anyio import CancelScope, CapacityLimiter, move_on_after, to_thread
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.volumes import case_suffix, is_image_file

T = TypeVar("T")
CASE = "scan"
MAX_FILES = 5000  # of one scan
SESSION_SECONDS, MAX_SESSIONS = 3600.0, 32
_POLL_SECONDS = 0.2
_SLICES = (".dcm", ".dicom", ".ima")
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")


async def store_form(request: Request, field: str, folder: Path, max_bytes: int) -> bool:
    """Write the files of a form's field to `folder`; whether there were any.

    Status 400 where the form cannot be read. FastAPI's own parameters would take 1000 files.
    """
    try:
        async with request.form(max_files=MAX_FILES) as form:
            files = [f for f in form.getlist(field) if isinstance(f, UploadFile)]
            if files:
                pairs = [(f.filename or "scan.nii.gz", f.file) for f in files]
                await asyncio.to_thread(store, pairs, folder, max_bytes)
            return bool(files)
    except (ClientDisconnect, ValueError, LookupError) as error:  # the parser's, and of encodings
        raise HTTPException(400, "The form cannot be read.") from error


def store(files: Sequence[tuple[str, BinaryIO]], folder: Path, max_bytes: int) -> None:
    """Write one scan to `folder`: one file, one file per channel, or a DICOM series.

    Of names only the suffix is used. Several files that are no images by their names are slices,
    and so is what a zip holds. Raises `ReadError` for a zip that cannot be read, `ContentError` for
    one that holds more than `max_bytes`.
    """
    names = [name for name, _ in files]
    if len(names) == 1 and names[0].lower().endswith(".zip"):
        _unzip(files[0][1], folder / CASE, max_bytes)
        return
    channels = all(is_image_file(Path(n)) and not n.lower().endswith(_SLICES) for n in names)
    for number, (name, content) in enumerate(files):
        suffix = case_suffix(Path(name)).lower()
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        path = folder / (f"{CASE}_{number:04d}{suffix}" if channels else f"{CASE}/{number:05d}.dcm")
        path = folder / f"{CASE}{suffix}" if len(files) == 1 else path
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)


def _unzip(content: BinaryIO, folder: Path, max_bytes: int) -> None:
    """Every file of a zip, renamed. `zipfile` gives no more of a file than the directory says."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(content) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if len(members) > MAX_FILES or sum(m.file_size for m in members) > max_bytes:
                most = f"{MAX_FILES} files and {max_bytes / 2**20:g} MB"
                raise ContentError(f"The zip holds more than {most}.")
            if {m.compress_type for m in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ReadError("The zip is packed in a way that is not read; use deflate.")
            for number, member in enumerate(members):
                path = folder / f"{number:05d}.dcm"
                with archive.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ReadError(f"The zip cannot be read: {error}.") from error


class InferenceQueue:
    """One scan at a time at the network; who leaves, or waits too long, loses the turn."""

    def __init__(self, max_waiting: int, seconds: float) -> None:
        self._max_waiting, self._seconds = max_waiting, seconds
        self._turn, self._scopes = CapacityLimiter(1), set[CancelScope]()

    def check_room(self) -> None:
        """Status 503 where too many scans wait."""
        if len(self._scopes) >= self._max_waiting:
            raise HTTPException(503, "Too many scans wait.", {"Retry-After": "10"})

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """What `work` returns, in a thread; `anyio.from_thread.check_cancelled` should end it.

        It has ended when this does, whatever happens: the scan's folder is removed next.
        """
        self.check_room()
        with move_on_after(self._seconds) as scope:
            watching = asyncio.create_task(_cancel_when_left(request, scope))
            self._scopes.add(scope)
            try:
                return await to_thread.run_sync(work, limiter=self._turn)
            finally:
                watching.cancel()
                self._scopes.remove(scope)
                scope.cancel()  # where the task itself was cancelled
        if await request.is_disconnected():
            raise HTTPException(499, "The client has left.")
        raise HTTPException(503, "This took too long, or the server stops.", {"Retry-After": "60"})

    def close(self) -> None:
        """End all work, that which runs after its next batch of tiles."""
        for scope in self._scopes:
            scope.cancel()


async def _cancel_when_left(request: Request, scope: CancelScope) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_POLL_SECONDS)
    scope.cancel()


class Sessions:
    """Scans that stay for further requests, by keys made here: few, for an hour without any.

    The key is all a client has to know; as nobody can guess it, nobody gets another's mask.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ends: dict[str, asyncio.TimerHandle] = {}  # asked for longest ago first

    def new(self) -> tuple[str, Path]:
        """A key and its empty folder; of too many scans the oldest leaves."""
        if len(self._ends) >= MAX_SESSIONS:
            self.remove(next(iter(self._ends)))
        key = uuid.uuid4().hex
        (self._home / key).mkdir(mode=0o700)
        self._start_clock(key)
        return key, self._home / key

    def get(self, key: str) -> Path:
        """The folder of a scan; status 404 when there is none, or no longer."""
        if key not in self._ends:
            raise HTTPException(
                404,
                "There is no such image, or no longer. Send it to /session/ and ask by the key in "
                "the answer; in 3D Slicer load the volume again and press Run.",
            )
        self._ends.pop(key).cancel()
        self._start_clock(key)
        return self._home / key

    def remove(self, key: str) -> None:
        """Forget a scan; status 404 when there is none."""
        folder = self.get(key)
        self._ends.pop(key).cancel()
        shutil.rmtree(folder, ignore_errors=True)

    def _start_clock(self, key: str) -> None:
        loop = asyncio.get_running_loop()
        self._ends[key] = loop.call_later(SESSION_SECONDS, self.remove, key)
