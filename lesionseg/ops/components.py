"""Connected components: the one definition of a lesion, and the one derivation of a reference's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Lesions, Prediction, Reference
from lesionseg.core.lesions import box_slices
from lesionseg.errors import ContentError

FULL_CONNECTIVITY = {2: 8, 3: 26}


def label_components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected components of a mask of two or three axes.

    Voxels that share a face, an edge or a corner belong together (8 neighbours in 2-D, 26 in 3-D).
    Ids run from 1 in the order of each component's first voxel in C order; 0 is background. An
    empty mask gives zeros. Raises `ContentError` for other numbers of axes.

    >>> label_components(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=bool)).tolist()
    [[1, 0, 0, 2], [0, 1, 0, 2]]
    """
    return lesion_instances(np.asarray(mask, dtype=np.uint8))[0]


def lesion_instances(
    labels: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Find the lesions of a label map: the components of each label value on its own.

    Lesions of different labels never join, even if they touch.

    Args:
        labels: label values `[*spatial]`, 0 for background.

    Returns:
        Lesion ids 1..n `[*spatial]`, 0 elsewhere, in the order of first voxels in C order, and the
        label value of each id. Zeros and `()` without a lesion.

    >>> instances, of = lesion_instances(np.array([[3, 3, 0], [2, 0, 0]]))
    >>> instances.tolist(), of
    ([[1, 1, 0], [2, 0, 0]], (3, 2))
    """
    if labels.ndim not in FULL_CONNECTIVITY:
        raise ContentError(f"A label map has two or three axes, not the shape {labels.shape}.")
    # cc3d refuses read-only arrays, such as Pillow's; it numbers in the order of first voxels, too
    array = np.require(labels, dtype=labels.dtype.newbyteorder("="), requirements=["C", "W"])
    found = cc3d.connected_components(array, connectivity=FULL_CONNECTIVITY[labels.ndim])
    index = nonzero_voxels(found)
    _, first = np.unique(found.reshape(-1)[index], return_index=True)
    values = tuple(array.reshape(-1)[index[first]].tolist())
    return found.astype(np.int32, copy=False), values


def nonzero_voxels(array: NDArray[Any]) -> NDArray[np.int64]:
    """Flat indices of the voxels that are not 0, ascending.

    >>> nonzero_voxels(np.array([[0, 2], [0, 5]])).tolist()
    [1, 3]
    """
    return np.flatnonzero(np.ascontiguousarray(array).reshape(-1) != 0)


def present_values(array: NDArray[np.integer[Any]]) -> list[int]:
    """The different values of an array, ascending; of one mostly 0 it is quick.

    >>> present_values(np.array([[3, 0], [0, 1]])), present_values(np.array([2, 2]))
    ([0, 1, 3], [2])
    """
    others = array[array != 0]
    zero = {0} if others.size < array.size else set()
    return sorted({*zero, *np.unique(others).tolist()})


def foreground_slices(array: NDArray[Any]) -> tuple[slice, ...] | None:
    """Smallest box that holds all non-zero voxels, as slices; None when there is none.

    >>> foreground_slices(np.array([[0, 0, 0], [0, 1, 1]]))
    (slice(1, 2, None), slice(1, 3, None))
    """
    slices = []
    rest = array
    for axis in range(array.ndim):
        others = tuple(a for a in range(array.ndim) if a != axis)
        used = np.flatnonzero(rest.any(axis=others))
        if len(used) == 0:
            return None
        slices.append(slice(int(used[0]), int(used[-1]) + 1))
        # later axes need only look at what is left
        rest = rest[(slice(None),) * axis + (slices[-1],)]
    return tuple(slices)


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


def unscored_prediction(
    case: str,
    geometry: Geometry,
    labels: NDArray[np.integer[Any]],
    instances: NDArray[np.int32] | None,
) -> Prediction:
    """A prediction from masks alone: a candidate of score 1 per instance, else per component.

    An instance has the label of its first labelled voxel, 1 where there is none.
    """
    if instances is None:
        instances, of_instance = lesion_instances(labels)
    else:
        label_of = np.ones(int(instances.max(initial=0)) + 1, dtype=np.int64)
        inside = (instances > 0) & (labels > 0)
        numbers, first = np.unique(instances[inside], return_index=True)
        label_of[numbers] = labels[inside][first]
        of_instance = tuple(label_of[1:].tolist())
    ids = np.arange(1, len(of_instance) + 1)
    lesions = listed_lesions(geometry, ids, of_instance, None, instances)
    candidates = tuple(
        Candidate.from_voxels(row + 1, label, 1.0, lesions.voxels_of(row), geometry)
        for row, label in enumerate(of_instance)
    )
    return Prediction(case, geometry, candidates, instances, scored=False)


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
        counted = ~ignore.reshape(-1)[index]
        index, owner = index[counted], owner[counted]
    order, first = _grouped(owner, len(ids))
    return Lesions.measure(geometry, ids, labels, boxes, index[order], first)


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
    if ignore is not None:
        labels = np.where(ignore, 0, labels)
    instances, of_instance = lesion_instances(labels)
    ids = np.arange(1, len(of_instance) + 1)
    index = nonzero_voxels(instances)
    order, first = _grouped(instances.reshape(-1)[index] - 1, len(ids))
    return Lesions.measure(geometry, ids, of_instance, None, index[order], first)


def _grouped(
    owner: NDArray[np.integer[Any]], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order `[v]` that puts owners 0..n−1 together, as it was within, and n + 1 bounds."""
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))])
    return np.argsort(owner, kind="stable"), bounds.astype(np.int64)


def _rows(ids: NDArray[np.int64], values: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    highest = int(max(ids.max(initial=0), values.max(initial=0)))
    row_of = np.full(highest + 1, -1, dtype=np.int64)
    row_of[ids] = np.arange(len(ids))
    rows: NDArray[np.int64] = row_of[values]
    if (rows < 0).any():
        unlisted = np.unique(values[rows < 0])[:10].tolist()
        raise ContentError(f"The instance mask holds ids that are not listed: {unlisted}.")
    return rows


def fill_polygon(corners: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the pixels `[y, x]` with a centre inside the closed polygon `corners` `[n, 2]` (y, x).

    A centre is inside if a ray to the left crosses the outline an odd number of times. A polygon
    that contains no centre keeps the pixel nearest to its middle, so that no lesion is lost.

    Libraries do not serve: Pillow also paints every pixel that the outline touches, which enlarges
    small lesions, and matplotlib states no rule for corners on pixel centres, where contours of
    DICOM often have them.

    >>> fill_polygon(np.array([[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5]]), (2, 3))
    array([[ True,  True, False],
           [False, False, False]])
    """
    inside = np.zeros(shape, dtype=bool)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, shape)
    y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
    crossed = inside[low[0] : high[0], low[1] : high[1]]
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            between = (y0 <= y) != (y1 <= y)
            crossed ^= between & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x)
    middle = np.rint(corners.mean(axis=0)).astype(int)
    if not inside.any() and (middle >= 0).all() and (middle < shape).all():
        inside[tuple(middle)] = True
    return inside
