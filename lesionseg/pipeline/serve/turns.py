"""One scan after the other through the network, as long as somebody waits for it."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

T = TypeVar("T")
LOOK_SECONDS = 0.2
CLOSE_SECONDS = 3.0


class Turns:
    """A queue of work with one thread; who leaves, or waits too long, loses the place.

    Args:
        seconds: the longest time from asking to the answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="scan")
        self._halts: set[threading.Event] = set()

    async def take(self, request: Request, work: Callable[[threading.Event], T]) -> T:
        """What `work` returns; its event is set when nobody waits for it any longer.

        Raises status 499 when the client has left, 503 when the time is over.
        """
        halt, end = threading.Event(), time.monotonic() + self._seconds
        self._halts.add(halt)
        job = self._worker.submit(work, halt)
        try:
            while not job.done():
                if await request.is_disconnected():
                    raise HTTPException(499, "The client has left.")
                if time.monotonic() > end:
                    raise HTTPException(503, "The scan took too long.", {"Retry-After": "60"})
                await asyncio.wait([asyncio.wrap_future(job)], timeout=LOOK_SECONDS)
            return job.result()
        finally:
            halt.set()
            job.cancel()
            # the scan's folder is the caller's to remove: not before the work has let go of it
            await asyncio.to_thread(wait, [job], CLOSE_SECONDS)
            self._halts.discard(halt)

    def close(self) -> None:
        """End all work, that which runs after its next batch of tiles."""
        for halt in list(self._halts):
            halt.set()
        self._worker.shutdown(wait=False, cancel_futures=True)


class ManyFiles(APIRoute):
    """A route that takes more files than Starlette's 1000."""

    max_files = 1000

    @classmethod
    def of(cls, max_files: int) -> type["ManyFiles"]:
        """Such a route with a limit of its own."""
        return type("ManyFiles", (cls,), {"max_files": max_files})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, after the form has been read within the limit."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            async with request.form(max_files=self.max_files):
                return await handler(request)

        return handle
