"""A prediction resampled to the reference's grid (nearest voxel); candidates outside left out."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.errors import GeometryError, count
from lesionseg.ops.boxes import move_boxes
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.ops.interpolation import resample_to

logger = logging.getLogger(__name__)


def resample_prediction(prediction: Prediction, geometry: Geometry) -> Prediction:
    """Resample a prediction onto another grid, so that it can be compared with a reference there.

    - Masks: each new voxel gets the candidate of the nearest old voxel. A new voxel that is half an
      old voxel or more outside the prediction's grid gets no candidate.
    - A small candidate that is located between the new voxels gets the voxel nearest to its centre,
      if this voxel belongs to no other candidate and is inside the grid.
    - Candidates with voxels are measured again. Any other candidate becomes the bounding box of its
      transformed corners; its diameter, volume and centre in mm do not change.
    - Candidates outside the grid are left out, see `drop_off_grid`.

    Args:
        prediction: The prediction on its original grid.
        geometry: The new grid, in the same patient space.

    Raises:
        GeometryError: If the grid has another number of axes.
    """
    if prediction.geometry.dims != geometry.dims:
        raise GeometryError(
            f"Case {prediction.case}: the prediction has {prediction.geometry.dims} axes, the "
            f"other grid has {geometry.dims}. Give files of the same case."
        )
    original = prediction.geometry
    instances = None
    has_voxels = np.zeros(len(prediction.candidates), bool)
    if prediction.instances is not None:
        instances = _resample_instances(prediction, prediction.instances, geometry)
        remeasured = candidates_of(replace(prediction, geometry=geometry, instances=instances))
        has_voxels = remeasured.has_voxels
    candidates = []
    for row, c in enumerate(prediction.candidates):
        if has_voxels[row]:
            voxels = remeasured.voxels_of(row)
            measured = Candidate.from_voxels(c.id, c.label, c.score, voxels, geometry)
            candidates.append(
                replace(measured, accepted=c.accepted, probability=c.probability, zone=c.zone)
            )
        else:
            candidates.append(_move_box(c, original, geometry))
    values = prediction.values
    resampled = replace(
        prediction,
        geometry=geometry,
        candidates=tuple(candidates),
        instances=instances,
        removed=tuple(_move_box(c, original, geometry) for c in prediction.removed),
        values=None if values is None else _resample_nearest(values, original, geometry),
    )
    return drop_off_grid(resampled)


def drop_off_grid(prediction: Prediction) -> Prediction:
    """Leave out the candidates whose box is outside the prediction's grid, and warn.

    A reference on this grid does not tell if such candidates are lesions. `n_off_grid` of the
    result counts them. Removed objects (`Prediction.removed`) outside the grid are left out without
    a warning.
    """
    inside = _inside_grid(prediction.candidates, prediction.geometry)
    n_left_out = len(prediction.candidates) - len(inside)
    if n_left_out:
        place = "outside the grid of the reference or later visit"
        left_out = count(n_left_out, f"candidate {place} is", f"candidates {place} are")
        logger.warning("Case %s: %s left out.", prediction.case, left_out)
    removed = _inside_grid(prediction.removed, prediction.geometry)
    return replace(prediction, candidates=inside, removed=removed, n_off_grid=n_left_out)


def _resample_instances(
    prediction: Prediction, instances: NDArray[np.int32], geometry: Geometry
) -> NDArray[Any]:
    """Resample the instance mask of a prediction onto another grid without losing small candidates.

    A candidate that is located between the new voxels gets the voxel nearest to its centre, if this
    voxel belongs to no other candidate and is inside the new grid.

    Args:
        prediction: The prediction on its original grid.
        instances: The instance mask of the prediction.
        geometry: The new grid.
    """
    resampled = _resample_nearest(instances, prediction.geometry, geometry)
    lost = set(present_values(instances)) - set(present_values(resampled))
    if not lost:
        return resampled
    # measured here, because stored centres do not follow if the caller has replaced the grid
    centres_mm = candidates_of(prediction).centres_mm
    for candidate, centre_mm in zip(prediction.candidates, centres_mm, strict=True):
        nearest = np.rint(geometry.to_index(centre_mm[np.newaxis])[0]).astype(np.int64)
        is_inside = bool(((nearest >= 0) & (nearest < geometry.shape)).all())
        if candidate.id in lost and is_inside and resampled[tuple(nearest)] == 0:
            resampled[tuple(nearest)] = candidate.id
    return resampled


def _resample_nearest(array: NDArray[Any], source: Geometry, geometry: Geometry) -> NDArray[Any]:
    """Resample a mask `[*spatial]` from the grid `source` to `geometry` by the nearest voxel.

    New voxels that are half a source voxel or more outside the source grid become 0.
    """
    # with an axis of one channel; "near" sets new voxels far outside the source grid to 0
    return resample_to(array[np.newaxis], source, geometry, "nearest", edge="near")[0].numpy()


def _inside_grid(candidates: Sequence[Candidate], geometry: Geometry) -> tuple[Candidate, ...]:
    """Return the candidates whose box overlaps the grid."""
    return tuple(
        c
        for c in candidates
        if np.less(c.start_vox, geometry.shape).all() and np.greater(c.stop_vox, 0).all()
    )


def _move_box(candidate: Candidate, source: Geometry, geometry: Geometry) -> Candidate:
    """Transform the box of a candidate from the grid `source` to the grid `geometry`.

    The new box encloses the transformed corners of the old box. The candidate has no mask
    afterwards.
    """
    boxes = move_boxes([[*candidate.start_vox, *candidate.stop_vox]], source, geometry)
    box = boxes[0].tolist()
    return replace(
        candidate,
        start_vox=tuple(box[: geometry.dims]),
        stop_vox=tuple(box[geometry.dims :]),
        has_mask=False,
    )
