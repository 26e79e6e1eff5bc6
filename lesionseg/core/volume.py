"""A volume: voxels and where they lie."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.geometry import Geometry
from lesionseg.errors import GeometryError


@dataclass(frozen=True, eq=False)
class Volume:
    """An array `[C, *spatial]` with its geometry; a 2-D X-ray is a volume with two spatial axes.

    `valid` `[*spatial]` bool: voxels that show something, and not the padding, shutter or
    collimator of a radiograph; None when all do.
    """

    array: NDArray[Any]
    geometry: Geometry
    valid: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.array.shape[1:] != self.geometry.shape:
            raise GeometryError(
                "The array does not fit its geometry.",
                seen=self.array.shape,
                expected=("C", *self.geometry.shape),
            )
