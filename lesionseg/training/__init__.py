"""Training with Lightning.

`fit.fit` trains a network. `lesion_module`, `LesionData` and `VolumeValidation` are its parts, for
use with your own `pl.Trainer`.
"""

from lesionseg.training.fit import lesion_module, tiles_of
from lesionseg.training.module import LesionModule
from lesionseg.training.tile_stream import LesionData
from lesionseg.training.validation import VolumeValidation

__all__ = ["LesionData", "LesionModule", "VolumeValidation", "lesion_module", "tiles_of"]
