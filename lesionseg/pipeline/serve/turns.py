"""What a request passes: its form is read, then its scan has a turn at the network."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from lesionseg.pipeline.serve.uploads import Upload

T = TypeVar("T")
CLOSE_SECONDS = 3.0
_FIRST = asyncio.FIRST_COMPLETED


@asynccontextmanager
async def form_of(request: Request, max_files: int) -> AsyncIterator[FormData]:
    """The form that a client sends; its files are there as long as the block.

    Raises status 400 when it is none, or not whole. FastAPI's own parameters would take 1000
    files, and keep them until the answer.
    """
    try:
        form = await request.form(max_files=max_files)
    except HTTPException:
        raise
    except Exception as error:
        raise HTTPException(400, "The form cannot be read.") from error
    try:
        yield form
    finally:
        await form.close()


def uploads_in(form: FormData, field: str) -> list[Upload]:
    """The files of a field."""
    files = [f for f in form.getlist(field) if isinstance(f, UploadFile)]
    return [Upload(f.filename or "scan.nii.gz", f.file) for f in files]


class Turns:
    """A queue of work with one thread; who leaves, or waits too long, loses the place.

    Args:
        seconds: the longest time from asking to the answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._going: dict[threading.Event, Future[Any]] = {}
        # no executor's: those threads keep a process from ending
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    async def take(self, request: Request, work: Callable[[threading.Event], T]) -> T:
        """What `work` returns; its event is set when nobody waits for it any longer.

        Raises status 499 when the client has left, 503 when the time is over or the server stops.
        """
        halt, job = threading.Event(), Future[T]()
        done: asyncio.Future[T] = asyncio.wrap_future(job)
        departure = asyncio.create_task(_departure(request))
        # nobody may be left to ask
        done.add_done_callback(lambda d: d.cancelled() or d.exception())
        self._going[halt] = job
        self._queue.put(partial(_fulfil, job, partial(work, halt)))
        try:
            first: set[asyncio.Future[Any]] = {done, departure}
            await asyncio.wait(first, timeout=self._seconds, return_when=_FIRST)
            if halt.is_set():
                raise HTTPException(503, "The server stops.")
            if done.done():
                return done.result()
            if departure.done():
                raise HTTPException(499, "The client has left.")
            raise HTTPException(503, "The scan took too long.", {"Retry-After": "60"})
        finally:
            departure.cancel()
            halt.set()
            job.cancel()
            # the scan's folder is the caller's to remove: not before the work has let go of it
            await asyncio.wait({done}, timeout=CLOSE_SECONDS)
            del self._going[halt]

    async def close(self) -> None:
        """End all work, that which runs after its next batch of tiles."""
        self._queue.put(None)
        for halt, job in self._going.items():
            halt.set()
            job.cancel()
        await asyncio.to_thread(wait, list(self._going.values()), CLOSE_SECONDS)


def _fulfil(job: Future[T], work: Callable[[], T]) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        job.set_result(work())
    except BaseException as error:
        job.set_exception(error)


async def _departure(request: Request) -> None:
    """Wait until the client leaves."""
    with suppress(HTTPException):
        while (await request.receive())["type"] != "http.disconnect":
            pass
