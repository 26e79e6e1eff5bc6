"""Connected components: what is one lesion (26 or 8 neighbours); lesions measured, shapes filled.

The definition applies to references and predictions alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import cc3d
import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Lesions, Prediction, Reference
from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.core.lesions import box_slices, centre_slices
from lesionseg.errors import ContentError

FULL_CONNECTIVITY = {2: 8, 3: 26}
_ON_OUTLINE = 1e-3  # pixels, for the rounding of coordinates


def label_components(mask: Flags) -> NDArray[np.int32]:
    """Label the connected components of a mask of two or three axes.

    Voxels that share a face, an edge or a corner belong together (8 neighbours in 2-D, 26 in 3-D).

    Args:
        mask: `[*spatial]`.

    Returns:
        Ids `[*spatial]` from 1, in the order of each component's first voxel in C order. Background
        is 0. An empty mask gives zeros.

    Raises:
        ContentError: If the mask does not have two or three axes.

    >>> label_components(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=bool)).tolist()
    [[1, 0, 0, 2], [0, 1, 0, 2]]
    """
    return lesion_instances(np.asarray(mask, np.uint8))[0]  # one label value, 1


def lesion_instances(
    labels: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Find the lesions of a label map: the connected components of each label value.

    Neighbours share a face, an edge or a corner. Voxels with different labels belong to different
    lesions, even if they touch.

    Args:
        labels: Label values `[*spatial]`, 0 for background.

    Returns:
        Lesion ids 1..n `[*spatial]`, 0 elsewhere, in the order of first voxels in C order, and the
        label value of each id. Without lesions, zeros and `()`.

    Raises:
        ContentError: If the label map does not have two or three axes.

    >>> instances, of = lesion_instances(np.array([[3, 3, 0], [2, 0, 0]]))
    >>> instances.tolist(), of
    ([[1, 1, 0], [2, 0, 0]], (3, 2))
    """
    if labels.ndim not in FULL_CONNECTIVITY:
        raise ContentError(
            f"A label map must have two or three axes, not the shape {labels.shape}. Give one "
            "without an axis of channels."
        )
    # cc3d refuses read-only arrays such as Pillow's. It numbers components by their first voxels.
    array = np.require(labels, dtype=labels.dtype.newbyteorder("="), requirements=["C", "W"])
    ids = cc3d.connected_components(array, connectivity=FULL_CONNECTIVITY[labels.ndim])
    voxels = nonzero_voxels(ids)
    _, first = np.unique(ids.reshape(-1)[voxels], return_index=True)
    return ids.astype(np.int32, copy=False), tuple(array.reshape(-1)[voxels[first]].tolist())


class GroupedVoxels(NamedTuple):
    """The voxels of a mask of ids, one id after the other.

    Attributes:
        ids: The ids that are present `[n]`, ascending, without 0.
        voxels: Array indices `[v, dims]`, in C order within an id.
        first: The row in `voxels` at which each id begins `[n]`.
    """

    ids: NDArray[Any]
    voxels: Integers
    first: Integers


def group_voxels(instances: NDArray[Any]) -> GroupedVoxels:
    """List the voxels of each id in a mask `[*spatial]`, with one sort for all ids.

    Background is 0 and is left out.

    >>> grouped = group_voxels(np.array([[0, 5], [2, 5]]))
    >>> grouped.ids.tolist(), grouped.voxels.tolist(), grouped.first.tolist()
    ([2, 5], [[1, 0], [0, 1], [1, 1]], [0, 1])
    """
    index = nonzero_voxels(instances)
    id_of_voxel = instances.reshape(-1)[index]
    order = np.argsort(id_of_voxel, kind="stable")
    ids, first = np.unique(id_of_voxel[order], return_index=True)
    voxels = np.stack(np.unravel_index(index[order], instances.shape), axis=1)
    return GroupedVoxels(ids, voxels, first)


def nonzero_voxels(array: NDArray[Any]) -> Integers:
    """Return the flat indices of the voxels that are not 0, ascending.

    >>> nonzero_voxels(np.array([[0, 2], [0, 5]])).tolist()
    [1, 3]
    """
    return np.flatnonzero(np.ascontiguousarray(array).reshape(-1) != 0)


