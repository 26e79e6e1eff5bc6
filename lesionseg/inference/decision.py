"""From what the networks said to a prediction: restored to the file's grid, found, accepted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import UNION, Candidate, Geometry, InputVerdict, OperatingPoint, Prediction
from lesionseg.errors import GeometryError
from lesionseg.inference.accept import accept, choose_operating_point
from lesionseg.inference.boxes import Boxes
from lesionseg.inference.candidates import CandidateSet, find_candidates
from lesionseg.inference.fusion import box_candidates, fuse
from lesionseg.inference.peaks import SparseProbabilities, collect_sparse
from lesionseg.inference.probabilities import calibrated_voxels
from lesionseg.inference.restore import restore_slabs
from lesionseg.inference.stitch import Store
from lesionseg.plan.plan import Plan

Slab = NDArray[np.float32]
# of the place of a label in the plan and the slabs of its probabilities: what to go on with
Watch = Callable[[int, Iterator[Slab]], Iterator[Slab]]


@dataclass(frozen=True, eq=False)
class Inferred:
    """Probabilities and a detector's boxes on the plan's grid, and the grid of the scan's own file.

    `seconds`: that the networks took. `valid`: as in `core.Volume`, on the file's grid; nothing is
    found where a radiograph shows nothing. `input`: whether the scan is like the training scans.
    `missing`: places of the channels that it lacks.
    """

    store: Store
    plan_geometry: Geometry
    file_geometry: Geometry
    input: InputVerdict
    boxes: Boxes | None = None
    seconds: float = 0.0
    valid: NDArray[np.bool_] | None = None
    missing: tuple[int, ...] = ()

    def restored(self, plan: Plan) -> Iterator[Iterator[Slab]]:
        """Of one label after the other, slabs `[rows, *file[1:]]` of probabilities on its grid."""
        for channel in self.store.values:
            yield self._slabs(channel, plan)

    def _slabs(self, channel: torch.Tensor, plan: Plan) -> Iterator[Slab]:
        grids = self.plan_geometry, self.file_geometry
        row = 0
        for slab in restore_slabs(channel, *grids, decode=self.store.decode):
            self.store.release()
            if plan.voxel_calibration is not None:
                p = torch.from_numpy(np.ascontiguousarray(slab))
                slab = calibrated_voxels(p, plan.voxel_calibration).numpy()
            if self.valid is not None:
                slab = np.where(self.valid[row : row + len(slab)], slab, np.float32(0))
            row += len(slab)
            yield slab


def decide(
    inferred: Inferred,
    case: str,
    plan: Plan,
    accepted_by: str | None = None,
    watch: Watch | None = None,
) -> Prediction:
    """The prediction of a case on its file's grid, by the plan's rules; what was inferred is freed.

    With a detector's boxes these are the candidates, or both are fused, as the rule says.
    `accepted_by`: see `choose_operating_point`. `watch` is shown the probabilities of each label
    slab by slab. Raises `ConfigError` for an operating point that the plan does not have.
    """
    rule, geometry = plan.candidate_rule, inferred.file_geometry
    point = choose_operating_point(plan.operating_points, accepted_by)
    channels: list[SparseProbabilities] = []
    for label, slabs in enumerate(inferred.restored(plan)):
        seen = slabs if watch is None else watch(label, slabs)
        channels.append(collect_sparse(seen, geometry.shape, rule))
    inferred.store.close()
    boxes = None
    if inferred.boxes is not None:
        grids = inferred.plan_geometry, geometry
        boxes = box_candidates(inferred.boxes, *grids, rule, tuple(plan.lesion_labels))
        boxes = boxes if inferred.valid is None else _within(boxes, inferred.valid)
    if boxes is not None and rule.source == "detection":
        prediction = Prediction(case, geometry, boxes, None)
    else:
        found = find_by_plan(channels, geometry, plan)
        found = found if boxes is None else fuse(found, boxes)
        prediction = Prediction(
            case,
            geometry,
            found.candidates,
            found.instances,
            values=found.values,
            removed=found.removed,
        )
    verdict = _with_missing(inferred.input, point)
    return replace(accept(prediction, point, plan.calibration), input=verdict)


def find_by_plan(
    probabilities: Iterable[NDArray[np.float32] | SparseProbabilities],
    geometry: Geometry,
    plan: Plan,
) -> CandidateSet:
    """The candidates in probabilities `[K, *spatial]` of the plan's channels.

    With regions a candidate's label is that of the union and `CandidateSet.values` holds the mask
    values: `plan.label_values` of the regions present, later ones over earlier ones. Candidates are
    found in the highest probability over the regions. A voxel belongs to each region that has at
    least half of that: the region is then as likely as not, given that the voxel is lesion at all;
    no voxel is left without one. Raises as `find_candidates`.
    """
    rule = plan.candidate_rule
    if not plan.regions:
        return find_candidates(probabilities, geometry, rule, plan.label_values)
    channels = [
        c if isinstance(c, SparseProbabilities) else collect_sparse([c], geometry.shape, rule)
        for c in probabilities
    ]
    if len(channels) != len(plan.regions):
        raise GeometryError(f"There are {len(channels)} channels for {len(plan.regions)} regions.")
    union = highest(channels)
    found = find_candidates([union], geometry, rule, tuple(UNION))
    values = np.zeros(found.instances.shape, dtype=np.uint8)
    for channel, value in zip(channels, plan.label_values, strict=True):
        of_union = union.probabilities[np.searchsorted(union.index, channel.index)]
        belongs = channel.probabilities >= of_union / 2
        belongs &= found.instances.flat[channel.index] > 0
        values.flat[channel.index[belongs]] = value
    return replace(found, values=values)


def highest(channels: Sequence[SparseProbabilities]) -> SparseProbabilities:
    """The highest probability over some channels of one shape.

    >>> a = SparseProbabilities((3,), np.array([0, 1]), np.array([0.5, 0.9], np.float32))
    >>> b = SparseProbabilities((3,), np.array([1, 2]), np.array([0.7, 0.25], np.float32))
    >>> highest([a, b]).probabilities.tolist()
    [0.5, 0.8999999761581421, 0.25]
    """
    index = np.unique(np.concatenate([channel.index for channel in channels]))
    probabilities = np.zeros(len(index), dtype=np.float32)
    for channel in channels:
        place = np.searchsorted(index, channel.index)
        probabilities[place] = np.maximum(probabilities[place], channel.probabilities)
    return SparseProbabilities(channels[0].shape, index, probabilities)


def _with_missing(verdict: InputVerdict, point: OperatingPoint) -> InputVerdict:
    """The verdict; of a scan without a channel it says what accepted its candidates."""
    if not verdict.missing:
        return verdict
    lacking = (
        f"Predicted without {', '.join(verdict.missing)}: accepted by {point.name} from score "
        f"{point.score:.3g}; expect lower sensitivity."
    )
    return replace(verdict, warning=f"{lacking} {verdict.warning}".strip())


def _within(candidates: Sequence[Candidate], valid: NDArray[np.bool_]) -> tuple[Candidate, ...]:
    """The candidates whose box has its middle on a voxel that shows something."""
    limit = np.array(valid.shape) - 1
    middles = [(np.array(c.start_vox) + np.array(c.stop_vox)) / 2 for c in candidates]
    places = [tuple(np.floor(m).astype(int).clip(0, limit).tolist()) for m in middles]
    return tuple(c for c, place in zip(candidates, places, strict=True) if valid[place])
