"""The page and the REST interface."""

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from mimetypes import guess_type
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from anyio.from_thread import check_cancelled
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from lesionseg import __version__, phantoms
from lesionseg.config import ServeConfig
from lesionseg.errors import ContentError, DatasetError, LesionsegError, OutputError, ReadError
from lesionseg.inference.bundle import bundle_digest
from lesionseg.inference.predictor import Predictor
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import case_suffix, result_suffix
from lesionseg.pipeline.serve.slicer import slicer_router
from lesionseg.pipeline.serve.uploads import CASE, InferenceQueue, Sessions, store_form
from lesionseg.plan.plan import Plan
from lesionseg.report import viewer
from lesionseg.report.images import Scene, candidate_ids
from lesionseg.report.pictures import draw_overview
from lesionseg.report.rendering import render

Result = Literal["mask", "candidates", "all", "view"]
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Answer:
    """The files of a prediction by name, and their zip; what was counted; what the page shows."""

    files: Mapping[str, bytes]
    n_candidates: int
    n_accepted: int
    view: Mapping[str, Any] | None

    def file(self, kind: str) -> tuple[str, bytes]:
        """Name and content of one file: `mask`, `instances`, `candidates`, or `all`, the zip."""
        name = next((n for n in self.files if n.startswith(f"{CASE}_{kind}")), None)
        if name is None:
            raise ContentError(f"This model has no {kind}; ask for result=candidates.")
        return name, self.files[name]

    def response(self, result: Result) -> Response:
        """What was asked for, a file to be saved but for `view`."""
        headers = {"X-Candidates": str(self.n_candidates), "X-Accepted": str(self.n_accepted)}
        name, content = self.file("all" if result == "view" else result)
        if result == "view":
            zipped = base64.b64encode(content).decode()
            return JSONResponse({"view": self.view, "zip": zipped}, headers=headers)
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
        kind = guess_type(name)[0] or "application/octet-stream"
        return Response(content, media_type=kind, headers=headers)


def make_app(predictor: Predictor, cfg: ServeConfig) -> FastAPI:
    """The application, whose limits are in `cfg`.

    GET `/` is the page, GET `/health` says that it runs, POST `/predict` takes a scan as form
    field `file` (repeated: one file per channel, or the slices of a DICOM series; or a zip of
    these) and returns the mask, with `?result=candidates` the candidates, with `?result=all` a zip
    of all, with `?result=view` what the page shows in NiiVue, and the zip. POST `/example` does so
    with a simulated scan. What cannot be predicted gives 422 and says why, too large a request
    413, too many at once 503. It is called by `cfg.hosts` and as localhost.
    """
    max_bytes, has_viewer = int(cfg.max_upload_mb * 2**20), viewer.NIIVUE.is_file()
    home = TemporaryDirectory(prefix="lesionseg-serve-", ignore_cleanup_errors=True)
    queue = InferenceQueue(cfg.max_waiting, cfg.request_seconds)
    plan, sessions = predictor.plan, Sessions(Path(home.name))
    labels = dict(zip(plan.label_names, plan.label_values, strict=True))
    digest = "+".join(bundle_digest(Path(folder)) for folder in cfg.bundle)
    about = {"version": __version__, "bundle": digest, "channels": plan.channel_names}
    page = render("serve.html.j2", viewer=has_viewer)

    async def check(request: Request) -> None:
        """Before a body is read: from our own pages alone, and of a length that is said and fits.

        The server gives no more of a body than its length says.
        """
        origin, length = (request.headers.get(name, "") for name in ("origin", "content-length"))
        if origin and origin.partition("://")[2] != request.headers.get("host"):
            raise HTTPException(403, "Pages of other sites may not ask.")
        close = {"Connection": "close"}
        if "transfer-encoding" in request.headers:
            raise HTTPException(411, "Send the request with a Content-Length.", close)
        if length.isdecimal() and int(length) > max_bytes:
            most = f"send at most {max_bytes / 2**20:g} MB."
            raise HTTPException(413, f"The request is too large; {most}", close)

    async def predicted(request: Request, scan: Path, **how: Any) -> Answer:
        return await queue.run(request, partial(answer, predictor, scan, **how))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with home:
            yield
            queue.close()

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(openapi_url=None, lifespan=lifespan, dependencies=[Depends(check)])
    names = [*_OWN_NAMES, cfg.host, *cfg.hosts]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    app.add_exception_handler(LesionsegError, _say)
    app.include_router(slicer_router(labels, plan.dims, predicted, sessions, max_bytes))
    if has_viewer:
        app.mount("/niivue", StaticFiles(directory=viewer.NIIVUE.parent))

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **about, "labels": labels}

    @app.post("/predict")
    async def predict(request: Request, result: Result = "mask") -> Response:
        queue.check_room()
        with TemporaryDirectory(dir=home.name, ignore_cleanup_errors=True) as scan:
            if not await store_form(request, "file", Path(scan), max_bytes):
                raise ContentError("No file was sent; send a form with the scan as `file`.")
            found = await predicted(request, Path(scan), with_view=result == "view")
            return found.response(result)

    @app.post("/example")
    async def example(request: Request, result: Result = "all") -> Response:
        queue.check_room()
        with TemporaryDirectory(dir=home.name, ignore_cleanup_errors=True) as scan:
            await asyncio.to_thread(write_example, Path(scan), plan)
            found = await predicted(request, Path(scan), with_view=result == "view")
            return found.response(result)

    return app


