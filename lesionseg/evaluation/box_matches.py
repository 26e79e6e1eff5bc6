"""What official scorers take from a case to sum up later."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class BoxMatches:
    """One label of one case in one range of areas.

    `scores` `[boxes]` descending; `matched` and `ignored` `[ious, boxes]`; `n_lesions` counts
    those that are not ignored.
    """

    label: int
    area: str
    scores: NDArray[np.float64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    n_lesions: int


# numbers by name of scorers of masks, matches by label and range of scorers of boxes
OfficialCase = Mapping[str, float | None] | tuple[BoxMatches, ...] | None
