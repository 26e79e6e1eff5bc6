"""Connected components: the one definition of a lesion, and the one derivation of a reference's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Lesions, Prediction, Reference
from lesionseg.core.lesions import box_slices
from lesionseg.errors import ContentError
from lesionseg.ops.kernels import sparse_numba

FULL_CONNECTIVITY = {2: 8, 3: 26}
_CHUNK = 1 << 22  # voxels looked at together


@dataclass(frozen=True, eq=False)
class LesionInstances:
    """The lesions of a label map.

    `instances` `[*spatial]` int32 holds lesion ids 1..n, 0 elsewhere; `labels[id - 1]` is the
    label value of lesion `id`.
    """

    instances: NDArray[np.int32]
    labels: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LesionVoxels:
    """The lesions of a label map, as a list of voxels.

    `index` `[v]`: flat indices, ascending; `owner` `[v]`: the lesion of each, from 0 in the order
    of first voxels; `labels[owner]` is its label value.
    """

    index: NDArray[np.int64]
    owner: NDArray[np.int64]
    labels: tuple[int, ...]


def label_components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected components of a mask of two or three axes.

    Voxels that share a face, an edge or a corner belong together (8 neighbours in 2-D, 26 in 3-D).
    Ids run from 1 in the order of each component's first voxel in C order; 0 is background. An
    empty mask gives zeros. Raises `ContentError` for other numbers of axes.

    >>> label_components(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=bool)).tolist()
    [[1, 0, 0, 2], [0, 1, 0, 2]]
    """
    return lesion_instances(np.asarray(mask, dtype=np.uint8)).instances


def lesion_instances(labels: NDArray[np.integer[Any]]) -> LesionInstances:
    """Find the lesions of a label map: the components of each label value on its own.

    `labels` `[*spatial]` holds 0 for background. Lesions of different labels never join, even
    where they touch. Ids are ordered by first voxel in C order; no lesion gives zeros and `()`.

    >>> found = lesion_instances(np.array([[3, 3, 0], [2, 0, 0]]))
    >>> found.instances.tolist(), found.labels
    ([[1, 1, 0], [2, 0, 0]], (3, 2))
    """
    voxels = lesion_voxels(labels)
    instances = np.zeros(labels.shape, dtype=np.int32)
    instances.reshape(-1)[voxels.index] = voxels.owner + 1
    return LesionInstances(instances, voxels.labels)


def lesion_voxels(labels: NDArray[np.integer[Any]]) -> LesionVoxels:
    """The lesions of a label map as `lesion_instances` finds them, without the map.

    >>> found = lesion_voxels(np.array([[3, 3, 0], [2, 0, 0]]))
    >>> found.index.tolist(), found.owner.tolist(), found.labels
    ([0, 1, 3], [0, 0, 1], (3, 2))
    """
    if labels.ndim not in FULL_CONNECTIVITY:
        raise ContentError(f"A label map has two or three axes, not the shape {labels.shape}.")
    index = nonzero_voxels(labels)
    values = _native(labels.reshape(-1)[index])
    owner, first = sparse_numba.components(index, values, (1, *labels.shape)[-3:])
    return LesionVoxels(index, owner, tuple(values[first].tolist()))


def nonzero_voxels(array: NDArray[Any]) -> NDArray[np.int64]:
    """Flat indices of the voxels that are not 0, ascending; of an array mostly 0 it is quick.

    >>> nonzero_voxels(np.array([[0, 2], [0, 5]])).tolist()
    [1, 3]
    """
    items = _native(np.ascontiguousarray(array).reshape(-1))
    if items.dtype.kind == "b":
        items = items.view(np.uint8)
    if items.dtype.kind not in "iu":
        return np.flatnonzero(items)
    per_word = 8 // items.itemsize
    whole = items[: items.size // per_word * per_word]
    if whole.ctypes.data % 8:  # a piece of an array that begins between two words
        whole = whole[:0]
    return sparse_numba.nonzero(items, whole.view(np.uint64), per_word)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """In this machine's order of bytes: files may have the other, compiled code does not."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def present_values(array: NDArray[np.integer[Any]]) -> list[int]:
    """The different values of an array, ascending; of one mostly 0 it is quick.

    >>> present_values(np.array([[3, 0], [0, 1]])), present_values(np.array([2, 2]))
    ([0, 1, 3], [2])
    """
    items = np.ascontiguousarray(array).reshape(-1)
    values_present: set[int] = set()
    for start in range(0, items.size, _CHUNK):
        piece = items[start : start + _CHUNK]
        inside = nonzero_voxels(piece)
        values_present.update(np.unique(piece[inside]).tolist())
        if len(inside) < len(piece):
            values_present.add(0)
    return sorted(values_present)


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


def mask_boxes(instances: NDArray[np.integer[Any]], n: int) -> NDArray[np.float32]:
    """Boxes `[n, 2·dims]` (starts, stops; half-open voxels) of the instances 1..n.

    An id that no voxel holds has a box of zeros; `n = 0` gives an empty array.

    >>> mask_boxes(np.array([[0, 1, 1], [2, 0, 0]]), 2).tolist()
    [[0.0, 1.0, 1.0, 3.0], [1.0, 0.0, 2.0, 1.0]]
    """
    index = nonzero_voxels(instances)
    ids = np.ascontiguousarray(instances).reshape(-1)[index].astype(np.int64)
    shape = np.array(instances.shape, dtype=np.int64)
    return sparse_numba.boxes(index, ids, shape, n).astype(np.float32)


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
        unlisted = np.unique(values[rows < 0])[:10].tolist()
        raise ContentError(f"The instance mask holds ids that are not listed: {unlisted}.")
    return rows
