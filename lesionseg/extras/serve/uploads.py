"""Uploads of `serve`: files, zips and channel order, stalled uploads, queue of scans (503)."""

import asyncio
import logging
import math
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import (
    CancelScope,
    CapacityLimiter,
    current_time,
    fail_after,
    move_on_after,
    to_thread,
)
from anyio.lowlevel import checkpoint
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message

from lesionseg.child_process import ChildEnded
from lesionseg.errors import ContentError, OutputError, ReadError, ResourceError
from lesionseg.extras.serve.answer import CASE
from lesionseg.extras.serve.model_process import ModelProcess
from lesionseg.io import MAY_PASS, format_suffix, kind_of_name, split_channel, strip_suffix

logger = logging.getLogger(__name__)

T = TypeVar("T")
MAX_FILES = 5000  # of one scan
_DIRECTORY_BYTES = 1024 * MAX_FILES  # of the directory of a zip
_MAX_FIELDS = 20  # of a form, besides its files
STALLED_SECONDS = 60.0  # without a byte, after which an upload is given up
_MAX_SUFFIX = 16  # characters of the suffix of a stored file
_FREE_SPACE = "Free space on its disk, or start it with another TMPDIR."
_SentFile = tuple[Path, Callable[[], Any]]  # the sent name, and a function that opens the file


async def receive(
    request: Request, folder: Path, channels: Sequence[str], *, max_bytes: int
) -> list[str]:
    """Read the form in a request, and write the scan in its field `file` or `files` to a folder.

    The form is not a parameter of the route, because FastAPI would then read it before it calls the
    dependencies, which may refuse the request.

    Args:
        request: The request.
        folder: An empty folder.
        channels: The names of the model's channels.
        max_bytes: The maximum size of the content of a zip.

    Returns:
        The sent names of the channels' files in the order of `channels`. Empty for DICOM.

    Raises:
        HTTPException: If the form cannot be read (status 400) or is too large (413).
        OutputError: If the disk is full, because large files of a form are kept on it.
        LesionsegError: If the scan cannot be stored, see `store`.
        TimeoutError: If no byte arrives for `STALLED_SECONDS`.
    """

    async def receive_in_time() -> Message:
        """Return the next message of the request.

        Raises:
            TimeoutError: If it takes more than `STALLED_SECONDS`.
        """
        with fail_after(STALLED_SECONDS):
            return await request.receive()

    timed = Request(request.scope, receive_in_time)  # the same request with a limit of time
    try:
        async with timed.form(max_files=MAX_FILES, max_fields=_MAX_FIELDS) as form:
            sent = [*form.getlist("file"), *form.getlist("files")]
            files = [file for file in sent if not isinstance(file, str)]  # a text is no file
            return await to_thread.run_sync(store, files, folder, channels, max_bytes)
    except (ClientDisconnect, ValueError, LookupError) as error:  # of the parser and of encodings
        raise HTTPException(
            400, "The form cannot be read. Send multipart/form-data with the scan as `file`."
        ) from error
    except TimeoutError:  # an OSError, too
        raise
    except OSError as error:
        raise OutputError(
            f"The server cannot write the scan: {error.strerror}. {_FREE_SPACE}"
        ) from error


