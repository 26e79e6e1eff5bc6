"""`serve`: start and stop of the web server; warning if other machines can reach it."""

import logging
from contextlib import suppress

from lesionseg.errors import ConfigError, pip_install
from lesionseg.extras.serve.home import server_folder
from lesionseg.extras.serve.model_process import running_model
from lesionseg.extras.serve.settings import ServeConfig
from lesionseg.pipeline import Outcome

logger = logging.getLogger(__name__)


def serve(cfg: ServeConfig) -> Outcome:
    """Serve the model until interrupted by Ctrl-C. `serve.app` answers the requests.

    By default only this machine can send requests. Each request is logged without names of patients
    (`access_log`).

    Args:
        cfg: See conf/serve.yaml.

    Returns:
        An empty outcome, because a server leaves no files.

    Raises:
        ConfigError: If the extra `serve` is not installed, if device or operating point are wrong,
            or if the server cannot use host or port.
        OutputError: If the folder for scans cannot be made.
        BundleError: If the bundle cannot be used.
        ResourceError: If the process that loads the model ends.
    """
    try:
        # only to check that they are installed
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn

        from lesionseg.extras.serve.hosts import with_brackets
    except ImportError as error:
        raise ConfigError(
            f"serve needs the extra `serve` ({error}). Run {pip_install('serve')}."
        ) from error
    # malformed requests must not fill the log
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with (
        suppress(KeyboardInterrupt),
        server_folder() as home,
        running_model(cfg) as model,
    ):
        from lesionseg.extras.serve.app import make_app  # while the process loads the model

        app = make_app(model, cfg, home)
        logger.info("Serving at http://%s:%d; stop with Ctrl-C.", with_brackets(cfg.host), cfg.port)
        _warn_if_open(cfg)
        try:
            uvicorn.run(
                app,
                host=cfg.host,
                port=cfg.port,
                ws="none",  # no WebSockets
                access_log=False,  # our own log has no names of files
                log_level="error",
                server_header=False,
                timeout_graceful_shutdown=3,  # seconds for answers after Ctrl-C
            )
        except SystemExit as error:  # uvicorn has printed the cause; its status is 3
            raise ConfigError(
                f"host={cfg.host} port={cfg.port}: the server cannot start. If another program "
                "uses this port, name another port=. The host must be an address of this machine."
            ) from error
    return Outcome()  # a server leaves no files, and the requests are in the log


def _warn_if_open(cfg: ServeConfig) -> None:
    """Warn if other machines can reach the server, and if it would refuse all their requests.

    The hosts 0.0.0.0 and :: accept connections from any machine, but are no name that a client
    uses.
    """
    if cfg.host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning(
            "Other machines can reach this server. Put a proxy with a password in front of it."
        )
    if cfg.host in ("0.0.0.0", "::") and not cfg.hosts:
        logger.warning(
            "Requests of other machines get status 400 until hosts= has the name or address that "
            "they use for this server, such as 'hosts=[scans.example.org,192.0.2.7]'."
        )
