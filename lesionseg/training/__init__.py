"""Training: the only package that knows Lightning.

`fit.fit` is the whole; `lesion_module` and `LesionData` train under a `pl.Trainer` of one's own.
"""

from lesionseg.training.fit import lesion_module, tiles_of
from lesionseg.training.module import LesionModule
from lesionseg.training.tile_stream import LesionData

__all__ = ["LesionData", "LesionModule", "lesion_module", "tiles_of"]
