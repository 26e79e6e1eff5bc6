"""lesionseg: find small lesions in scans, and say honestly how well they are found."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names
from lesionseg.version import __version__

if TYPE_CHECKING:
    from lesionseg.api import Run as Run
    from lesionseg.api import evaluate as evaluate
    from lesionseg.api import follow as follow
    from lesionseg.api import predict as predict
    from lesionseg.api import prepare as prepare
    from lesionseg.api import report as report
    from lesionseg.api import train as train
    from lesionseg.inference.predictor import Predictor as Predictor

_HOMES = {
    "Predictor": "inference.predictor",
    "Run": "api",
    "evaluate": "api",
    "follow": "api",
    "predict": "api",
    "prepare": "api",
    "report": "api",
    "train": "api",
}
__all__ = ["__version__", *_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
