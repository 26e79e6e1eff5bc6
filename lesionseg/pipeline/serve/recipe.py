"""Serve: a bundle behind HTTP, for a page, for programs and for 3D Slicer."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lesionseg.errors import ConfigError, pip_install
from lesionseg.inference.bundles.bundle import bundle_digest
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.run.outcome import CommandOutcome

logger = logging.getLogger(__name__)


def serve(
    bundle: str | Path | Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_upload_mb: float = 1024.0,
    inference: InferenceSettings | None = None,
    operating_point: str | None = None,
    device: str = "auto",
    trust: bool = False,
) -> CommandOutcome:
    """Serve until interrupted; see `serve.app` for what it answers.

    There is neither encryption nor a password: by default only this machine can ask. Requests are
    not logged, for their addresses may hold names. Raises `ConfigError` without the extra `serve`,
    `BundleError` for an unusable bundle.

    Args:
        bundle: a run directory or a bundle's folder, or several that are averaged.
        host: the address to listen at.
        port: the port to listen at.
        max_upload_mb: the largest request, in megabytes of 2²⁰ bytes.
        inference: overlap, mirrored views, batch size, precision and memory.
        operating_point: accepts candidates; None: the bundle's first.
        device: "auto", "cpu" or "cuda".
        trust: classes that the bundle names may be imported.
    """
    uvicorn = _uvicorn()
    app = serving_app(
        bundle,
        max_upload_mb=max_upload_mb,
        inference=inference,
        operating_point=operating_point,
        device=device,
        trust=trust,
    )
    logger.info("Serving at http://%s:%d; stop with Ctrl-C.", host, port)
    uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")
    return CommandOutcome()


def serving_app(
    bundle: str | Path | Sequence[str | Path],
    *,
    max_upload_mb: float = 1024.0,
    inference: InferenceSettings | None = None,
    operating_point: str | None = None,
    device: str = "auto",
    architectures: Mapping[str, NetworkFactory] | None = None,
    trust: bool = False,
) -> Any:
    """The ASGI application, for another server than uvicorn.

    Args:
        bundle: a run directory or a bundle's folder, or several that are averaged.
        max_upload_mb: the largest request, in megabytes of 2²⁰ bytes.
        inference: overlap, mirrored views, batch size, precision and memory.
        operating_point: accepts candidates; None: the bundle's first.
        device: "auto", "cpu" or "cuda".
        architectures: the caller's own networks; see `Predictor`.
        trust: classes that the bundle names may be imported.
    """
    _uvicorn()
    from lesionseg.pipeline.serve.app import make_app
    from lesionseg.pipeline.serve.uploads import Answerer

    folders = (bundle,) if isinstance(bundle, (str, Path)) else tuple(bundle)
    predictor = Predictor(
        folders,
        device=device,
        operating_point=operating_point,
        settings=inference,
        architectures=architectures,
        trust=trust,
    )
    digest = "+".join(bundle_digest(Path(folder)) for folder in folders)
    return make_app(Answerer(predictor), bundle=digest, max_upload_mb=max_upload_mb)


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
