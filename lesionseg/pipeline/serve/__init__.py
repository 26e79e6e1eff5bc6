"""`serve`: a bundle behind HTTP; scans come in, masks go out, nothing stays.

`app` is the page and the REST interface, `slicer` answers 3D Slicer's plug-in, `uploads` holds what
was sent and the queue. Encryption, passwords and slow connections are a proxy's work.
"""

import logging
from contextlib import suppress

from lesionseg.config import ServeConfig
from lesionseg.errors import ConfigError, pip_install
from lesionseg.pipeline.predict import make_predictor

logger = logging.getLogger(__name__)
STOP_SECONDS = 3
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def serve(cfg: ServeConfig) -> None:
    """Serve until interrupted; see `serve.app` for what it answers.

    By default only this machine can ask. Of requests nothing is logged: addresses may hold names.
    Raises `ConfigError` without the extra `serve`, `BundleError` for an unusable bundle.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"serve: {error}. {pip_install('serve')}") from error
    from lesionseg.pipeline.serve.app import make_app

    predictor = make_predictor(cfg)
    logger.info("Serving at http://%s:%d; stop with Ctrl-C.", cfg.host, cfg.port)
    if cfg.host not in _THIS_MACHINE:
        logger.warning("Other machines reach this server: put a proxy with a password before it.")
    # what clients send must not fill the log
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with suppress(KeyboardInterrupt):
        uvicorn.run(
            make_app(predictor, cfg),
            host=cfg.host,
            port=cfg.port,
            ws="none",
            access_log=False,
            log_level="error",
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
