"""The page and the REST interface."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, HTTPException, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lesionseg import __version__
from lesionseg.errors import LesionsegError, OutputError
from lesionseg.pipeline.serve.label_api import label_router, uploaded
from lesionseg.pipeline.serve.uploads import Answerer, Shelf, store

Result = Literal["mask", "candidates", "all"]
SWEEP_SECONDS = 60.0
_TYPES = {".json": "application/json", ".png": "image/png", ".gz": "application/gzip"}


def make_app(answerer: Answerer, *, bundle: str, max_upload_mb: float) -> FastAPI:
    """The application; `bundle` is the digest that `/health` names the model by.

    GET `/` is the page, GET `/health` says that it runs, POST `/predict` takes a scan as form
    field `file` (repeated: one file per channel, or the slices of a DICOM series; or a zip of
    these) and returns the mask, with `?result=candidates` the candidates, with `?result=all` a zip
    of all. What cannot be predicted gives 422 and says why, too large a request 413.
    """
    max_bytes = int(max_upload_mb * 2**20)
    shelf = Shelf()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep_by_the_clock(shelf))
        yield
        sweeper.cancel()
        shelf.close()

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(
        title="lesionseg", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(SizeLimit, max_bytes=max_bytes)
    app.add_exception_handler(LesionsegError, _say)
    app.include_router(label_router(answerer, shelf, max_bytes))
    page = files("lesionseg.pipeline.serve").joinpath("page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse)
    def index() -> str:
        return page

    @app.get("/health")
    def health() -> dict[str, Any]:
        plan = answerer.predictor.plan
        return {
            "status": "ok",
            "version": __version__,
            "bundle": bundle,
            "channels": plan.channel_names,
            "labels": dict(zip(plan.label_names, plan.label_values, strict=True)),
        }

    @app.post("/predict", response_class=Response)
    def predict(file: Annotated[list[UploadFile], File()], result: Result = "mask") -> Response:
        with tempfile.TemporaryDirectory(prefix="lesionseg-") as folder:
            store([uploaded(f) for f in file], Path(folder), max_bytes)
            answer = answerer.answer(Path(folder))
        if result == "all":
            name, content = "prediction.zip", answer.zipped()
        else:
            name, content = answer.file(result)
        counts = {
            "X-Candidates": str(answer.n_candidates),
            "X-Accepted": str(answer.n_accepted),
        }
        return attachment(name, content, counts)

    return app


async def _sweep_by_the_clock(shelf: Shelf) -> None:
    """Old scans leave even if nobody asks for anything."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await asyncio.to_thread(shelf.sweep)


def attachment(name: str, content: bytes, headers: dict[str, str]) -> Response:
    """A file to be saved."""
    kind = _TYPES.get(Path(name).suffix, "application/octet-stream")
    return Response(
        content,
        media_type=kind,
        headers={"Content-Disposition": f'attachment; filename="{name}"', **headers},
    )


def _say(_: Request, error: Exception) -> Response:
    # a full disk is not the client's fault
    status = 500 if isinstance(error, OutputError) else 422
    return JSONResponse({"detail": str(error)}, status_code=status)


class SizeLimit:
    """Refuses requests of more than `max_bytes`: by their header, else while they come in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_bytes:
            refusal = JSONResponse({"detail": self._message()}, status_code=413)
            await refusal(scope, receive, send)
            return
        await self.app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Callable[[], Any]:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise HTTPException(413, self._message())
            return message

        return counted

    def _message(self) -> str:
        return f"The request is too large; at most {self.max_bytes / 2**20:g} MB are taken."
