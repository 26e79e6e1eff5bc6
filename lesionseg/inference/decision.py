"""From what the network said to a prediction: restored to the file's grid, found, accepted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core import (
    UNION,
    Calibration,
    Candidate,
    Geometry,
    InputVerdict,
    OperatingPoint,
    Prediction,
)
from lesionseg.errors import GeometryError
from lesionseg.inference.candidates.acceptance import accept, choose_operating_point
from lesionseg.inference.candidates.box_candidates import FoundBoxes
from lesionseg.inference.candidates.fusion import box_candidates, fuse
from lesionseg.inference.candidates.peaks import Above, collect_above
from lesionseg.inference.candidates.postprocess import CandidateSet, find_candidates
from lesionseg.inference.probabilities import calibrated_voxels
from lesionseg.inference.sliding.restore import restore_slabs
from lesionseg.inference.sliding.stitch import Store
from lesionseg.plan.plan import Plan

NOT_CHECKED = (
    "Nothing was accepted, and the scan was not compared with the training scans: "
    "the bundle holds nothing on them."
)
Slab = NDArray[np.float32]
# of the place of a label in the plan and the slabs of its probabilities: what to go on with
Watch = Callable[[int, Iterator[Slab]], Iterator[Slab]]


def find_by_plan(
    probabilities: Iterable[NDArray[np.float32] | Above], geometry: Geometry, plan: Plan
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
        c if isinstance(c, Above) else collect_above([c], geometry.shape, rule)
        for c in probabilities
    ]
    if len(channels) != len(plan.regions):
        raise GeometryError(
            "The probabilities do not have one channel per region.",
            seen=len(channels),
            expected=len(plan.regions),
        )
    union = highest(channels)
    candidates = find_candidates([union], geometry, rule, tuple(UNION))
    return replace(
        candidates, values=_painted(candidates.instances, union, channels, plan.label_values)
    )


def highest(channels: Sequence[Above]) -> Above:
    """The highest probability over some channels of one shape.

    >>> a = Above((3,), np.array([0, 1]), np.array([0.5, 0.9], np.float32))
    >>> b = Above((3,), np.array([1, 2]), np.array([0.7, 0.25], np.float32))
    >>> highest([a, b]).probabilities.tolist()
    [0.5, 0.8999999761581421, 0.25]
    """
    index = np.unique(np.concatenate([channel.index for channel in channels]))
    probabilities = np.zeros(len(index), dtype=np.float32)
    for channel in channels:
        place = np.searchsorted(index, channel.index)
        probabilities[place] = np.maximum(probabilities[place], channel.probabilities)
    return Above(channels[0].shape, index, probabilities)


def _painted(
    instances: NDArray[np.int32],
    union: Above,
    channels: Sequence[Above],
    painted: Sequence[int],
) -> NDArray[np.uint8]:
    """The mask values of all candidates, later regions over earlier ones."""
    values = np.zeros(instances.shape, dtype=np.uint8)
    for channel, value in zip(channels, painted, strict=True):
        of_lesion = union.probabilities[np.searchsorted(union.index, channel.index)]
        belongs = channel.probabilities >= of_lesion / 2
        belongs &= instances.flat[channel.index] > 0
        values.flat[channel.index[belongs]] = value
    return values


@dataclass(frozen=True, eq=False)
class Inferred:
    """Probabilities and a detector's boxes on the plan's grid, and the grid of the scan's own file.

    `seconds`: that the network took, with what is done to its tiles. `valid`: as in `PreparedScan`;
    nothing is found where a radiograph shows nothing. `calibration`: the plan's, of voxels.
    `input`: whether the scan is like the training scans. `missing`: places of channels it lacks.
    """

    store: Store
    plan_geometry: Geometry
    file_geometry: Geometry
    seconds: float = 0.0
    boxes: FoundBoxes | None = None
    valid: NDArray[np.bool_] | None = None
    calibration: Calibration | None = None
    input: InputVerdict = field(default_factory=InputVerdict)
    missing: tuple[int, ...] = ()

    def restored(self) -> Iterator[Iterator[Slab]]:
        """Of one label after the other, slabs `[rows, *file[1:]]` of probabilities on its grid."""
        for channel in self.store.values:
            yield self._slabs(channel)

    def _slabs(self, channel: Tensor) -> Iterator[Slab]:
        grids = self.plan_geometry, self.file_geometry
        row = 0
        for slab in restore_slabs(channel, *grids, decode=self.store.decode):
            self.store.release()
            if self.calibration is not None:
                p = torch.from_numpy(np.ascontiguousarray(slab))
                slab = calibrated_voxels(p, self.calibration).numpy()
            if self.valid is not None:
                slab = np.where(self.valid[row : row + len(slab)], slab, np.float32(0))
                row += len(slab)
            yield slab


@dataclass(frozen=True)
class CaseDecision:
    """The rules by which a case's probabilities and boxes become a prediction.

    `accept`: name of the operating point, see `choose_operating_point`.
    """

    plan: Plan
    accept: str | None = None

    def point(self, missing: Sequence[int] = ()) -> OperatingPoint:
        """What accepts candidates in scans that lack these channels; raises `ConfigError`."""
        return choose_operating_point(self.plan.without(missing).operating_points, self.accept)

    def __call__(self, inferred: Inferred, case: str, watch: Watch | None = None) -> Prediction:
        """The prediction of a case on its file's grid; what was inferred is freed.

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
            candidate_set = find_by_plan(channels, geometry, self.plan)
            candidate_set = candidate_set if boxes is None else fuse(candidate_set, boxes)
            prediction = Prediction(
                case,
                geometry,
                candidate_set.candidates,
                candidate_set.instances,
                values=candidate_set.values,
                removed=candidate_set.removed,
            )
        plan = self.plan.without(inferred.missing)
        accepted = accept(prediction, self.point(inferred.missing), plan.calibration)
        return replace(accepted, input=_with_warnings(inferred.input, accepted))

    def _boxes(self, inferred: Inferred) -> tuple[Candidate, ...] | None:
        """A detector's boxes on the file's grid; None where none are asked for."""
        if inferred.boxes is None:
            return None
        labels = tuple(self.plan.lesion_labels)
        grids = inferred.plan_geometry, inferred.file_geometry
        candidates = box_candidates(inferred.boxes, *grids, self.plan.candidate_rule, labels)
        return candidates if inferred.valid is None else _within(candidates, inferred.valid)


