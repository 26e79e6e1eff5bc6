"""Training: the only package that knows Lightning.

Its public names are imported when they are asked for, so that a configuration can name
`training.settings` without loading Lightning. `fit` is the whole; `lesion_module` and `LesionData`
train under a `pl.Trainer` of one's own (docs/training.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionseg.training.fit import lesion_module as lesion_module
    from lesionseg.training.fit import tiles_of as tiles_of
    from lesionseg.training.learning_settings import Learning as Learning
    from lesionseg.training.lightning_module import LesionModule as LesionModule
    from lesionseg.training.settings import OptimiserSettings as OptimiserSettings
    from lesionseg.training.settings import TrainerSettings as TrainerSettings
    from lesionseg.training.tile_stream import LesionData as LesionData

_HOMES = {
    "Learning": "learning_settings",
    "LesionData": "tile_stream",
    "LesionModule": "lightning_module",
    "OptimiserSettings": "settings",
    "TrainerSettings": "settings",
    "lesion_module": "fit",
    "tiles_of": "fit",
}
__all__ = [
    "Learning",
    "LesionData",
    "LesionModule",
    "OptimiserSettings",
    "TrainerSettings",
    "lesion_module",
    "tiles_of",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lesionseg.training' has no attribute {name!r}")
    return getattr(import_module(f"lesionseg.training.{_HOMES[name]}"), name)
