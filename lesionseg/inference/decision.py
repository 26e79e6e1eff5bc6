"""Network outputs to accepted candidates: voxels, boxes or both; limit of candidates, warning.

Probabilities are restored to the file's grid.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lesionseg.core import (
    UNION,
    Calibration,
    Candidate,
    Geometry,
    InputCheckResult,
    Labels,
    Prediction,
    Selection,
)
from lesionseg.core.arrays import Flags, Slab
from lesionseg.errors import GeometryError
from lesionseg.evaluation.operating_points import OperatingPointAim, find_operating_point
from lesionseg.inference.box_candidates import Boxes, box_candidates, fuse
from lesionseg.inference.candidates import (
    SparseProbabilities,
    as_sparse,
    collect_sparse,
    find_candidates,
)
from lesionseg.inference.probabilities import calibrated_voxels
from lesionseg.inference.stitch import Store
from lesionseg.ops.interpolation import resample_slabs
from lesionseg.plan.plan import CandidateRule, Plan

_log = logging.getLogger(__name__)

# called with the number of a label in the plan, the slab's first row, and its probabilities
OnSlab = Callable[[int, int, Slab], None]


@dataclass(frozen=True, eq=False)
class Inferred:
    """The outputs of the networks on the plan's grid, and the grid of the scan's own file.

    `store` contains probabilities, `boxes` those of a detector. `valid` is that of `core.Volume` on
    the file's grid; invalid voxels do not belong to candidates. `input` is the comparison with the
    training scans, `disagreement` that of the networks (`EnsembleAgreement.disagreement`).
    """

    store: Store
    plan_geometry: Geometry
    file_geometry: Geometry
    input: InputCheckResult
    boxes: Boxes | None = None
    valid: Flags | None = None
    disagreement: float | None = None

    def slabs(
        self, label: int, calibration: Calibration | None, on_slab: OnSlab | None = None
    ) -> Iterator[Slab]:
        """Yield the probabilities of one label on the file's grid, slab by slab to save memory.

        If the grids differ only by flips, axis order and a shift by an integer number of voxels,
        the stored probabilities are copied. Otherwise they are interpolated linearly. The plan's
        grid has an integer number of voxels, so each of its faces may be up to a quarter of a
        voxel inside the file's grid. The outermost probabilities therefore also apply outside the
        plan's grid, at less than half a voxel, which is the limit of the edge rule `near`. Voxels
        farther outside are 0.

        Args:
            label: Index of the label in the plan, from 0.
            calibration: Applied to the probabilities of voxels. None leaves them unchanged. Invalid
                voxels (`valid`) become 0 afterwards.
            on_slab: Called with `label`, the first row of the slab and the slab.

        Yields:
            Slabs `[rows, *file[1:]]` float32, in order of their rows.
        """
        resampled = resample_slabs(
            self.store.values[label][None],  # with an axis of channels
            self.plan_geometry,
            self.file_geometry,
            "linear",
            edge="near",  # the outermost probabilities apply up to half a voxel outside the grid
            decode=self.store.decode,
        )
        for rows, with_channel in resampled:
            self.store.release()  # free the memory of pages that were read from disk
            probabilities = with_channel[0]
            if calibration is not None:
                probabilities = calibrated_voxels(probabilities.contiguous(), calibration)
            slab = probabilities.numpy()
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
    accepted_by: OperatingPointAim | None = None,
    on_slab: OnSlab | None = None,
) -> Prediction:
    """Convert the outputs of the networks to the prediction of a case, on the grid of its file.

    Depending on `source` of the plan's candidate rule, candidates are found in the probabilities of
    voxels ("segmentation"), are a detector's boxes ("detection"), or are fused from voxels and
    boxes ("both"). A box whose centre is an invalid voxel is dropped. Candidates are accepted by
    their score at the operating point. A warning is logged if candidates were left out because
    there are too many.

    Args:
        inferred: Outputs of the networks. Its memory is freed.
        case: Id of the case.
        plan: Plan of the networks.
        selection: Operating points and calibrations.
        accepted_by: Aim by which the operating point is chosen, such as one false positive per
            case. None is the default operating point (`find_operating_point`).
        on_slab: Called with the probabilities of each label, slab by slab, for example to write
            them.

    Raises:
        ConfigError: If the selection does not have the operating point.
        ContentError: If a probability is NaN.
    """
    rule = plan.candidate_rule
    geometry = inferred.file_geometry
    valid = inferred.valid
    point = find_operating_point(selection.operating_points, accepted_by)
    # voxels that can belong to candidates, on the file's grid
    channels = [
        collect_sparse(
            inferred.slabs(label, selection.voxel_calibration, on_slab), geometry.shape, rule
        )
        for label in range(len(inferred.store.values))
    ]
    inferred.store.close()
    # boxes of the detector on the file's grid
    boxes = None
    n_left_out = 0
    if inferred.boxes is not None:
        n_left_out = inferred.boxes.n_left_out
        boxes = box_candidates(
            inferred.boxes, inferred.plan_geometry, geometry, tuple(plan.labels.lesion_names)
        )
        if valid is not None:
            boxes = tuple(c for c in boxes if _is_centre_valid(c, valid))
    # candidates from boxes, from both, or from voxels
    if boxes is not None and rule.source == "detection":
        prediction = Prediction(case, geometry, candidates=boxes, instances=None)
    elif boxes is not None:
        # A fused score is the mean of the voxels' score and the box's score. Even with a box of
        # score 1, it reaches the operating point only if the voxels' score is at least this.
        keep_from = max(2 * point.score - 1, 0.0)
        voxels = find_by_rule(channels, geometry, rule, plan.labels, case, keep_from=keep_from)
        prediction = fuse(voxels, boxes)
    else:
        prediction = find_by_rule(
            channels, geometry, rule, plan.labels, case, keep_from=point.score
        )
    prediction = limit_candidates(prediction, rule.candidate_limit, keep_from=point.score)
    prediction = replace(
        prediction.accept(point, selection.calibration),
        input=inferred.input,
        disagreement=inferred.disagreement,
        n_left_out=prediction.n_left_out + n_left_out,
        labels=plan.labels.lesion_names,
    )
    if prediction.n_left_out:
        _log.warning("Case %s: %s", case, prediction.left_out_note)
    return prediction


def _is_centre_valid(candidate: Candidate, valid: Flags) -> bool:
    """Return True if the centre of a candidate's box is in a valid voxel.

    Args:
        candidate: The candidate.
        valid: Mask of the file's grid, False for voxels without image content (`core.Volume`).
    """
    centre = np.add(candidate.start_vox, candidate.stop_vox) / 2
    # voxel i covers i ≤ x < i + 1; a centre on the far edge of the grid counts to the last voxel
    return bool(valid[tuple(np.floor(centre).astype(int).clip(0, np.array(valid.shape) - 1))])


def limit_candidates(prediction: Prediction, limit: int, keep_from: float) -> Prediction:
    """Drop the candidates after the first `limit` ones that have a low score.

    Candidates are in descending order of scores. A candidate after the first `limit` ones is
    dropped if its score is below `keep_from`. The number of dropped candidates is added to
    `n_left_out`. The ids and voxels of the remaining candidates do not change.

    `find_candidates` already limits candidates from voxels by their peaks. This function limits all
    candidates, also boxes, by their scores.
    """
    remaining = list(prediction.candidates[:limit])
    remaining += [c for c in prediction.candidates[limit:] if c.score >= keep_from]
    n_left_out = len(prediction.candidates) - len(remaining)
    if n_left_out == 0:
        return prediction
    return replace(prediction.keep(remaining), n_left_out=prediction.n_left_out + n_left_out)


def find_by_rule(
    probabilities: Iterable[Slab | SparseProbabilities],
    geometry: Geometry,
    rule: CandidateRule,
    labels: Labels,
    case: str = "",
    keep_from: float = 1.0,
) -> Prediction:
    """Find the candidates in probabilities `[K, *spatial]` of labels, which may be regions.

    Regions are labels that overlap, such as nested parts of a tumour. For labels that are not
    regions, this function only calls `find_candidates`. For regions, candidates are found in the
    highest probability over the regions, and all candidates have the label `UNION`.
    `Prediction.values` is then a mask with the values of the regions (`labels.values`); a later
    region overwrites an earlier one.

    A voxel of a candidate belongs to a region if the region's probability is at least half of the
    highest probability over the regions, and high enough for a candidate (`collect_sparse`). The
    reason for the half: the highest probability is about the probability that the voxel is lesion.
    If it is lesion, the region then has a probability of at least one half. Each voxel of a
    candidate belongs at least to the region of the highest probability.

    Args:
        probabilities: K channels, one per label.
        geometry: The grid of the channels.
        rule: The plan's rule for candidates.
        labels: The labels that the network predicts.
        case: The case's id.
        keep_from: Candidates with at least this score are returned even beyond the limit of the
            rule (`candidate_limit`).

    Returns:
        The prediction with all candidates accepted, see `find_candidates`.

    Raises:
        GeometryError: If a channel does not fit the grid, or their number does not fit the regions.
        ContentError: If a probability is NaN.
    """
    if not labels.regions:
        return find_candidates(
            probabilities, geometry, rule, labels.values, case, keep_from=keep_from
        )
    channels = [as_sparse(channel, geometry, rule) for channel in probabilities]
    if len(channels) != len(labels):
        raise GeometryError(
            f"{case}: the probabilities have {len(channels)} channels, but there are "
            f"{len(labels)} regions. Give one channel per region."
        )
    union = highest_probabilities(channels)
    # the keys of `UNION` are mask values
    prediction = find_candidates([union], geometry, rule, tuple(UNION), case, keep_from=keep_from)
    is_in_candidate = prediction.mask() > 0
    values = np.zeros(geometry.shape, np.uint8)
    for channel, value in zip(channels, labels.values, strict=True):
        # the union contains every voxel of every channel
        highest = union.probabilities[np.searchsorted(union.index, channel.index)]
        is_in_region = channel.probabilities >= highest / 2  # the docstring explains the half
        is_in_region &= is_in_candidate.flat[channel.index]
        values.flat[channel.index[is_in_region]] = value
    return replace(prediction, values=values)


def highest_probabilities(channels: Sequence[SparseProbabilities]) -> SparseProbabilities:
    """Return for each voxel the highest probability over several channels of the same shape.

    A channel does not contain voxels whose probability is too low for a candidate. They count as 0
    in this channel.

    >>> a = SparseProbabilities((3,), np.array([0, 1]), np.array([0.5, 0.9], np.float32))
    >>> b = SparseProbabilities((3,), np.array([1, 2]), np.array([0.7, 0.25], np.float32))
    >>> highest_probabilities([a, b]).probabilities.tolist()
    [0.5, 0.8999999761581421, 0.25]
    """
    index = np.unique(np.concatenate([channel.index for channel in channels]))
    probabilities = np.zeros(len(index), np.float32)
    for channel in channels:
        # exact positions, because `index` contains each index of the channel
        position = np.searchsorted(index, channel.index)
        probabilities[position] = np.maximum(probabilities[position], channel.probabilities)
    return SparseProbabilities(channels[0].shape, index, probabilities)