def present_values(array: NDArray[np.integer[Any]]) -> list[int]:
    """Return the distinct values of a mask, such as its label values or ids, ascending.

    0 is included if it occurs. Faster than `np.unique` if most voxels are 0.

    >>> present_values(np.array([[3, 0], [0, 1]])), present_values(np.array([2, 2]))
    ([0, 1, 3], [2])
    """
    nonzero = array[array != 0]
    zero = {0} if nonzero.size < array.size else set()
    return sorted({*zero, *np.unique(nonzero).tolist()})


def foreground_slices(array: NDArray[Any]) -> tuple[slice, ...] | None:
    """Return the slices of the smallest box that contains all non-zero voxels, to crop an array.

    The result is None if all voxels are 0.

    >>> foreground_slices(np.array([[0, 0, 0], [0, 1, 1]]))
    (slice(1, 2, None), slice(1, 3, None))
    """
    slices = []
    cropped = array
    for axis in range(array.ndim):
        nonempty = np.flatnonzero(
            cropped.any(axis=tuple(a for a in range(array.ndim) if a != axis))
        )
        if len(nonempty) == 0:
            return None
        slices.append(slice(int(nonempty[0]), int(nonempty[-1]) + 1))
        # crop, so that later axes read fewer voxels
        cropped = cropped[(slice(None),) * axis + (slices[-1],)]
    return tuple(slices)


def lesions_of(reference: Reference) -> Lesions:
    """List and measure the lesions of a reference, for training and evaluation alike.

    The lesions are the instances of the reference. Without instances, they are the connected
    components of its labels, and without labels its boxes.

    - Ignored voxels are removed before the lesions are measured.
    - An instance without voxels keeps its box if there are as many boxes as instances.
    - A lesion with neither voxels nor a box is left out.
    - A lesion whose voxels are all ignored is left out, whether it has a mask or only a box.

    A reference without lesions gives no rows. Raise `ContentError` if an instance has no label.
    """
    if reference.instances is None and reference.labels is not None:
        return _measure_components(reference.geometry, reference.labels, reference.ignore)
    labels = reference.instance_labels if reference.instances is not None else reference.box_labels
    boxes = reference.boxes
    if boxes is not None and len(boxes) != len(labels):
        boxes = None  # the boxes do not belong to these lesions
    ids = np.arange(1, len(labels) + 1)
    lesions = measure_instances(
        reference.geometry,
        ids,
        labels,
        boxes,
        instances=reference.instances,
        ignore=reference.ignore,
    )
    if reference.ignore is None:
        return lesions
    return _drop_ignored(lesions, reference.ignore, reference.instances)


def candidates_of(prediction: Prediction, ignore: Flags | None = None) -> Lesions:
    """Measure the candidates of a prediction in the same form as lesions, to compare the two.

    The rows have the order of the candidates. Voxels for which `ignore` `[*spatial]` is True do not
    count. Raise `ContentError` if the instance mask contains an id that no candidate has.
    """
    candidates = prediction.candidates
    boxes = np.array([(*c.start_vox, *c.stop_vox) for c in candidates], float)
    boxes = boxes.reshape(-1, 2 * prediction.geometry.dims)
    ids = np.array([c.id for c in candidates], np.int64)
    labels = [c.label for c in candidates]
    instances = prediction.instances
    lesions = measure_instances(
        prediction.geometry, ids, labels, boxes, instances=instances, ignore=ignore
    )
    return replace(lesions, instances=instances)


def unscored_prediction(
    case: str,
    geometry: Geometry,
    labels: NDArray[np.integer[Any]],
    instances: NDArray[np.int32] | None,
) -> Prediction:
    """Make a prediction from masks without scores, such as the masks of another program.

    The candidates are the instances, with their ids. If `instances` is None, they are the connected
    components of the labels. Each candidate has the score 1. An instance has the label of its first
    labelled voxel, or 1 without such a voxel.

    Args:
        case: Id of the case.
        geometry: The grid of the masks.
        labels: Label values `[*spatial]`, 0 for background.
        instances: Candidate ids `[*spatial]`, 0 elsewhere, or None.

    Raises:
        ContentError: If an instance has a negative id.
    """
    if instances is None:
        instances, label_of_instance = lesion_instances(labels)
    else:
        label_of = np.ones(int(instances.max(initial=0)) + 1, np.int64)
        inside = (instances > 0) & (labels > 0)
        labelled_ids, first = np.unique(instances[inside], return_index=True)
        label_of[labelled_ids] = labels[inside][first]
        label_of_instance = tuple(label_of[1:].tolist())
    ids = np.arange(1, len(label_of_instance) + 1)
    # ids without voxels, such as 2 if the mask contains 1 and 3, have no row
    lesions = measure_instances(geometry, ids, label_of_instance, boxes=None, instances=instances)
    candidates = []
    pairs = zip(lesions.ids.tolist(), lesions.labels.tolist(), strict=True)
    for row, (number, label) in enumerate(pairs):
        voxels = lesions.voxels_of(row)
        candidates.append(Candidate.from_voxels(number, label, 1.0, voxels, geometry))
    return Prediction(case, geometry, tuple(candidates), instances, has_scores=False)


