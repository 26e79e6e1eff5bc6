"""From what the network said to a prediction: restored to the file's grid, found, accepted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core import Candidate, Geometry, OperatingPoint, Prediction
from lesionseg.inference.candidates.acceptance import accept
from lesionseg.inference.candidates.box_candidates import FoundBoxes
from lesionseg.inference.candidates.fusion import box_candidates, fuse
from lesionseg.inference.candidates.painting import find_by_plan
from lesionseg.inference.candidates.peaks import Above, collect_above
from lesionseg.inference.sliding.restore import restore_slabs
from lesionseg.inference.sliding.store import Store
from lesionseg.plan.plan import Plan

Slab = NDArray[np.float32]
# of the place of a label in the plan and the slabs of its probabilities: what to go on with
Watch = Callable[[int, Iterator[Slab]], Iterator[Slab]]


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

    def restored(self) -> Iterator[Iterator[Slab]]:
        """Of one label after the other, slabs `[rows, *file[1:]]` of probabilities on its grid."""
        for channel in self.store.values:
            yield self._slabs(channel)

    def _slabs(self, channel: Tensor) -> Iterator[Slab]:
        grids = self.plan_geometry, self.file_geometry
        row = 0
        for slab in restore_slabs(channel, *grids, decode=self.store.decode):
            self.store.release()
            if self.valid is not None:
                slab = np.where(self.valid[row : row + len(slab)], slab, np.float32(0))
                row += len(slab)
            yield slab


@dataclass(frozen=True)
class CaseDecision:
    """The rules by which a case's probabilities and boxes become a prediction."""

    plan: Plan
    operating_point: OperatingPoint

    def __call__(self, inferred: Inferred, case: str, watch: Watch | None = None) -> Prediction:
        """The prediction of a case on its file's grid; what was inferred is let go.

        With a detector's boxes these are the candidates, or both are fused, as the plan's rule
        says. `watch` is shown the probabilities of each label slab by slab.
        """
        rule, geometry = self.plan.candidate_rule, inferred.file_geometry
        channels: list[Above] = []
        for label, slabs in enumerate(inferred.restored()):
            shown = slabs if watch is None else watch(label, slabs)
            channels.append(collect_above(shown, geometry.shape, rule))
        inferred.store.close()
        boxes = self._boxes(inferred)
        if boxes is not None and rule.source == "detection":
            prediction = Prediction(case, geometry, boxes, None)
        else:
            found = find_by_plan(channels, geometry, self.plan)
            found = found if boxes is None else fuse(found, boxes)
            prediction = Prediction(
                case,
                geometry,
                found.candidates,
                found.instances,
                values=found.values,
                removed=found.removed,
            )
        return accept(prediction, self.operating_point, self.plan.calibration)

    def _boxes(self, inferred: Inferred) -> tuple[Candidate, ...] | None:
        """A detector's boxes on the file's grid; None where none are asked for."""
        if inferred.boxes is None:
            return None
        labels = tuple(self.plan.lesion_labels)
        grids = inferred.plan_geometry, inferred.file_geometry
        found = box_candidates(inferred.boxes, *grids, self.plan.candidate_rule, labels)
        return found if inferred.valid is None else _within(found, inferred.valid)


def _within(candidates: tuple[Candidate, ...], valid: NDArray[np.bool_]) -> tuple[Candidate, ...]:
    """The candidates whose box has its middle on a voxel that shows something."""
    limit = np.array(valid.shape) - 1

    def middle(candidate: Candidate) -> tuple[int, ...]:
        centre = (np.array(candidate.start_vox) + np.array(candidate.stop_vox)) / 2
        return tuple(np.floor(centre).astype(int).clip(0, limit).tolist())

    return tuple(candidate for candidate in candidates if valid[middle(candidate)])
