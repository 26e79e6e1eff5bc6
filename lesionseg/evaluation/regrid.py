"""A prediction brought onto another grid, when that is asked for: masks take the nearest voxel."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.errors import GeometryError
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.ops.resample import resample_nearest


def onto_grid(prediction: Prediction, geometry: Geometry) -> Prediction:
    """The prediction on the grid `geometry`, by position in space.

    Each voxel takes the candidate of the nearest voxel, none outside of the prediction's grid. A
    candidate that falls between the new voxels keeps the one nearest to its centre, if that is
    free and inside; bare boxes become the boxes around their moved corners. Sizes are measured
    again. Raises `GeometryError` for another number of axes.
    """
    if prediction.geometry.dims != geometry.dims:
        raise GeometryError(
            f"Case {prediction.case}: the prediction has {prediction.geometry.dims} axes, "
            f"its reference {geometry.dims}."
        )
    # from an index of the new grid to one of the old
    matrix = np.linalg.inv(prediction.geometry.affine) @ geometry.affine
    if prediction.instances is None:
        moved = tuple(_moved_box(c, matrix, geometry) for c in prediction.candidates)
        return replace(prediction, geometry=geometry, candidates=moved)
    instances = _nearest(prediction.instances, matrix, geometry.shape)
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
        if lesions.masked[row]
        else _moved_box(c, matrix, geometry)
        for row, c in enumerate(prediction.candidates)
    )
    values = prediction.values
    return replace(
        prediction,
        geometry=geometry,
        candidates=candidates,
        instances=instances,
        values=None if values is None else _nearest(values, matrix, geometry.shape),
    )


def _nearest(
    array: NDArray[Any], matrix: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[Any]:
    found = resample_nearest(torch.from_numpy(np.ascontiguousarray(array))[None], matrix, shape)
    moved: NDArray[Any] = found[0].numpy()
    return moved


def _moved_box(candidate: Candidate, matrix: NDArray[np.float64], geometry: Geometry) -> Candidate:
    """The box around the corners of the candidate's box; voxel i covers [i − ½, i + ½) in space."""
    back = np.linalg.inv(matrix)
    ends = np.array([candidate.start_vox, candidate.stop_vox]) - 0.5
    axes = range(geometry.dims)
    corners = np.array([[ends[b >> a & 1, a] for a in axes] for b in range(2**geometry.dims)])
    moved = corners @ back[:-1, :-1].T + back[:-1, -1] + 0.5
    return replace(
        candidate,
        start_vox=tuple(float(v) for v in moved.min(axis=0)),
        stop_vox=tuple(float(v) for v in moved.max(axis=0)),
        has_mask=False,
    )
