"""What a picture is made of: one case's image and masks on one grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    """One case to be drawn: its first channel `[*spatial]` and masks on the same grid, or None.

    `reference` holds all reference lesions, `accepted` all marks that count.
    """

    image: NDArray[Any]
    geometry: Geometry
    reference: Mask | None = None
    accepted: Mask | None = None


# (case, ids of the candidates that count) -> scene; raises LesionsegError
Load = Callable[[str, frozenset[int]], Scene]
