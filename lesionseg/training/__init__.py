"""Training with Lightning.

`fit.fit` trains a network. `lesion_module`, `LesionData` and `VolumeValidation` are its parts, for
use with your own `pl.Trainer`.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.training.callbacks import AfterValidation as AfterValidation
    from lesionseg.training.fit import lesion_module as lesion_module
    from lesionseg.training.fit import tiles_of as tiles_of
    from lesionseg.training.module import LesionModule as LesionModule
    from lesionseg.training.module import budget_text as budget_text
    from lesionseg.training.processes import join_processes as join_processes
    from lesionseg.training.processes import require_device as require_device
    from lesionseg.training.tile_stream import LesionData as LesionData
    from lesionseg.training.validation import SCORE as SCORE
    from lesionseg.training.validation import VolumeValidation as VolumeValidation

_HOMES = {
    "AfterValidation": "callbacks",
    "LesionData": "tile_stream",
    "LesionModule": "module",
    "SCORE": "validation",
    "VolumeValidation": "validation",
    "budget_text": "module",
    "join_processes": "processes",
    "lesion_module": "fit",
    "require_device": "processes",
    "tiles_of": "fit",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