def measure_instances(
    geometry: Geometry,
    ids: Integers,
    labels: Sequence[int],
    boxes: NDArray[Any] | None,
    instances: NDArray[np.integer[Any]] | None,
    ignore: Flags | None = None,
) -> Lesions:
    """Measure lesions that have a mask of ids, boxes, or both.

    Args:
        geometry: The grid of the masks.
        ids: Lesion ids `[n]`.
        labels: Label values of the lesions.
        boxes: `[n, 2·dims]`, for lesions without voxels; None if there are no boxes.
        instances: Lesion ids `[*spatial]`, 0 elsewhere; None if all lesions are boxes.
        ignore: True for voxels `[*spatial]` to remove.

    Returns:
        A row for each id that has voxels or a box, in the order of `ids`.

    Raises:
        ContentError: If `instances` contains an id that is not in `ids`.
    """
    index = np.zeros(0, np.int64)
    owner = np.zeros(0, np.int64)  # the row of the lesion of each voxel in `index`
    if instances is not None:
        index = nonzero_voxels(instances)
        owner = _find_rows(ids, instances.reshape(-1)[index])
    if ignore is not None:
        counted = ~ignore.reshape(-1)[index]
        index = index[counted]
        owner = owner[counted]
    order, first = _group_by_owner(owner, len(ids))
    return Lesions.measure(geometry, ids, labels, boxes, index[order], first)


def lesion_mask(reference: Reference) -> Flags:
    """Return the mask `[*spatial]` of all lesions of a reference: True for lesion voxels.

    Ignored voxels are False. If the reference has no mask, all voxels that a box touches are True.
    """
    mask = reference.mask()
    if mask is None:
        mask = fill_boxes(
            () if reference.boxes is None else reference.boxes, reference.geometry.shape
        )
    return mask if reference.ignore is None else mask & ~reference.ignore


def fill_boxes(boxes: Sequence[Sequence[float]] | NDArray[Any], shape: tuple[int, ...]) -> Flags:
    """Return a mask of `shape` that is True for all voxels that a box touches, even partly.

    Boxes are starts, then stops, in voxels, and may have fractions.
    """
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box_slices(box, len(shape))] = True
    return mask


def _measure_components(
    geometry: Geometry, labels: NDArray[np.integer[Any]], ignore: Flags | None
) -> Lesions:
    """Measure the lesions of a label map: the connected components of each label value.

    Ignored voxels are removed before, which can divide a component.
    """
    if ignore is not None:
        labels = np.where(ignore, 0, labels)
    instances, label_of_instance = lesion_instances(labels)
    ids = np.arange(1, len(label_of_instance) + 1)
    return measure_instances(geometry, ids, label_of_instance, boxes=None, instances=instances)


def _drop_ignored(
    lesions: Lesions, ignore: Flags, instances: NDArray[np.integer[Any]] | None
) -> Lesions:
    """Leave out the lesions that are ignored completely, but still have a box.

    Such a lesion has no voxels. It had voxels before ignored voxels were removed, or its box
    contains only ignored voxels.

    Args:
        lesions: The lesions without their ignored voxels.
        ignore: True for ignored voxels `[*spatial]`.
        instances: Lesion ids `[*spatial]`, or None if all lesions are boxes. A box without voxels
            in this mask is represented by the voxels of `centre_slices`.
    """
    if lesions.has_voxels.all():
        return lesions
    with_mask = set() if instances is None else set(present_values(instances))
    is_kept = lesions.has_voxels.copy()
    for row in np.flatnonzero(~is_kept):
        ignore_in_box = ignore[centre_slices(lesions.boxes[row], ignore.ndim)]
        is_ignored = ignore_in_box.size > 0 and bool(ignore_in_box.all())
        is_kept[row] = not is_ignored and int(lesions.ids[row]) not in with_mask
    return replace(
        lesions,
        ids=lesions.ids[is_kept],
        labels=lesions.labels[is_kept],
        boxes=lesions.boxes[is_kept],
        centres_mm=lesions.centres_mm[is_kept],
        diameters_mm=lesions.diameters_mm[is_kept],
        # the rows that are left out have no voxels, so `voxels` stays complete
        first=np.concatenate([[0], np.cumsum(lesions.n_voxels[is_kept])]),
    )


