"""The page and the REST interface."""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from lesionseg import __version__
from lesionseg.errors import LesionsegError, OutputError
from lesionseg.inference.predictor import Predictor
from lesionseg.pipeline.serve.answers import Answer, Answerer
from lesionseg.pipeline.serve.gate import Gate
from lesionseg.pipeline.serve.label_api import label_router
from lesionseg.pipeline.serve.turns import Turns, form_of, uploads_in
from lesionseg.pipeline.serve.uploads import ServeLimits, UploadStore, home, scratch, store
from lesionseg.report import viewer
from lesionseg.report.rendering import render

Result = Literal["mask", "candidates", "all", "view"]
SWEEP_SECONDS = 60.0
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
_TYPES = {".json": "application/json", ".png": "image/png", ".gz": "application/gzip"}


def make_app(
    predictor: Predictor,
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
    of all, with `?result=view` what the page shows in NiiVue, and the zip. What cannot be predicted
    gives 422 and says why, too large a request 413, too many at once 503. It is called by `hosts`
    and as localhost. `token`: see `Gate`.
    """
    answerer = Answerer(predictor)
    uploads, turns = UploadStore(limits.max_waiting), Turns(limits.request_seconds)
    has_viewer = viewer.NIIVUE.is_file()
    page = render("serve.html.j2", viewer=has_viewer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with home() as uploads.home:
            sweeper = asyncio.create_task(_sweep_by_the_clock(uploads))
            yield
            sweeper.cancel()
            await turns.close()
            uploads.close()

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(title="lesionseg", version=__version__, openapi_url=None, lifespan=lifespan)
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=[*_OWN_NAMES, *hosts], www_redirect=False
    )
    app.add_middleware(Gate, limits=limits, policy=_policy(page, has_viewer), token=token)
    app.add_exception_handler(LesionsegError, _say)
    app.include_router(label_router(answerer, uploads, turns, limits))
    if has_viewer:
        app.mount("/niivue", StaticFiles(directory=viewer.NIIVUE.parent))

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, Any]:
        plan = predictor.plan
        return {
            "status": "ok",
            "version": __version__,
            "bundle": bundle,
            "channels": plan.channel_names,
            "labels": dict(zip(plan.label_names, plan.label_values, strict=True)),
        }

    @app.post("/predict", response_class=Response)
    async def predict(request: Request, result: Result = "mask") -> Response:
        async with scratch(uploads.home) as scan:
            async with form_of(request, limits.max_files) as form:
                await run_in_threadpool(store, uploads_in(form, "file"), scan, limits)
            answer = await turns.take(
                request, lambda halt: answerer.answer(scan, halt, with_view=result == "view")
            )
        return await run_in_threadpool(_response, answer, result)

    return app


def _policy(page: str, has_viewer: bool) -> str:
    """The Content-Security-Policy by which a browser runs what stands in the page, and NiiVue."""
    elements = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style"))
    script, style = (
        base64.b64encode(hashlib.sha256(one[1].encode()).digest()).decode()
        for one in elements
        if one
    )
    niivue = " 'self'; img-src data:" if has_viewer else ""  # it has its letters as pictures
    return (
        f"default-src 'none'; script-src 'sha256-{script}'{niivue}; style-src 'sha256-{style}'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


async def _sweep_by_the_clock(uploads: UploadStore) -> None:
    """Old scans leave even if nobody asks for anything."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await asyncio.to_thread(uploads.sweep)


def _response(answer: Answer, result: Result) -> Response:
    """What was asked for, a file to be saved but for `view`."""
    counts = {"X-Candidates": str(answer.n_candidates), "X-Accepted": str(answer.n_accepted)}
    if result == "view":
        zipped = base64.b64encode(answer.zipped()).decode()
        return JSONResponse({"view": answer.view, "zip": zipped}, headers=counts)
    if result == "all":
        name, content = "prediction.zip", answer.zipped()
    else:
        name, content = answer.file(result)
    kind = _TYPES.get(Path(name).suffix, "application/octet-stream")
    saved = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers={**saved, **counts})


def _say(_: Request, error: Exception) -> Response:
    # a full disk is not the client's fault
    status = 500 if isinstance(error, OutputError) else 422
    return JSONResponse({"detail": str(error)}, status_code=status)
