"""Bring a prediction onto another grid: masks take the nearest voxel."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.errors import GeometryError
from lesionseg.ops.boxes import move_boxes
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.ops.resample import resample_to


def onto_grid(prediction: Prediction, geometry: Geometry) -> Prediction:
    """Return the prediction on the grid `geometry`, by position in space.

    Each voxel takes the candidate of the nearest voxel, none outside of the prediction's grid. A
    candidate that falls between the new voxels keeps the voxel nearest to its centre, if that is
    free and inside. Boxes without voxels become the boxes around their moved corners. Sizes are
    measured again. Raises `GeometryError` for another number of axes.
    """
    if prediction.geometry.dims != geometry.dims:
        raise GeometryError(
            f"Case {prediction.case}: the prediction has {prediction.geometry.dims} axes, "
            f"its reference {geometry.dims}."
        )
    own = prediction.geometry
    if prediction.instances is None:
        moved = tuple(_moved_box(c, own, geometry) for c in prediction.candidates)
        return replace(prediction, geometry=geometry, candidates=moved)
    instances = _nearest(prediction.instances, own, geometry)
    lost = set(present_values(prediction.instances)) - set(present_values(instances))
    for candidate in prediction.candidates:
        if candidate.id in lost:  # none of the new voxels is in it
            at = np.rint(geometry.to_index([candidate.centre_mm])[0]).astype(np.int64)
            inside = bool(((at >= 0) & (at < geometry.shape)).all())
            if inside and instances[tuple(at)] == 0:
                instances[tuple(at)] = candidate.id
    lesions = candidates_of(replace(prediction, geometry=geometry, instances=instances))
    candidates = tuple(
        replace(
            Candidate.from_voxels(c.id, c.label, c.score, lesions.voxels_of(row), geometry),
            accepted=c.accepted,
            probability=c.probability,
        )
        if lesions.has_voxels[row]
        else _moved_box(c, own, geometry)
        for row, c in enumerate(prediction.candidates)
    )
    values = prediction.values
    return replace(
        prediction,
        geometry=geometry,
        candidates=candidates,
        instances=instances,
        values=None if values is None else _nearest(values, own, geometry),
    )


def _nearest(array: NDArray[Any], source: Geometry, geometry: Geometry) -> NDArray[Any]:
    moved: NDArray[Any] = resample_to(array[np.newaxis], source, geometry, "nearest")[0].numpy()
    return moved


def _moved_box(candidate: Candidate, source: Geometry, geometry: Geometry) -> Candidate:
    """Return the candidate with the box around the moved corners of its box, without voxels."""
    box = [*candidate.start_vox, *candidate.stop_vox]
    moved = move_boxes([box], source, geometry)[0].tolist()
    return replace(
        candidate,
        start_vox=tuple(moved[: geometry.dims]),
        stop_vox=tuple(moved[geometry.dims :]),
        has_mask=False,
    )
