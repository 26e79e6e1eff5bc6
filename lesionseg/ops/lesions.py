"""The lesions of a reference, derived once for the plan, the targets, the scores and the pages."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Lesions, Prediction, Reference
from lesionseg.core.lesions import box_slices
from lesionseg.errors import ContentError
from lesionseg.ops.components import lesion_voxels, nonzero_voxels
from lesionseg.ops.kernels import sparse_numba


def lesions_of(reference: Reference) -> Lesions:
    """The lesions of a reference: its instances, else the components of its labels, else boxes.

    Voxels to be ignored are taken out first. A lesion that has neither voxels nor a box is left
    out. Lesion-free gives no rows. Raises `ContentError` for an instance without a label.
    """
    if reference.instances is None and reference.labels is not None:
        return _components(reference.geometry, reference.labels, reference.ignore)
    labels, boxes = reference.instance_labels, reference.boxes
    if reference.instances is None:
        labels = reference.box_labels
    if boxes is not None and len(boxes) != len(labels):
        boxes = None  # boxes of something else than these lesions
    ids = np.arange(1, len(labels) + 1)
    return listed_lesions(
        reference.geometry, ids, labels, boxes, reference.instances, reference.ignore
    )


def candidates_of(prediction: Prediction, ignore: NDArray[np.bool_] | None = None) -> Lesions:
    """The candidates of a prediction, in its order; voxels to be ignored are taken out.

    Raises `ContentError` when the instance mask holds an id that no candidate has.
    """
    candidates = prediction.candidates
    boxes = np.array([(*c.start_vox, *c.stop_vox) for c in candidates], dtype=np.float64)
    boxes = boxes.reshape(-1, 2 * prediction.geometry.dims)
    ids = np.array([c.id for c in candidates], dtype=np.int64)
    labels = [c.label for c in candidates]
    instances = prediction.instances
    lesions = listed_lesions(prediction.geometry, ids, labels, boxes, instances, ignore)
    return replace(lesions, instances=instances)


def listed_lesions(
    geometry: Geometry,
    ids: NDArray[np.int64],
    labels: Sequence[int],
    boxes: NDArray[Any] | None,
    instances: NDArray[np.integer[Any]] | None,
    ignore: NDArray[np.bool_] | None = None,
) -> Lesions:
    """The lesions whose ids `[n]` are known; `instances` `[*spatial]` holds the ids.

    `boxes` `[n, 2·dims]` count for lesions without voxels. Voxels where `ignore` `[*spatial]` is
    set are taken out. Raises `ContentError` when the instances hold an id that is not listed.
    """
    index = owner = np.zeros(0, dtype=np.int64)
    if instances is not None:
        index = nonzero_voxels(instances)
        owner = _rows(ids, instances.reshape(-1)[index])
    if ignore is not None:
        judged = ~ignore.reshape(-1)[index]
        index, owner = index[judged], owner[judged]
    order, first = sparse_numba.grouped(owner, len(ids))
    return Lesions.measured(geometry, ids, labels, boxes, index[order], first)


def lesion_mask(reference: Reference) -> NDArray[np.bool_]:
    """Voxels `[*spatial]` of any lesion, boxes filled; voxels to be ignored are left out."""
    mask = reference.mask()
    if mask is None:
        mask = filled_boxes(
            () if reference.boxes is None else reference.boxes, reference.geometry.shape
        )
    return mask if reference.ignore is None else mask & ~reference.ignore


def filled_boxes(
    boxes: Sequence[Sequence[float]] | NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Boxes as a mask of all voxels that they touch."""
    mask = np.zeros(shape, dtype=np.bool_)
    for box in boxes:
        mask[box_slices(box, len(shape))] = True
    return mask


def _components(
    geometry: Geometry, labels: NDArray[np.integer[Any]], ignore: NDArray[np.bool_] | None
) -> Lesions:
    """The components of the labels."""
    if ignore is not None:
        labels = np.where(ignore, 0, labels)
    voxels = lesion_voxels(labels)
    ids = np.arange(1, len(voxels.labels) + 1)
    order, first = sparse_numba.grouped(voxels.owner, len(ids))
    return Lesions.measured(geometry, ids, voxels.labels, None, voxels.index[order], first)


def _rows(ids: NDArray[np.int64], values: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The row of each voxel's id."""
    highest = int(max(ids.max(initial=0), values.max(initial=0)))
    row_of = np.full(highest + 1, -1, dtype=np.int64)
    row_of[ids] = np.arange(len(ids))
    rows: NDArray[np.int64] = row_of[values]
    if (rows < 0).any():
        raise ContentError(
            "The instance mask holds ids that are not listed.",
            seen=np.unique(values[rows < 0])[:10].tolist(),
            expected=f"the {len(ids)} listed ones",
            remedy="write the list and the mask together, with the same ids.",
        )
    return rows
