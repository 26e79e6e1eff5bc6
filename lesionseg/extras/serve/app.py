"""Web page and REST routes of `serve`: /predict, /example, /health, /docs, HTTP statuses."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from mimetypes import guess_type
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from anyio import fail_after, to_thread
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from lesionseg.errors import LesionsegError, OutputError
from lesionseg.extras.serve.access_log import AccessLog
from lesionseg.extras.serve.answer import CASE, WARNING_HEADER, Result, ServerReply
from lesionseg.extras.serve.hosts import KnownHosts, with_brackets
from lesionseg.extras.serve.model_process import ModelProcess
from lesionseg.extras.serve.settings import ServeConfig
from lesionseg.extras.serve.slicer import slicer_router
from lesionseg.extras.serve.uploads import STALLED_SECONDS, InferenceQueue, receive
from lesionseg.inference import joint_digest
from lesionseg.phantoms import write_ct_phantoms, write_mri_phantoms, write_xray_phantoms
from lesionseg.plan import Plan
from lesionseg.reporting import NIIVUE, render
from lesionseg.version import __version__

_MAX_UPLOADS = 4  # at once
# the tables of the page that describes the interface
ROUTES = (
    ("GET", "/", "The page that takes a scan."),
    ("GET", "/docs", "This page."),
    ("GET", "/health", "JSON: status (ok, loading or failed), version, bundle, channels, labels."),
    ("POST", "/predict", "A scan as form field file. Query: result (mask if it is not given)."),
    ("POST", "/example", "The same for a simulated scan. Query: result (all if it is not given)."),
    ("GET", "/favicon.ico", "The icon of the page."),
    ("GET", "/info/", "3D Slicer's extension MONAI Label: the model and its labels."),
    ("PUT", "/datastore/", "3D Slicer: send a volume. Query: image, its name."),
    ("PUT", "/session/", "3D Slicer until 2025: send a volume. Answer: session_id."),
    ("GET", "/session/{key}", "3D Slicer until 2025: the volume of a session."),
    ("POST", "/infer/lesionseg", "3D Slicer: the mask of a volume. Query: image or session_id."),
)
RESULTS = {
    "mask": "The mask of accepted candidates, on the grid and in the format of the scan.",
    "candidates": "JSON: score, probability, centre, diameter, volume, accepted of each candidate.",
    "all": "A zip of mask, instances (voxel value = id of the candidate) and candidates.",
    "view": "JSON for the page: base64 of scan, candidates and zip, warning, files of channels.",
}
STATUSES = {
    200: "Done.",
    400: "The form cannot be read, or the server is not called by this name (hosts=).",
    403: "The request comes from a page of another site.",
    404: "There is no such address, or 3D Slicer's volume is gone.",
    408: "The upload stalled, or took longer than request_seconds.",
    409: "3D Slicer: a volume of this name is already waiting. Rename it.",
    413: "The request is too large.",
    422: "The scan cannot be predicted; detail says why.",
    500: "The server cannot write, such as on a full disk.",
    503: "Too many scans are waiting, it took too long, or the model is not loaded (Retry-After).",
}
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" '
    'fill="#334155"/><circle cx="10.5" cy="6.5" r="2.5" fill="#f59e0b"/></svg>'
)


@dataclass(frozen=True, eq=False)
class _Server:
    """The model, limits and queue of a server, and the requests that it answers.

    Attributes:
        model: The process that holds the model.
        plan: The plan of the model.
        cfg: The limits, and the host names under which the server answers besides localhost.
        home: A folder for scans until they are predicted.
        queue: The scans that wait for the model.
        digest: Identifies the bundles.
        receiving: Limits the requests that are received at once, because small files of a form are
            kept in memory.
    """

    model: ModelProcess
    plan: Plan
    cfg: ServeConfig
    home: Path
    queue: InferenceQueue
    digest: str
    receiving: asyncio.Semaphore

    @property
    def labels(self) -> dict[str, int]:
        """The label value in the mask of each label, by label name."""
        return dict(zip(self.plan.labels.names, self.plan.labels.values, strict=True))

    @property
    def max_bytes(self) -> int:
        """The maximum size of a request in bytes."""
        return int(self.cfg.max_upload_mb * 2**20)

    @property
    def hosts(self) -> list[str]:
        """The host names under which the server answers: localhost, and names in the settings."""
        from_settings = map(with_brackets, (self.cfg.host, *self.cfg.hosts))
        return list(dict.fromkeys(["localhost", "127.0.0.1", "[::1]", *from_settings]))

    async def new_folder(self) -> AsyncIterator[Path]:
        """Yield an empty folder for one request, and reserve a place in the queue meanwhile.

        The function is a dependency of FastAPI: it runs before the body of the request is read. The
        folder is removed after the answer.

        Raises:
            HTTPException: If the queue is full (status 503).
        """
        with (
            self.queue.place(),
            TemporaryDirectory(dir=self.home, ignore_cleanup_errors=True) as folder,
        ):
            yield Path(folder)

    async def receive_scan(self, request: Request, folder: Path) -> list[str]:
        """Write the scan in the body of a request to `folder`.

        Args:
            request: The request.
            folder: The empty folder of the request.

        Returns:
            The file names of the channels as the client sent them. Empty for DICOM.

        Raises:
            HTTPException: If the upload stalls or takes more than `cfg.request_seconds` (status
                408). Otherwise a few slow clients could block the server.
            LesionsegError: If the scan cannot be stored, see `receive`.
        """
        try:
            with fail_after(self.cfg.request_seconds):
                async with self.receiving:
                    return await receive(
                        request, folder, self.plan.channel_names, max_bytes=self.max_bytes
                    )
        except TimeoutError as error:
            raise HTTPException(
                408,
                f"The upload stopped for {STALLED_SECONDS:g} s, or took more than "
                f"{self.cfg.request_seconds:g} s (request_seconds). Send the scan again.",
                {"Connection": "close"},  # the rest of the request is not read
            ) from error

    async def predict(
        self, request: Request, folder: Path, result: Result, sent: Sequence[str] = ()
    ) -> ServerReply:
        """Wait in the queue, predict the scan in `folder`, and return the requested file.

        For the arguments, see `ModelProcess.predict`. If the client leaves, the prediction ends.
        """
        work = partial(self.model.predict, folder, result, sent)
        return await self.queue.run(request, work)

    async def respond(
        self, request: Request, folder: Path, result: Result, sent: Sequence[str] = ()
    ) -> Response:
        """Wait in the queue, predict the scan in `folder`, and answer with the requested file.

        Args:
            request: The request.
            folder: The folder with the scan.
            result: The requested file, see `RESULTS`.
            sent: The file names of the channels as the client sent them.
        """
        answer = await self.predict(request, folder, result, sent)
        media_type = guess_type(answer.name)[0]
        return Response(answer.content, headers=answer.headers, media_type=media_type)


def make_app(model: ModelProcess, cfg: ServeConfig, home: Path) -> FastAPI:
    """Wait until the model is loaded, and make the web application with all its routes.

    `ROUTES`, `RESULTS` and `STATUSES` describe the interface; the page `/docs` shows them.

    Args:
        model: The process that holds the model.
        cfg: The limits, and the host names under which the server answers besides localhost.
        home: A folder for scans until they are predicted.
    """
    server = _Server(
        model=model,
        plan=model.wait(),
        cfg=cfg,
        home=home,
        queue=InferenceQueue(cfg.max_waiting, cfg.request_seconds, model),
        digest=joint_digest(cfg.bundle),
        receiving=asyncio.Semaphore(_MAX_UPLOADS),
    )
    # FastAPI's own documentation loads scripts from other sites, so `/docs` is our own page
    app = FastAPI(
        openapi_url=None,
        dependencies=[Depends(reject_other_sites)],
        max_body_size=server.max_bytes,
    )
    app.add_middleware(KnownHosts, hosts=server.hosts)
    app.add_middleware(AccessLog)  # the outermost, so that rejected requests are logged as well
    app.add_exception_handler(LesionsegError, _explain)
    app.include_router(
        slicer_router(server.labels, server.new_folder, server.receive_scan, server.predict)
    )
    if NIIVUE.is_file():
        app.mount("/niivue", StaticFiles(directory=NIIVUE.parent))  # the page loads it from here
    _add_pages(app, server)
    _add_predictions(app, server)
    return app


async def reject_other_sites(request: Request) -> None:
    """Reject requests from pages of other sites, before their body is read.

    A browser states the site of the page in the header `Origin`, which must be this server.
    Requests of programs have no `Origin` and pass.

    Raises:
        HTTPException: If the request comes from another site (status 403).
    """
    origin = request.headers.get("origin", "")
    # the origin is a scheme and a host, such as http://localhost:8000
    if origin and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "Pages of other sites cannot use this server.")


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """Answer a request with the message of the error that it has raised.

    The status is 500 if the server cannot write, because that is not the client's fault, otherwise
    422. FastAPI calls this function for each `LesionsegError`.
    """
    status = 500 if isinstance(error, OutputError) else 422
    return JSONResponse({"detail": str(error)}, status)


def _add_pages(app: FastAPI, server: _Server) -> None:
    """Add the routes of the pages: the page to send a scan, its icon, `/docs` and `/health`.

    `/health` states if the model is loaded. Its status is 503 if the model has failed, so that a
    monitor detects it.
    """
    plan = server.plan
    cfg = server.cfg

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        """Return the page to send a scan."""
        return render("serve.html.j2", viewer=NIIVUE.is_file(), plan=plan, labels=server.labels)

    @app.get("/docs", response_class=HTMLResponse)
    async def describe(request: Request) -> str:
        """Return the page `/docs`, which describes the interface, limits and statuses."""
        return render(
            "serve_api.html.j2",
            base=str(request.base_url),
            digest=server.digest,
            channels=plan.channel_names,
            labels=server.labels,
            routes=[{"": method, "path": path, "what": words} for method, path, words in ROUTES],
            warning_header=WARNING_HEADER,
            results=[{"result=": name, "answer": words} for name, words in RESULTS.items()],
            statuses=[{"status": str(code), "meaning": words} for code, words in STATUSES.items()],
            max_mb=f"{cfg.max_upload_mb:g}",
            max_waiting=cfg.max_waiting,
            seconds=f"{cfg.request_seconds:g}",
            stalled_seconds=f"{STALLED_SECONDS:g}",
            hosts=server.hosts,
        )

    @app.get("/favicon.ico")
    async def favicon() -> Response:
        """Return the icon of the page."""
        return Response(ICON, media_type="image/svg+xml")

    @app.get("/health")
    async def health() -> JSONResponse:
        """Return the status of the model, with its bundle, channels and labels, as JSON."""
        status = server.model.status
        about = {"status": status, "version": __version__, "bundle": server.digest}
        content = {**about, "channels": plan.channel_names, "labels": server.labels}
        return JSONResponse(content, 503 if status == "failed" else 200)


def _add_predictions(app: FastAPI, server: _Server) -> None:
    """Add the routes that predict a sent scan (`/predict`) or a simulated scan (`/example`)."""
    # a parameter of this type gets a new folder, and the request a place in the queue
    Folder = Annotated[Path, Depends(server.new_folder)]

    @app.post("/predict")
    async def predict(request: Request, folder: Folder, result: Result = "mask") -> Response:
        """Receive the scan in the form of the request, predict it, and return a file."""
        sent = await server.receive_scan(request, folder)
        return await server.respond(request, folder, result, sent)

    @app.post("/example")
    async def example(request: Request, folder: Folder, result: Result = "all") -> Response:
        """Simulate a scan, predict it, and return a file."""
        await to_thread.run_sync(write_example, folder, server.plan)
        return await server.respond(request, folder, result)


def write_example(folder: Path, plan: Plan) -> None:
    """Write a simulated scan that suits the model into `folder`, for a first try of the server.

    The scan is a CT, an MRI or, for a 2-D model, a radiograph. All its channels are equal.
    """
    simulate: Callable[..., None] = write_xray_phantoms
    shape: tuple[int, ...] = (256, 256)
    if plan.dims == 3:
        simulate = write_ct_phantoms if plan.modality == "ct" else write_mri_phantoms
        shape = (64, 96, 96)
    with TemporaryDirectory(dir=folder) as dataset:
        simulate(Path(dataset), 1, seed=0, lesion_free_share=0, shape=shape)  # one scan
        (image,) = Path(dataset).glob("images*/*")
        # each channel is a copy, with nnU-Net's channel number in its name
        for channel in range(len(plan.channel_names)):
            suffix = image.name.partition(".")[2]  # such as nii.gz
            shutil.copyfile(image, folder / f"{CASE}_{channel:04d}.{suffix}")
