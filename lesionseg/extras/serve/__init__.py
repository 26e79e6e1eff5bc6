"""`serve`: predict scans that are sent by HTTP. No scan and no result is kept.

`app` has the page and the REST interface, `slicer` the interface of 3D Slicer's plug-in, `uploads`
the received files and the queue, `model_process` the process that predicts, `answer` its work and
the returned file, `hosts` the names of the server, `home` its folder for scans, `access_log` the
log of requests. Use a proxy for encryption and passwords.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.extras.serve.recipe import serve as serve
    from lesionseg.extras.serve.settings import ServeConfig as ServeConfig

_HOMES = {
    "ServeConfig": "settings",
    "serve": "recipe",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
