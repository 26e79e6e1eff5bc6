"""Decide on candidates: restore probabilities to the file's grid, find candidates, accept them."""

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
        """Yield probabilities `[rows, *file[1:]]` of label number `label`, on the file's grid.

        If the grids differ only by flips, axis order and whole voxels, the stored probabilities are
        copied. Otherwise they are interpolated. The plan's grid has a whole number of voxels, so it
        may end before the file's grid, by up to a quarter of a voxel. The outermost probabilities
        therefore continue for half a voxel; beyond that, they are 0. `calibration` is applied to
        them, and then invalid voxels become 0. `on_slab` is called with each slab.
        """
        resampled = resample_slabs(
            self.store.values[label][None],
            self.plan_geometry,
            self.file_geometry,
            "linear",
            edge="near",
            decode=self.store.decode,
        )
        for rows, piece in resampled:
            self.store.release()  # free the memory of pages that were read from disk
            p = piece[0]
            if calibration is not None:
                p = calibrated_voxels(p.contiguous(), calibration)
            slab = p.numpy()
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
    """Return the prediction of a case on its file's grid.

    Depending on the plan's rule, candidates come from voxels, from a detector's boxes, or from
    both. A box whose centre is an invalid voxel is dropped. A warning is logged if a limit left out
    candidates.

    Args:
        inferred: Outputs of the networks. Its memory is freed.
        case: Id of the case.
        plan: The plan.
        selection: Operating points and calibrations.
        accepted_by: Aim of the operating point, see `find_operating_point`.
        on_slab: Called with the probabilities of each label, slab by slab.

    Raises:
        ConfigError: If the selection does not have the operating point.
        ContentError: If a probability is NaN.
    """
    rule = plan.candidate_rule
    geometry = inferred.file_geometry
    valid = inferred.valid
    point = find_operating_point(selection.operating_points, accepted_by)
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
        boxes = box_candidates(
            inferred.boxes, inferred.plan_geometry, geometry, tuple(plan.labels.lesion_names)
        )
        if valid is not None:
            boxes = tuple(c for c in boxes if _is_centre_valid(c, valid))
    if boxes is not None and rule.source == "detection":
        prediction = Prediction(case, geometry, boxes, None)
    elif boxes is not None:
        # the fused score is the mean of the scores of voxels and box; with a box of score 1 it
        # reaches the operating point if that of the voxels is at least this
        keep_from = max(2 * point.score - 1, 0.0)
        voxels = find_by_rule(channels, geometry, rule, plan.labels, case, keep_from)
        prediction = fuse(voxels, boxes)
    else:
        prediction = find_by_rule(channels, geometry, rule, plan.labels, case, point.score)
    prediction = limit_candidates(prediction, rule.candidate_limit, point.score)
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
    """Return True if the centre of a candidate's box is a valid voxel."""
    centre = np.add(candidate.start_vox, candidate.stop_vox) / 2
    return bool(valid[tuple(np.floor(centre).astype(int).clip(0, np.array(valid.shape) - 1))])


def limit_candidates(prediction: Prediction, limit: int, keep_from: float) -> Prediction:
    """Keep the first `limit` candidates, and of the rest those of a score of at least `keep_from`.

    Candidates are in descending order of scores. The number of those that are left out is added to
    `n_left_out`. The others keep their ids and voxels. `find_candidates` limits candidates from
    voxels by their peaks, and this function limits candidates of any source by their scores.
    """
    kept = list(prediction.candidates[:limit])
    kept += [c for c in prediction.candidates[limit:] if c.score >= keep_from]
    n_left_out = len(prediction.candidates) - len(kept)
    if n_left_out == 0:
        return prediction
    return replace(prediction.keep(kept), n_left_out=prediction.n_left_out + n_left_out)


def find_by_rule(
    probabilities: Iterable[Slab | SparseProbabilities],
    geometry: Geometry,
    rule: CandidateRule,
    labels: Labels,
    case: str = "",
    keep_from: float = 1.0,
) -> Prediction:
    """Find the candidates in probabilities `[K, *spatial]` of the labels of a network.

    Without regions, this is `find_candidates`. If the labels are regions, candidates are found in
    the highest probability over the regions, and all have the label of the union.
    `Prediction.values` contains the mask values (`labels.values`) of the regions, later ones over
    earlier ones.

    A voxel of a candidate belongs to each region whose probability is at least half of the voxel's
    highest one, and is not too low for a candidate (`collect_sparse`). The highest one is about the
    probability of any lesion, so the region then has a probability of at least one half if the
    voxel is lesion. The region with the highest probability always meets this, so each voxel
    belongs to at least one region.

    Args:
        probabilities: K channels, one per label.
        geometry: The grid of the channels.
        rule: The plan's rule.
        labels: The labels that the network predicts.
        case: The case's id.
        keep_from: A candidate beyond the limit of the rule is kept if its score is at least this.

    Raises:
        GeometryError: If a channel does not fit the grid, or their number does not fit the regions.
        ContentError: If a probability is NaN.
    """
    if not labels.regions:
        return find_candidates(probabilities, geometry, rule, labels.values, case, keep_from)
    channels = [as_sparse(channel, geometry, rule) for channel in probabilities]
    if len(channels) != len(labels):
        raise GeometryError(
            f"{case}: the probabilities have {len(channels)} channels, but there are "
            f"{len(labels)} regions. Give one channel per region."
        )
    union = highest_probabilities(channels)
    found = find_candidates([union], geometry, rule, tuple(UNION), case, keep_from=keep_from)
    is_in_candidate = found.mask() > 0
    values = np.zeros(geometry.shape, np.uint8)
    for channel, value in zip(channels, labels.values, strict=True):
        # the union contains every voxel of every channel
        highest = union.probabilities[np.searchsorted(union.index, channel.index)]
        is_in_region = channel.probabilities >= highest / 2  # the docstring explains the half
        is_in_region &= is_in_candidate.flat[channel.index]
        values.flat[channel.index[is_in_region]] = value
    return replace(found, values=values)


def highest_probabilities(channels: Sequence[SparseProbabilities]) -> SparseProbabilities:
    """Return the highest probability over channels of the same shape, voxel by voxel.

    A voxel that only some channels contain is too low in the remaining ones to matter.

    >>> a = SparseProbabilities((3,), np.array([0, 1]), np.array([0.5, 0.9], np.float32))
    >>> b = SparseProbabilities((3,), np.array([1, 2]), np.array([0.7, 0.25], np.float32))
    >>> highest_probabilities([a, b]).probabilities.tolist()
    [0.5, 0.8999999761581421, 0.25]
    """
    index = np.unique(np.concatenate([channel.index for channel in channels]))
    probabilities = np.zeros(len(index), np.float32)
    for channel in channels:
        place = np.searchsorted(index, channel.index)
        probabilities[place] = np.maximum(probabilities[place], channel.probabilities)
    return SparseProbabilities(channels[0].shape, index, probabilities)