def store(
    files: Sequence[UploadFile], folder: Path, channels: Sequence[str], max_bytes: int
) -> list[str]:
    """Write one sent scan to a folder, from which `predict_scan` reads it.

    The scan is a file, one file per channel, a DICOM series, or a zip of these. The files get new
    names. Of the sent names, only the suffixes are used, and the order of the channels
    (`_sort_channels`).

    - Files without the suffix of an image may be DICOM slices, but not if another file is an image
      of another format.
    - A file without a name counts as NIfTI.
    - Texts next to images, such as the JSON files of dcm2niix, and the index of a DICOM CD are left
      out.

    Args:
        files: The files of the form.
        folder: The folder of the request.
        channels: The names of the model's channels.
        max_bytes: The maximum size of the content of a zip.

    Returns:
        The sent names of the channels' files in the order of `channels`, or as they were sent if
        there are more or fewer files than channels. Empty for DICOM.

    Raises:
        ReadError: If the zip cannot be read, or the system cannot write files of such names.
        ContentError: If the zip contains no file, more than `max_bytes` or too many files, if no
            file was sent, or if the order of the channels in a zip is unclear.
        OutputError: If the disk is full.
    """
    # the name of each file, and a function that opens it; files of a form are open already
    received = [
        (Path(file.filename or "a.nii.gz"), partial(nullcontext, file.file)) for file in files
    ]
    sent: list[_SentFile] = list(received)
    is_zip = len(sent) == 1 and sent[0][0].suffix.lower() == ".zip"
    try:
        if is_zip:
            _check_zip_directory(files[0].file)
            sent = _list_zip(zipfile.ZipFile(files[0].file), max_bytes)
        if not sent:
            what = "The zip contains no file" if is_zip else "No file was sent"
            raise ContentError(f"{what}. Send a form with the scan as `file`.")
        sent = _select_images(sent)
        are_channels = all(kind_of_name(name) == "image" for name, _ in sent)
        if are_channels:
            sent = _sort_channels(sent, channels, is_ordered=not is_zip)
        # channels become scan_0000.nii.gz …, DICOM slices become scan/00000.dcm …
        for number, (name, open_file) in enumerate(sent):
            path = folder / f"{CASE}_{number:04d}{_short_suffix(name)}"
            if not are_channels:
                path = folder / CASE / f"{number:05d}{_slice_suffix(name)}"
            path.parent.mkdir(exist_ok=True)
            with open_file() as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
    # `zipfile` raises all of these, such as RuntimeError for a zip with a password
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ReadError(f"The zip cannot be read: {error}. Make it again.") from error
    except OSError as error:
        if error.errno in MAY_PASS:  # an error of the server, not of the sent files
            raise OutputError(
                f"The server cannot write the scan: {error.strerror}. {_FREE_SPACE}"
            ) from error
        raise ReadError(f"The files cannot be stored: {error.strerror}. Rename them.") from error
    return [name.name for name, _ in sent] if are_channels else []


def _select_images(sent: Sequence[_SentFile]) -> list[_SentFile]:
    """Return the files of a scan that may be images. If no file may be one, return all files.

    A file of unknown suffix may be a DICOM slice, but not next to an image of another format. All
    files are returned so that reading the scan reports the problem.
    """
    kinds = [kind_of_name(name) for name, _ in sent]
    image_kinds = {"image", "dicom"}
    if "image" not in kinds:
        image_kinds.add("unknown")
    images = [file for file, kind in zip(sent, kinds, strict=True) if kind in image_kinds]
    return images or list(sent)


def _sort_channels(
    sent: Sequence[_SentFile], channels: Sequence[str], *, is_ordered: bool
) -> list[_SentFile]:
    """Sort the files of a scan into the order of the model's channels.

    The first rule that applies is used:

    - The channel numbers `_0000`, `_0001` … in the names (`_sort_by_number`).
    - If there are more or fewer files than channels, or only one file, the order is unchanged.
      Reading the scan reports a wrong number.
    - The names of the channels in the file names (`_match_channels`).
    - The order in which the files were sent, if `is_ordered`.

    Args:
        sent: The files of the scan.
        channels: The names of the model's channels.
        is_ordered: True for the files of a form. The order of files in a zip has no meaning.

    Raises:
        ContentError: If no rule applies.
    """
    by_number = _sort_by_number(sent)
    if by_number is not None:
        return by_number
    if len(sent) < 2 or len(sent) != len(channels):
        return list(sent)
    numbers = _match_channels([strip_suffix(name) for name, _ in sent], channels)
    if numbers is not None:
        return [sent[number] for number in numbers]
    if is_ordered:
        return list(sent)
    new_names = ", ".join(f"scan_{number:04d} for {name}" for number, name in enumerate(channels))
    raise ContentError(
        "The names of the files do not show which channel each file is. Name them "
        f"{new_names}, or by the names of the channels."
    )


