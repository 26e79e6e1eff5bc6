"""lesionseg: find small lesions in scans, and say honestly how well they are found."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionseg.api import Run as Run
    from lesionseg.api import evaluate as evaluate
    from lesionseg.api import follow as follow
    from lesionseg.api import predict as predict
    from lesionseg.api import prepare as prepare
    from lesionseg.api import report as report
    from lesionseg.api import train as train
    from lesionseg.inference.predictor import Predictor as Predictor

__version__ = "1.0.0"
__all__ = [
    "Predictor",
    "Run",
    "__version__",
    "evaluate",
    "follow",
    "predict",
    "prepare",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the packages behind it are heavy."""
    if name not in __all__:
        raise AttributeError(f"module 'lesionseg' has no attribute {name!r}")
    home = "inference.predictor" if name == "Predictor" else "api"
    return getattr(import_module(f"lesionseg.{home}"), name)


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted(__all__)
