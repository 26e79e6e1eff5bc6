"""Training: the only package that knows Lightning.

Its public names are imported when they are asked for. `lesion_module` and `LesionData` train under
a `pl.Trainer` of one's own.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "LesionData": "tile_stream",
    "LesionModule": "module",
    "lesion_module": "fit",
    "tiles_of": "fit",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lesionseg.training' has no attribute {name!r}")
    return getattr(import_module(f"lesionseg.training.{_HOMES[name]}"), name)