def _match_channels(names: Sequence[str], channels: Sequence[str]) -> list[int] | None:
    """Return the index of the file of each channel, or None if the file names do not tell.

    A name belongs to the channel whose words it contains. If it contains those of several channels,
    it belongs to the channel with the most words: "T1 Gd" instead of "T1".

    >>> _match_channels(["P1_flair", "P1_t1-gd", "P1_t1"], ["T1", "T1 Gd", "FLAIR"])
    [2, 1, 0]
    """
    words_of_channel = [_spaced_words(channel) for channel in channels]
    file_of_channel: dict[int, int] = {}  # indices of files by index of their channel
    for number, name in enumerate(names):
        words_of_name = _spaced_words(name)
        matching = [c for c, words in enumerate(words_of_channel) if words in words_of_name]
        # n words have n + 1 spaces, so more spaces are more words
        most_spaces = max((words_of_channel[c].count(" ") for c in matching), default=0)
        best = [c for c in matching if words_of_channel[c].count(" ") == most_spaces]
        if len(best) != 1 or best[0] in file_of_channel:
            return None
        file_of_channel[best[0]] = number
    if file_of_channel.keys() != set(range(len(channels))):
        return None
    return [file_of_channel[channel] for channel in range(len(channels))]


def _spaced_words(name: str) -> str:
    """Return the words of a name in lower case, with a space before and after each word.

    Words are runs of letters and digits. With the spaces, `in` compares complete words only: "T1"
    is not in "T10".

    >>> _spaced_words("P1_T1-Gd")
    ' p1 t1 gd '
    """
    words = re.findall(r"[^\W_]+", name.casefold())  # letters and digits: \w without _
    return f" {' '.join(words)} "


def _sort_by_number(sent: Sequence[_SentFile]) -> list[_SentFile] | None:
    """Sort files by the channel numbers at the end of their names: `_0000`, `_0001` and so on.

    Return None if the numbers are not exactly those from 0 to the number of files minus 1. They may
    be other numbers, such as those of patients.
    """
    by_number: dict[int, _SentFile] = {}
    for name, open_file in sent:
        _, number = split_channel(strip_suffix(name))
        if number is not None:
            by_number[number] = (name, open_file)
    channels = range(len(sent))
    if by_number.keys() != set(channels):
        return None
    return [by_number[channel] for channel in channels]


def _check_zip_directory(file: Any) -> None:
    """Raise `ContentError` if the directory of a zip, which lists its files, is too large.

    The size is checked before `zipfile` opens the zip, because `zipfile` then reads the complete
    directory into memory. Private functions of `zipfile` find the end record, which states the size
    of the directory.
    """
    # also of zips above 4 GB; None if the file is no zip, which `zipfile` reports later
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end is not None and end[zipfile._ECD_SIZE] > _DIRECTORY_BYTES:  # type: ignore[attr-defined]
        raise ContentError(f"A zip may contain at most {MAX_FILES} files. Send one scan at a time.")


