"""`serve`: a bundle behind HTTP; scans come in, masks go out, nothing stays.

`app` is the page and the REST interface, `slicer` answers 3D Slicer's plug-in, `uploads` holds what
was sent and the queue, `access_log` notes each request. Encryption, passwords and slow connections
are a proxy's work.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lesionseg.config import ServeConfig
from lesionseg.errors import ConfigError, pip_install
from lesionseg.pipeline.case_work import make_predictor
from lesionseg.pipeline.outcome import Outcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOutcome(Outcome):
    """A server that has ended. It has kept nothing."""

    def summary(self) -> list[str]:
        """Return no line: the requests are in the log."""
        return []

    @property
    def next(self) -> None:
        """None: there is nothing to do."""
        return


def serve(cfg: ServeConfig) -> ServeOutcome:
    """Serve until interrupted. `serve.app` answers the requests.

    By default only this machine can ask. Each request is logged without names (`access_log`).

    Raises:
        ConfigError: if the extra `serve` is not installed.
        BundleError: if the bundle cannot be used.
    """
    try:
        import python_multipart  # noqa: F401
        import uvicorn

        from lesionseg.pipeline.serve.app import make_app
    except ImportError as error:
        raise ConfigError(f"serve: {error}. {pip_install('serve')}") from error
    predictor = make_predictor(cfg)
    logger.info("Serving at http://%s:%d; stop with Ctrl-C.", cfg.host, cfg.port)
    if cfg.host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning("Other machines reach this server: put a proxy with a password before it.")
    # what clients send must not fill the log
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with suppress(KeyboardInterrupt), TemporaryDirectory(ignore_cleanup_errors=True) as home:
        uvicorn.run(
            make_app(predictor, cfg, Path(home).resolve()),
            host=cfg.host,
            port=cfg.port,
            ws="none",
            access_log=False,  # ours has no names of files
            log_level="error",
            server_header=False,
            timeout_graceful_shutdown=3,
        )
    return ServeOutcome()
