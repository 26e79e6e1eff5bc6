"""From what the networks said to a prediction: restored to the file's grid, found, accepted."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import (
    UNION,
    Aim,
    Calibration,
    Geometry,
    InputCheckResult,
    OperatingPoint,
    Prediction,
    Selection,
)
from lesionseg.errors import ConfigError, GeometryError
from lesionseg.inference.box_candidates import Boxes, box_candidates, fuse
from lesionseg.inference.candidates import SparseProbabilities, collect_sparse, find_candidates
from lesionseg.inference.probabilities import calibrated_voxels
from lesionseg.inference.stitch import Store
from lesionseg.ops.resample import resample_slabs
from lesionseg.plan.plan import CandidateRule, Plan

_log = logging.getLogger(__name__)

Slab = NDArray[np.float32]
# called with a label's place in the plan, the slab's first row, and the label's probabilities there
OnSlab = Callable[[int, int, Slab], None]
DEFAULT_POINT = OperatingPoint("score:0.5", 0.5)


@dataclass(frozen=True, eq=False)
class Inferred:
    """Probabilities and a detector's boxes on the plan's grid, and the grid of the scan's own file.

    `valid`: as in `core.Volume`, on the file's grid; nothing is found where a radiograph shows
    nothing. `input`: whether the scan is like the training scans.
    """

    store: Store
    plan_geometry: Geometry
    file_geometry: Geometry
    input: InputCheckResult
    boxes: Boxes | None = None
    valid: NDArray[np.bool_] | None = None

    def slabs(
        self, label: int, calibration: Calibration | None, on_slab: OnSlab | None = None
    ) -> Iterator[Slab]:
        """Yield probabilities `[rows, *file[1:]]` of label number `label`, on the file's grid.

        They are 0 where the plan's grid does not reach. If the grids differ only by flips, axis
        order and whole voxels, they are those of the store; otherwise they are interpolated.
        `calibration`: of voxels.
        """
        stored = self.store.values[label][None]
        moved = resample_slabs(
            stored, self.plan_geometry, self.file_geometry, "linear", decode=self.store.decode
        )
        for rows, piece in moved:
            self.store.release()  # the pages of a store on disk that were read leave the memory
            slab = piece[0].numpy()
            if calibration is not None and not self.input.blank:
                p = torch.from_numpy(np.ascontiguousarray(slab))
                slab = calibrated_voxels(p, calibration).numpy()
            if self.valid is not None:
                slab = np.where(self.valid[rows], slab, np.float32(0))
            if on_slab is not None:
                on_slab(label, rows.start, slab)
            yield slab


def decide(
    inferred: Inferred,
    case: str,
    plan: Plan,
    selection: Selection,
    accepted_by: Aim | None = None,
    on_slab: OnSlab | None = None,
) -> Prediction:
    """Return the prediction of a case on its file's grid; the memory of `inferred` is freed.

    A detector's boxes are the candidates, or are fused with those of the voxels, by the plan's
    rule. `accepted_by`: see `choose_operating_point`. `on_slab` is shown the probabilities slab by
    slab. Raises `ConfigError` for an operating point that the selection does not have.
    """
    rule = plan.candidate_rule
    geometry = inferred.file_geometry
    valid = inferred.valid
    point = choose_operating_point(selection.operating_points, accepted_by)
    channels = [
        collect_sparse(
            inferred.slabs(label, selection.voxel_calibration, on_slab), geometry.shape, rule
        )
        for label in range(len(inferred.store.values))
    ]
    inferred.store.close()
    boxes = None
    n_left_out = 0
    if inferred.boxes is not None:
        n_left_out = inferred.boxes.n_left_out
        grids = inferred.plan_geometry, geometry
        boxes = box_candidates(inferred.boxes, *grids, tuple(plan.labels.lesion_names))
        if valid is not None:  # those with their middle on a voxel that shows something
            middles = [np.add(c.start_vox, c.stop_vox) / 2 for c in boxes]
            places = [np.floor(m).astype(int).clip(0, np.array(valid.shape) - 1) for m in middles]
            boxes = tuple(c for c, at in zip(boxes, places, strict=True) if valid[tuple(at)])
    if boxes is not None and rule.source == "detection":
        prediction = Prediction(case, geometry, boxes, None)
    elif boxes is not None:
        # half of a score comes from the boxes, so that a candidate may rise to the threshold
        keep_from = max(2 * point.score - 1, 0.0)
        voxels = find_by_plan(channels, geometry, plan, case, keep_from=keep_from)
        prediction = fuse(voxels, boxes)
    else:
        prediction = find_by_plan(channels, geometry, plan, case, keep_from=point.score)
    prediction = within_limit(prediction, rule.candidate_limit, point.score)
    prediction = replace(
        accept(prediction, point, selection.calibration),
        input=inferred.input,
        n_left_out=prediction.n_left_out + n_left_out,
    )
    if prediction.n_left_out:
        _log.warning("Case %s: %s", case, prediction.left_out_note)
    return prediction


def within_limit(prediction: Prediction, limit: int, keep_from: float) -> Prediction:
    """Leave out candidates beyond the first `limit` whose scores are below `keep_from`.

    Candidates have descending scores. The rest keep their ids and voxels.
    """
    kept = [
        c for rank, c in enumerate(prediction.candidates) if rank < limit or c.score >= keep_from
    ]
    n_left_out = len(prediction.candidates) - len(kept)
    if n_left_out == 0:
        return prediction
    instances = prediction.instances
    if instances is not None:
        inside = np.isin(instances, [c.id for c in kept])
        instances = np.where(inside, instances, 0)
    return replace(
        prediction,
        candidates=tuple(kept),
        instances=instances,
        n_left_out=prediction.n_left_out + n_left_out,
    )


def find_by_plan(
    probabilities: Iterable[NDArray[np.float32] | SparseProbabilities],
    geometry: Geometry,
    plan: Plan,
    case: str = "",
    keep_from: float = 1.0,
) -> Prediction:
    """Find the candidates in probabilities `[K, *spatial]` of the plan's channels.

    With regions, all candidates have the label of the union, and `Prediction.values` contains the
    mask values (`plan.labels.values`) of the regions, later ones over earlier ones. Candidates are
    found in the highest probability over the regions. A voxel belongs to each region that has at
    least half of that: given that the voxel is lesion, the region is then as likely as not. Every
    voxel of a candidate belongs to at least one region. `keep_from`, errors: see `find_candidates`.
    """
    return find_by_rule(
        probabilities,
        geometry,
        plan.candidate_rule,
        plan.labels.values,
        are_regions=bool(plan.labels.regions),
        case=case,
        keep_from=keep_from,
    )


def find_by_rule(
    probabilities: Iterable[NDArray[np.float32] | SparseProbabilities],
    geometry: Geometry,
    rule: CandidateRule,
    label_values: Sequence[int],
    *,
    are_regions: bool,
    case: str = "",
    keep_from: float = 1.0,
) -> Prediction:
    """Find candidates as `find_by_plan` does, by a rule and the mask value of each channel.

    `are_regions`: the channels are regions, and `label_values` are the values painted for them.
    """
    if not are_regions:
        return find_candidates(
            probabilities, geometry, rule, label_values, case, keep_from=keep_from
        )
    channels = [
        c if isinstance(c, SparseProbabilities) else collect_sparse([c], geometry.shape, rule)
        for c in probabilities
    ]
    if len(channels) != len(label_values):
        raise GeometryError(f"There are {len(channels)} channels for {len(label_values)} regions.")
    union = highest(channels)
    found = find_candidates([union], geometry, rule, tuple(UNION), case, keep_from=keep_from)
    inside = found.mask() > 0
    values = np.zeros(geometry.shape, dtype=np.uint8)
    for channel, value in zip(channels, label_values, strict=True):
        of_union = union.probabilities[np.searchsorted(union.index, channel.index)]
        belongs = (channel.probabilities >= of_union / 2) & inside.flat[channel.index]
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


def choose_operating_point(
    points: Sequence[OperatingPoint], aim: Aim | None = None
) -> OperatingPoint:
    """Return the operating point of this aim among a bundle's `points`.

    Any score can be an aim; other aims must be among the points. None and `auto` are the first
    point, or score 0.5 without points.

    Raises:
        ConfigError: if there is no such point. The message names those there are.

    >>> choose_operating_point((), Aim("score", 0.37)).score
    0.37
    """
    if aim is None or aim.kind == "auto":
        return points[0] if points else DEFAULT_POINT
    if aim.kind == "score":
        return OperatingPoint(str(aim), aim.value)
    for point in points:
        if point.aim == aim:
            return point
    reach = [p.attainable_recall for p in points if p.attainable_recall is not None]
    attainable = ""
    if aim.kind == "sensitivity" and reach:
        attainable = f" (attainable: 0 to {reach[0]:.3g})"
    raise ConfigError(
        f"operating_point={aim}: the bundle has none of this name{attainable}. "
        f"Choose one of {', '.join([*(p.name for p in points), 'score:<0 to 1>'])}."
    )


def accept(
    prediction: Prediction, point: OperatingPoint, calibration: Calibration | None = None
) -> Prediction:
    """The same candidates in the same order, accepted from the point's score on.

    With a calibration each has its `probability`, which never ranks; not where scores are
    placeholders (`scored` False).
    """
    candidates = tuple(replace(c, accepted=c.score >= point.score) for c in prediction.candidates)
    if calibration is not None and prediction.scored and candidates:
        chances = calibration.probability([c.score for c in candidates]).tolist()
        pairs = zip(candidates, chances, strict=True)
        candidates = tuple(replace(c, probability=p) for c, p in pairs)
    return replace(prediction, candidates=candidates, operating_point=point)
