"""lesionseg: find small lesions in scans, and say honestly how well they are found."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionseg.inference.predictor import Predictor as Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Predictor`, and torch with it, only when it is asked for."""
    if name == "Predictor":
        from lesionseg.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'lesionseg' has no attribute {name!r}")
