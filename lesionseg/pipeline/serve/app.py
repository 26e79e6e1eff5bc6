"""The page and the REST interface."""

import base64
import io
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lesionseg import __version__
from lesionseg.errors import ContentError, DatasetError, LesionsegError, OutputError, ReadError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import result_suffix
from lesionseg.pipeline.serve.example import write_example
from lesionseg.pipeline.serve.slicer import slicer_router
from lesionseg.pipeline.serve.uploads import (
    CASE,
    InferenceQueue,
    ServeLimits,
    Sessions,
    store_form,
)
from lesionseg.report import viewer
from lesionseg.report.images import Scene
from lesionseg.report.rendering import render

Result = Literal["mask", "candidates", "all", "view"]
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
_TYPES = {".json": "application/json", ".png": "image/png", ".gz": "application/gzip"}


@dataclass(frozen=True)
class Answer:
    """The files of a prediction by name, `scan_mask.nii.gz` and so on, and what was counted.

    `view`: what the page shows, where that was asked for; see `viewer_data`.
    """

    files: Mapping[str, bytes]
    n_candidates: int
    n_accepted: int
    view: Mapping[str, Any] | None = None

    def file(self, kind: str) -> tuple[str, bytes]:
        """Name and content of one file: `mask`, `instances` or `candidates`."""
        name = next((n for n in self.files if n.startswith(f"{CASE}_{kind}")), None)
        if name is None:
            raise ContentError(f"This model has no {kind}; ask for result=candidates.")
        return name, self.files[name]


def make_app(
    predictor: Predictor, *, bundle: str, limits: ServeLimits, hosts: Collection[str] = ()
) -> FastAPI:
    """The application; `bundle` is the digest that `/health` names the model by.

    GET `/` is the page, GET `/health` says that it runs, POST `/predict` takes a scan as form
    field `file` (repeated: one file per channel, or the slices of a DICOM series; or a zip of
    these) and returns the mask, with `?result=candidates` the candidates, with `?result=all` a zip
    of all, with `?result=view` what the page shows in NiiVue, and the zip. POST `/example` does so
    with a simulated scan. What cannot be predicted gives 422 and says why, too large a request
    413, too many at once 503. It is called by `hosts` and as localhost.
    """
    queue, has_viewer = InferenceQueue(limits), viewer.NIIVUE.is_file()
    page = render("serve.html.j2", viewer=has_viewer)
    home = tempfile.TemporaryDirectory(prefix="lesionseg-serve-", ignore_cleanup_errors=True)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with home:
            yield
            queue.close()

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(title="lesionseg", version=__version__, openapi_url=None, lifespan=lifespan)
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=[*_OWN_NAMES, *hosts], www_redirect=False
    )
    app.add_middleware(BodyLimit, limits=limits)
    app.add_exception_handler(LesionsegError, _say)
    sessions = Sessions(Path(home.name))
    app.include_router(slicer_router(predictor, answer, queue, sessions, limits))
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
        queue.check_room()
        with tempfile.TemporaryDirectory(dir=home.name) as scan:
            if not await store_form(request, "file", Path(scan), limits):
                raise ContentError("No file was sent; send a form with the scan as `file`.")
            return await respond(request, Path(scan), result)

    @app.post("/example", response_class=Response)
    async def example(request: Request, result: Result = "all") -> Response:
        queue.check_room()
        with tempfile.TemporaryDirectory(dir=home.name) as scan:
            write_example(Path(scan), predictor.plan)
            return await respond(request, Path(scan), result)

    async def respond(request: Request, scan: Path, result: Result) -> Response:
        work = partial(answer, predictor, scan, with_view=result == "view")
        return _response(await queue.run(request, work), result)

    return app


def answer(
    predictor: Predictor,
    folder: Path,
    stop: threading.Event,
    *,
    suffix: str | None = None,
    with_view: bool = False,
) -> Answer:
    """Predict the one scan in `folder`; `suffix` is the masks' format, else the scan's own.

    `stop` ends it after the next batch of tiles. What goes wrong with a scan is raised as a
    `LesionsegError` that names no folder of the server's.
    """

    def go_on(*_: object) -> None:
        if stop.is_set():
            raise ReadError("The request was given up.")

    try:
        plan = predictor.plan
        cases = find_images(folder, len(plan.channel_names))
        if len(cases) != 1:
            raise DatasetError(f"Send one scan at a time, not {len(cases)}.")
        files = replace(cases[0], missing=())  # files come in order, so none may be left out
        go_on()
        volume = predictor.read(files)
        prediction = predictor.predict_volume(volume, CASE, on_batch=go_on)
        like, output = files.images[0], folder / "output"
        suffix = suffix or result_suffix(like, plan.dims)
        write_prediction(output, prediction, suffix=suffix, like=like)
        written = {p.name: p.read_bytes() for p in sorted(output.iterdir())}
        for path in output.iterdir():  # the scan may be asked for again
            path.unlink()
        output.rmdir()
        accepted = sum(c.accepted for c in prediction.candidates)
        scene = Scene(volume.array[0], volume.geometry, prediction=prediction)
        view = viewer.viewer_data(scene) if with_view else None
        return Answer(written, len(prediction.candidates), accepted, view)
    except LesionsegError as error:
        text = str(error)
        for path in (folder.resolve(), folder):
            text = text.replace(f"{path}/", "").replace(str(path), "the scan")
        raise type(error)(text) from error
    except MemoryError as error:
        raise ContentError("The scan needs more memory than the server has.") from error
    except Exception as error:  # a damaged file may make any library raise anything
        raise ReadError(f"The scan cannot be predicted ({type(error).__name__}).") from error


def _response(found: Answer, result: Result) -> Response:
    """What was asked for, a file to be saved but for `view`."""
    counts = {"X-Candidates": str(found.n_candidates), "X-Accepted": str(found.n_accepted)}
    buffer = io.BytesIO()
    if result in ("all", "view"):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in found.files.items():
                archive.writestr(name, content)
    if result == "view":
        zipped = base64.b64encode(buffer.getvalue()).decode()
        return JSONResponse({"view": found.view, "zip": zipped}, headers=counts)
    if result == "all":
        name, content = "prediction.zip", buffer.getvalue()
    else:
        name, content = found.file(result)
    kind = _TYPES.get(Path(name).suffix, "application/octet-stream")
    saved = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers={**saved, **counts})


def _say(_: Request, error: Exception) -> Response:
    # a full disk is not the client's fault
    return JSONResponse(
        {"detail": str(error)}, status_code=500 if isinstance(error, OutputError) else 422
    )


class BodyLimit:
    """Lets requests of at most `limits.max_bytes` through to `app`, from its own pages alone."""

    def __init__(self, app: ASGIApp, limits: ServeLimits) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or 403 to another site's page and 413 to too large a body."""
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        most, seen = self._limits.max_bytes, 0
        too_large = HTTPException(
            413, f"The request is too large; send at most {most / 2**20:g} MB."
        )

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise too_large
            return message

        origin, length = headers.get(b"origin", ""), headers.get(b"content-length", "0")
        if origin and origin.partition("://")[2] != headers.get(b"host", ""):
            refused = JSONResponse({"detail": "Pages of other sites may not ask."}, 403)
            await refused(scope, receive, send)
        elif length.isdecimal() and int(length) > most:
            refused = JSONResponse({"detail": too_large.detail}, 413, {"Connection": "close"})
            await refused(scope, receive, send)
        else:
            await self.app(scope, limited, send)
