"""A prediction: the candidates of one case and their masks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.candidate import Candidate, OperatingPoint
from lesionseg.core.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Prediction:
    """All retained candidates of a case, on the grid of the scan's own file.

    `candidates` are sorted by descending score, ties by id. `instances` `[*spatial]` int32 holds
    candidate ids, 0 elsewhere; None with boxes only. `scored` is False for bare masks of another
    program: their candidates' scores are a placeholder and FROC, CPM and AP are null. `values`
    `[*spatial]` holds the mask values of all candidates where they differ within one (regions);
    None: a candidate's voxels all hold its label. `removed`: what would be candidates but for
    their size, boxes without masks, with ids of their own; only to tell why a lesion was missed.
    """

    case: str
    geometry: Geometry
    candidates: tuple[Candidate, ...]
    instances: NDArray[np.int32] | None
    voxel_threshold: float | None = None
    operating_point: OperatingPoint | None = None
    scored: bool = True
    values: NDArray[np.uint8] | None = None
    removed: tuple[Candidate, ...] = ()

    def mask(self) -> NDArray[np.uint8]:
        """Label values `[*spatial]` of the accepted candidates; zeros when there is none."""
        if self.instances is None:
            return np.zeros(self.geometry.shape, dtype=np.uint8)
        label_of = np.zeros(max([c.id for c in self.candidates], default=0) + 1, dtype=np.uint8)
        for candidate in self.candidates:
            label_of[candidate.id] = candidate.label if candidate.accepted else 0
        labels = label_of[self.instances]
        return labels if self.values is None else np.where(labels > 0, self.values, np.uint8(0))
