"""Serve: a bundle behind HTTP, for a page, for programs and for 3D Slicer."""

import atexit
import gc
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lesionseg.errors import ConfigError, pip_install
from lesionseg.inference.bundles.bundle import bundle_digest
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.pipeline.run.outcome import CommandOutcome

logger = logging.getLogger(__name__)
STOP_SECONDS = 3
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def serve(
    bundle: str | Path | Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ssl_certfile: str | None = None,
    ssl_keyfile: str | None = None,
    max_upload_mb: float = 1024.0,
    max_files: int = 5000,
    max_waiting: int = 32,
    request_seconds: float = 900.0,
    hosts: Sequence[str] = (),
    token: str | None = None,
    inference: InferenceSettings | None = None,
    operating_point: str | None = None,
    device: str = "auto",
    trust: bool = False,
) -> CommandOutcome:
    """Serve until interrupted; see `serve.app` for what it answers.

    By default only this machine can ask, without a token. Of requests the log has route, status
    and seconds, for addresses may hold names. Raises `ConfigError` without the extra `serve`,
    `BundleError` for an unusable bundle.

    Args:
        bundle: a run directory or a bundle's folder, or several that are averaged.
        host: the address to listen at.
        port: the port to listen at.
        ssl_certfile: a PEM certificate for HTTPS; None: HTTP.
        ssl_keyfile: its key, where the certificate's file has none.
        max_upload_mb: the largest request, in megabytes of 2²⁰ bytes.
        max_files: the most files in a request, and in its zip.
        max_waiting: uploads and scans taken at once, others get status 503.
        request_seconds: the longest time to send a request, and again to answer it.
        hosts: names and addresses of the server, besides localhost and `host`.
        token: what clients must send as bearer or password; None: nothing is asked.
        inference: overlap, mirrored views, batch size, precision and memory.
        operating_point: accepts candidates; None: the bundle's first.
        device: "auto", "cpu" or "cuda".
        trust: classes that the bundle names may be imported.
    """
    uvicorn = _uvicorn()
    if token is not None and not (isinstance(token, str) and token and token.isascii()):
        # an empty variable of the environment would open the server
        raise ConfigError(
            "The token must be text of ASCII characters, and not empty.",
            where="token",
            remedy="Quote a number twice: token='\"2718\"'.",
        )
    from lesionseg.data.adaptor import import_monai
    from lesionseg.pipeline.serve.app import make_app
    from lesionseg.pipeline.serve.gate import HeadInTime
    from lesionseg.pipeline.serve.uploads import ServeLimits

    import_monai()  # takes seconds, for which the first scan would wait
    folders = (bundle,) if isinstance(bundle, (str, Path)) else tuple(bundle)
    predictor = Predictor(
        folders, device=device, operating_point=operating_point, settings=inference, trust=trust
    )
    app = make_app(
        predictor,
        bundle="+".join(bundle_digest(Path(folder)) for folder in folders),
        limits=ServeLimits(int(max_upload_mb * 2**20), max_files, max_waiting, request_seconds),
        hosts=(host, *hosts),
        token=token,
    )
    settings = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=HeadInTime,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
    )
    try:
        settings.load()
    except OSError as error:  # which ssl's errors are, too
        raise ConfigError(
            "The certificate or its key cannot be used.", where=ssl_certfile, seen=error
        ) from error
    scheme = "https" if ssl_certfile else "http"
    logger.info("Serving at %s://%s:%d; stop with Ctrl-C.", scheme, host, port)
    if host not in _THIS_MACHINE and not (token and ssl_certfile):
        logger.warning("Other machines reach this server: set token, ssl_certfile and hosts.")
    # what clients send must not fill the log
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    atexit.register(gc.freeze)  # else Python looks through every module's objects at its end
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run()
    return CommandOutcome()


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            "Serving needs packages that are not installed.",
            seen=str(error),
            remedy=pip_install("serve"),
        ) from error
    return uvicorn