def _with_warnings(verdict: InputVerdict, prediction: Prediction) -> InputVerdict:
    """The verdict; no result is empty without a word on whether the scan could be read.

    Nor is one without a channel given without a word on what is then to be expected.
    """
    warning = verdict.warning
    silent = verdict.score is None and not warning
    if silent and not any(c.accepted for c in prediction.candidates):
        warning = NOT_CHECKED
    if verdict.missing and prediction.operating_point is not None:
        lacking = _lacking(verdict.missing, prediction.operating_point)
        warning = f"{lacking} {warning}".strip()
    return replace(verdict, warning=warning)


def _lacking(missing: Sequence[str], point: OperatingPoint) -> str:
    """What a scan lacks, and how sensitive the network is then."""
    text = f"Predicted without {', '.join(missing)}: accepted by {point.name}"
    text = f"{text} from score {point.score:.3g}"
    expected = (point.expected_recall, point.expected_false_positives_per_case)
    measured = (point.lesion_recall, point.false_positives_per_case)
    recall, false = measured if None in expected else expected
    if recall is None or false is None:
        return f"{text}, for which no sensitivity was measured without it."
    return (
        f"{text}, chosen without it; sensitivity {recall:.2f} is to be expected "
        f"with {false:.2f} false positives per scan."
    )


def _within(candidates: tuple[Candidate, ...], valid: NDArray[np.bool_]) -> tuple[Candidate, ...]:
    """The candidates whose box has its middle on a voxel that shows something."""
    limit = np.array(valid.shape) - 1

    def middle(candidate: Candidate) -> tuple[int, ...]:
        centre = (np.array(candidate.start_vox) + np.array(candidate.stop_vox)) / 2
        return tuple(np.floor(centre).astype(int).clip(0, limit).tolist())

    return tuple(candidate for candidate in candidates if valid[middle(candidate)])
