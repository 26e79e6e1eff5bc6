"""What passes between the three steps of a prediction: prepare, infer, restore."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.inference.candidates.box_candidates import FoundBoxes
from lesionseg.inference.sliding.body import Body
from lesionseg.inference.sliding.store import Store


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan as the network meets it, where the patient is in it, and its own file's grid.

    `valid`: see `core.Volume`, on the file's grid.
    """

    image: Volume
    file_geometry: Geometry
    body: Body | None = None
    valid: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Inferred:
    """Probabilities and a detector's boxes on the plan's grid, and the grid of the scan's own file.

    `seconds`: that the network took, with what is done to its tiles. `valid`: as in `PreparedScan`;
    nothing is found where a radiograph shows nothing.
    """

    store: Store
    plan_geometry: Geometry
    file_geometry: Geometry
    seconds: float = 0.0
    boxes: FoundBoxes | None = None
    valid: NDArray[np.bool_] | None = None