def _list_zip(opened_zip: zipfile.ZipFile, max_bytes: int) -> list[_SentFile]:
    """Return the files of a zip, sorted by name, without hidden files. They are not extracted yet.

    The sizes that the directory of the zip states can be trusted as a limit, because `zipfile`
    never extracts more bytes.

    Args:
        opened_zip: The zip.
        max_bytes: The maximum size of all files together.

    Raises:
        ContentError: If the files are too many, or larger than `max_bytes` together.
        ReadError: If the zip has another compression than deflate.
    """
    members = [m for m in opened_zip.infolist() if not m.is_dir() and not _is_hidden(m)]
    members.sort(key=lambda m: m.filename)
    if len(members) > MAX_FILES or sum(m.file_size for m in members) > max_bytes:
        raise ContentError(  # `>> 20` converts bytes to MB
            f"A zip may contain at most {MAX_FILES} files and {max_bytes >> 20} MB. Send one scan "
            "at a time."
        )
    if {m.compress_type for m in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ReadError("The compression of the zip is not supported. Use deflate.")
    return [(Path(member.filename), partial(opened_zip.open, member)) for member in members]


def _short_suffix(name: Path) -> str:
    """Return the suffix of a channel's file in lower case, such as ".nii.gz", for its new name.

    A suffix of more than `_MAX_SUFFIX` characters, which may be too long for a file name, becomes
    "".
    """
    suffix = format_suffix(name).lower()
    return suffix if len(suffix) <= _MAX_SUFFIX else ""


def _slice_suffix(name: Path) -> str:
    """Return the suffix of a DICOM slice in lower case, such as ".dcm", for its new name.

    A suffix that is not only letters becomes "": DICOM files are often named by a UID such as
    1.2.840, whose last number is no suffix. A suffix of more than `_MAX_SUFFIX` characters becomes
    "", too.
    """
    suffix = name.suffix.lower()
    return suffix if suffix.strip(".").isalpha() and len(suffix) <= _MAX_SUFFIX else ""


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    """Return True for a file of a zip that is not part of a scan.

    Such files are hidden files, files that macOS adds, and the index of a DICOM CD. The names of
    all folders of the file count, too.
    """
    parts = Path(member.filename).parts
    return any(part.startswith((".", "__MACOSX", "DICOMDIR")) for part in parts)


class InferenceQueue:
    """A queue of scans for the model, which predicts one scan at a time.

    If the client of the scan that is being predicted leaves, or the prediction takes more than
    `seconds`, the process of the model is killed and started again.

    Args:
        max_waiting: The maximum number of scans in the queue, with the one that is predicted.
        seconds: The maximum time that a scan waits, and that its prediction takes.
        model: The process of the model.
    """

    def __init__(self, max_waiting: int, seconds: float, model: ModelProcess) -> None:
        self._max_waiting = max_waiting
        self._timeout_s = seconds  # of the waiting, and of the prediction
        self._model = model
        self._turn = CapacityLimiter(1)  # one scan is predicted at a time
        self._n_reserved = 0  # places in the queue, at most `max_waiting`

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserve a place in the queue for a scan, for the time from its upload to its answer.

        Raises:
            HTTPException: If the queue is full (status 503).
        """
        if self._n_reserved >= self._max_waiting:
            raise _busy("Too many scans are waiting.", retry_after_s=10)
        self._n_reserved += 1
        try:
            yield
        finally:
            self._n_reserved -= 1

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """Wait until no other scan is predicted, run `work` in a thread, and return its result.

        The time for waiting is limited to `seconds`, and so is the time for `work`. The time for
        loading the model does not count. If the client leaves, the work ends, and the error answers
        nobody.

        Args:
            request: The request, to notice that its client leaves.
            work: Predicts a scan in the process of the model.

        Raises:
            HTTPException: If it took too long, the model cannot be loaded, or the server stops
                (status 503).
            ResourceError: If the process of the model crashed.
        """
        # a server that stops cancels the task, and `scope` ends the block after its deadline; both
        # lead to the last line
        with suppress(asyncio.CancelledError), move_on_after(self._timeout_s) as scope:
            watching = asyncio.create_task(_cancel_when_left(request, scope))
            try:
                async with self._turn:
                    # no limit while the model is loaded
                    scope.deadline = math.inf
                    try:
                        await to_thread.run_sync(self._model.wait)
                    except Exception as error:  # such as a bundle that was removed
                        logger.error("The model cannot be loaded again: %s", error)
                        raise _busy("The model cannot be loaded.", retry_after_s=60) from error
                    scope.deadline = current_time() + self._timeout_s
                    await checkpoint()  # the client may have left meanwhile
                    return await self._run_or_restart(work)
            finally:
                watching.cancel()
        raise _busy("This took too long, or the server stops.", retry_after_s=60)

    async def _run_or_restart(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread, and return its result.

        If the task is cancelled, the process of the model is killed and started again, because a
        thread cannot be stopped, but its work ends with the process. A process that ended by itself
        is started again, too. It then no longer uses the folder of the scan, which can be removed.

        Raises:
            ResourceError: If the process ended by itself.
        """
        try:
            return await to_thread.run_sync(work, abandon_on_cancel=True)
        except (asyncio.CancelledError, ChildEnded) as error:
            # wait for the restart, although the task is cancelled
            with CancelScope(shield=True):
                await to_thread.run_sync(self._model.restart)
            if isinstance(error, ChildEnded):
                raise ResourceError(
                    "The scan cannot be predicted: the process of the model ended, perhaps because "
                    "the memory ran out. Crop the scan, or use a machine with more memory."
                ) from error
            raise


async def _cancel_when_left(request: Request, scope: CancelScope) -> None:
    """Wait until the client of the request leaves, then cancel the scope of its work."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)  # seconds between two questions
    scope.cancel()


def _busy(reason: str, *, retry_after_s: int) -> HTTPException:
    """Return the error with status 503, which asks the client to send the scan again later.

    Args:
        reason: Why the scan cannot be predicted now.
        retry_after_s: When the client should try again, in seconds (header `Retry-After`).
    """
    return HTTPException(503, f"{reason} Try again later.", {"Retry-After": str(retry_after_s)})
