"""`serve`: a bundle behind HTTP; scans come in, masks go out, nothing stays.

`app` is the page and the REST interface, `slicer` what 3D Slicer's plug-in asks for, `uploads` what
was sent and the queue in front of the network. Where strangers reach it, put a proxy before it:
encryption, passwords and protection from slow or many connections are the proxy's.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lesionseg.errors import ConfigError, pip_install
from lesionseg.inference.bundle import bundle_digest
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.settings import InferenceSettings

__all__ = ["serve"]

logger = logging.getLogger(__name__)
STOP_SECONDS = 3
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def serve(
    bundle: str | Path | Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    hosts: Sequence[str] = (),
    max_upload_mb: float = 1024.0,
    max_waiting: int = 32,
    request_seconds: float = 900.0,
    inference: InferenceSettings | None = None,
    operating_point: str | None = None,
    device: str = "auto",
    trust: bool = False,
) -> None:
    """Serve until interrupted; see `serve.app` for what it answers.

    By default only this machine can ask. Of requests nothing is logged: addresses may hold names.
    Raises `ConfigError` without the extra `serve`, `BundleError` for an unusable bundle.

    Args:
        bundle: a run directory or a bundle's folder, or several that are averaged.
        host: the address to listen at.
        port: the port to listen at.
        hosts: names and addresses of the server, besides localhost and `host`.
        max_upload_mb: the largest request, and the most a zip may hold, in 2²⁰ bytes.
        max_waiting: scans taken at once, others get status 503.
        request_seconds: the longest time to wait for an answer.
        inference: overlap, mirrored views, batch size and memory.
        operating_point: accepts candidates; None: the bundle's first.
        device: "auto", "cpu" or "cuda".
        trust: classes that the bundle names may be imported.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"serve: {error}. {pip_install('serve')}") from error
    from lesionseg.pipeline.serve.app import make_app
    from lesionseg.pipeline.serve.uploads import ServeLimits

    bundles = (bundle,) if isinstance(bundle, (str, Path)) else tuple(bundle)
    predictor = Predictor(
        bundles, device=device, operating_point=operating_point, settings=inference, trust=trust
    )
    app = make_app(
        predictor,
        bundle="+".join(bundle_digest(Path(folder)) for folder in bundles),
        limits=ServeLimits(int(max_upload_mb * 2**20), max_waiting, request_seconds),
        hosts=(host, *hosts),
    )
    settings = uvicorn.Config(
        app,
        host=host,
        port=port,
        ws="none",
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    logger.info("Serving at http://%s:%d; stop with Ctrl-C.", host, port)
    if host not in _THIS_MACHINE:
        logger.warning("Other machines reach this server: put a proxy with a password before it.")
    # what clients send must not fill the log
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run()