def _group_by_owner(owner: NDArray[np.integer[Any]], n: int) -> tuple[Integers, Integers]:
    """Group voxels by the lesion to which they belong.

    Args:
        owner: The row of each voxel's lesion `[v]`, from 0 to n−1.
        n: The number of lesions.

    Returns:
        - The indices `[v]` that sort the voxels by lesion, and keep their order within a lesion.
        - The position of each lesion's first voxel in this order, then v, `[n + 1]`.
    """
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))])
    return np.argsort(owner, kind="stable"), bounds.astype(np.int64)


def _find_rows(ids: Integers, values: NDArray[np.integer[Any]]) -> Integers:
    """Return the row in the list of lesion ids `ids` for each id in `values`.

    Raise `ContentError` if an id in `values` is not in `ids`.
    """
    highest = int(max(ids.max(initial=0), values.max(initial=0)))
    row_of = np.full(highest + 1, -1, np.int64)
    row_of[ids] = np.arange(len(ids))
    # a negative index would count from the end of `row_of`
    rows = np.where(values < 0, -1, row_of[np.maximum(values, 0)])
    if (rows < 0).any():
        unlisted = np.unique(values[rows < 0])[:10].tolist()
        raise ContentError(
            f"The instance mask contains ids that no lesion or candidate has: {unlisted}. Correct "
            "the mask or the list of lesions."
        )
    return rows


def fill_polygons(polygons: Sequence[Numbers], shape: tuple[int, ...]) -> Flags:
    """Convert the contours of a slice to a mask `[y, x]`, True for pixels of the lesion.

    - A pixel is True if its centre is inside an odd number of polygons. A polygon inside another
      polygon is therefore a hole. A centre is inside a polygon if a ray to the left crosses its
      outline an odd number of times.
    - A pixel is also True if its centre is at most 0.001 pixels from an outline, because some
      programs draw outlines, also of holes, through the centres of the outermost pixels of the
      lesion.
    - A polygon that contains and touches no centre adds the pixel nearest to its middle, so that no
      lesion is lost. A middle outside the image adds none. Such a polygon is never a hole, because
      a hole smaller than a pixel would remove a complete pixel.

    Other libraries are not suitable. Pillow also paints every pixel that the outline touches, which
    enlarges small lesions. matplotlib has no rule for corners on pixel centres, and contours of
    DICOM often have such corners.

    Args:
        polygons: The corners `[n, 2]` (y, x) of each polygon.
        shape: The number of pixels along y and x.

    >>> corners = np.array([[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5]])
    >>> fill_polygons([corners], (2, 3))
    array([[ True,  True, False],
           [False, False, False]])
    """
    inside = np.zeros(shape, bool)
    near_or_small = np.zeros(shape, bool)  # on outlines, or in the middle of small polygons
    x = np.arange(shape[1])
    for corners in filter(len, polygons):
        is_odd = np.zeros(shape, bool)
        is_near = np.zeros(shape, bool)
        points = corners @ (1j, 1)  # (y, x) as the complex number x + iy
        for start, end in zip(points, np.roll(points, -1), strict=True):
            low, high = sorted((start.imag, end.imag))
            rows = slice(*np.clip((np.floor(low), np.ceil(high) + 1), 0, shape[0]).astype(int))
            y = np.arange(shape[0])[rows, np.newaxis]
            side = (end - start) or 1e-9  # for a repeated corner, no division by 0
            # each centre in the system in which the side leads from 0 to 1
            centres = (x + 1j * y - start) / side
            is_near[rows] |= np.abs((centres - centres.real.clip(0, 1)) * side) <= _ON_OUTLINE
            crosses_row = (start.imag <= y) != (end.imag <= y)
            # a ray to the left crosses the side if the centre is to the right of it
            is_odd[rows] ^= crosses_row & (centres.imag * side.imag <= 0)
        inside ^= is_odd
        near_or_small |= is_near
        if not (is_odd | is_near).any():
            middle = np.rint(corners.mean(axis=0)).astype(int)
            if ((middle >= 0) & (middle < shape)).all():
                near_or_small[tuple(middle)] = True
    return inside | near_or_small  # after all polygons, in whatever order the file states them
