"""Training with Lightning.

`fit.fit` trains a network. `LesionModule`, `LesionData` and `VolumeValidation` are its parts, for
use with your own `pl.Trainer`.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.training.callbacks import AfterValidation as AfterValidation
    from lesionseg.training.module import LesionModule as LesionModule
    from lesionseg.training.module import budget_text as budget_text
    from lesionseg.training.objective import make_objective as make_objective
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
    "make_objective": "objective",
    "require_device": "processes",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
