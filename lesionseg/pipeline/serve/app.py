"""The page and the REST interface."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from lesionseg import __version__
from lesionseg.errors import LesionsegError, OutputError
from lesionseg.pipeline.serve.gate import Gate, ServeLimits
from lesionseg.pipeline.serve.label_api import label_router, uploaded
from lesionseg.pipeline.serve.turns import ManyFiles, Turns
from lesionseg.pipeline.serve.uploads import Answerer, Shelf, home, store

Result = Literal["mask", "candidates", "all"]
SWEEP_SECONDS = 60.0
_TYPES = {".json": "application/json", ".png": "image/png", ".gz": "application/gzip"}


def make_app(
    answerer: Answerer,
    *,
    bundle: str,
    limits: ServeLimits,
    hosts: Collection[str] = (),
    token: str | None = None,
) -> FastAPI:
    """The application; `bundle` is the digest that `/health` names the model by.

    GET `/` is the page, GET `/health` says that it runs, POST `/predict` takes a scan as form
    field `file` (repeated: one file per channel, or the slices of a DICOM series; or a zip of
    these) and returns the mask, with `?result=candidates` the candidates, with `?result=all` a zip
    of all. What cannot be predicted gives 422 and says why, too large a request 413, too many at
    once 503. `hosts` and `token`: see `Gate`.
    """
    shelf, turns = Shelf(), Turns(limits.request_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with home() as shelf.home:
            sweeper = asyncio.create_task(_sweep_by_the_clock(shelf))
            yield
            sweeper.cancel()
            await asyncio.to_thread(turns.close)
            shelf.close()

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(
        title="lesionseg", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.router.route_class = ManyFiles.of(limits.max_files)
    app.add_middleware(Gate, limits=limits, hosts=hosts, token=token)
    app.add_exception_handler(LesionsegError, _say)
    app.include_router(label_router(answerer, shelf, turns, limits))
    page = files("lesionseg.pipeline.serve").joinpath("page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, Any]:
        plan = answerer.predictor.plan
        return {
            "status": "ok",
            "version": __version__,
            "bundle": bundle,
            "channels": plan.channel_names,
            "labels": dict(zip(plan.label_names, plan.label_values, strict=True)),
        }

    @app.post("/predict", response_class=Response)
    async def predict(
        request: Request, file: Annotated[list[UploadFile], File()], result: Result = "mask"
    ) -> Response:
        with tempfile.TemporaryDirectory(dir=shelf.home, ignore_cleanup_errors=True) as folder:
            scan = Path(folder)
            await run_in_threadpool(store, [uploaded(f) for f in file], scan, limits)
            answer = await turns.take(request, lambda halt: answerer.answer(scan, halt=halt))
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