def answer(
    predictor: Predictor, folder: Path, *, suffix: str | None = None, with_view: bool = False
) -> Answer:
    """Predict the one scan in `folder`; `suffix` is the masks' format, else the scan's own.

    It runs in a thread of anyio's, and ends after the next batch of tiles once nobody waits. What
    goes wrong with a scan is raised as a `LesionsegError` that names no folder of the server's.
    """
    try:
        plan = predictor.plan
        cases = find_images(folder, len(plan.channel_names))
        if len(cases) != 1:
            raise DatasetError(f"Send one scan at a time, not {len(cases)}.")
        files = replace(cases[0], missing=())  # files come in order, so none may be left out
        volume, like = predictor.read(files), files.images[0]
        prediction = predictor.predict_volume(volume, CASE, on_batch=lambda *_: check_cancelled())
        with TemporaryDirectory(dir=folder) as output:
            kind = suffix or result_suffix(like, plan.dims)
            write_prediction(Path(output), prediction, suffix=kind, like=like)
            paths = sorted(Path(output).iterdir())
            paths.append(Path(shutil.make_archive(f"{folder}/{CASE}_all", "zip", output)))
            written = {path.name: path.read_bytes() for path in paths}
        accepted = sum(c.accepted for c in prediction.candidates)
        scene = Scene(volume.array[0], volume.geometry, prediction=prediction)
        view = None
        if with_view:
            below = frozenset(c.id for c in prediction.candidates if not c.accepted)
            mask = candidate_ids(prediction, below) > 0
            picture = draw_overview(scene.image, scene.geometry, mask)
            view = {**viewer.viewer_data(scene), "picture": picture}
        return Answer(written, len(prediction.candidates), accepted, view)
    except LesionsegError as error:
        text = str(error)
        for path in (folder.resolve(), folder):
            text = text.replace(f"{path}/", "").replace(str(path), "the scan")
        raise type(error)(text) from error
    except Exception as error:  # a damaged file, or too little memory for a large one
        raise ReadError(f"The scan cannot be predicted ({type(error).__name__}).") from error


def write_example(folder: Path, plan: Plan) -> None:
    """Write a simulated scan of the model's kind, the same for every channel."""
    kind, shape = (plan.modality, (64, 96, 96)) if plan.dims == 3 else ("xray", (256, 256))
    simulate = getattr(phantoms, f"write_{kind}_phantoms")
    with TemporaryDirectory() as made:
        simulate(Path(made), 1, seed=0, lesion_free_share=0, shape=shape)
        (image,) = Path(made).glob("images*/*")
        for channel in range(len(plan.channel_names)):
            shutil.copyfile(image, folder / f"{CASE}_{channel:04d}{case_suffix(image)}")


def _say(_: Request, error: Exception) -> Response:
    # a full disk is not the client's fault
    status = 500 if isinstance(error, OutputError) else 422
    return JSONResponse({"detail": str(error)}, status)
