"""Preparation of reference masks and boxes: resampling, tiny lesions kept, ignored voxels.

Each lesion keeps at least one voxel.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Lesions, Reference, Volume
from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.core.lesions import centre_slices
from lesionseg.data.preprocess_image import SAME_MM, to_canonical
from lesionseg.errors import ContentError
from lesionseg.ops.boxes import move_boxes
from lesionseg.ops.components import lesions_of
from lesionseg.ops.interpolation import resample_to
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

# a lesion that covers less than this share of a voxel is not visible in it
VISIBLE_SHARE = 0.1


def prepare_reference(
    reference: Reference, geometry: Geometry, plan: Plan, *, where: str | None = None
) -> Reference:
    """Resample a reference to the plan's grid, as the target of a training.

    - `lesions_of` defines the lesions.
    - Boxes are filled. Smaller boxes overwrite larger boxes, unless a box would become much
      shorter along an axis (`_restore_extents`).
    - A voxel belongs to a lesion if lesions cover at least half of the voxel. If several lesions
      cover it, it belongs to the lesion that covers most of it.
    - A lesion that would vanish gets the voxel at its centre or an adjacent voxel
      (`_find_free_voxel`).
    - A lesion voxel is ignored if lesions cover less than a tenth of it, because the lesion is not
      visible in it. All other ignored voxels have no lesion.

    Args:
        reference: The reference on the file's grid.
        geometry: The plan's grid, on which the image was prepared.
        plan: Contains the labels.
        where: Name of the case in messages.

    Returns:
        A reference with `labels` uint8 and `instances` int32 `[*spatial]`, zeros without lesions.
        Label k means `plan.labels.mask_values[k-1]`, which is network channel k-1 without regions.
        In `instance_labels`, each id has the label 1 with regions. Without regions, an id without a
        lesion has the label 0. `ignore` is True for voxels that do not count in training, or None.
        `annotated` is False for the plan's labels that the reader did not annotate.

    Raises:
        ContentError: If the plan does not have a label of the reference.
    """
    mask_values = plan.labels.mask_values
    lesions = lesions_of(reference)
    instances = lesions.draw()
    if reference.ignore is not None:  # a box may contain ignored voxels
        instances[reference.ignore] = 0
    values = lesions.labels  # of each lesion or, with regions, of each lesion voxel
    if plan.labels.regions:  # a lesion of regions may have voxels of several mask values
        values = np.ones(np.count_nonzero(instances), np.uint8)
        if reference.labels is not None:
            values = np.asarray(reference.labels[instances > 0])
    unknown = sorted(set(np.unique(values).tolist()) - set(mask_values))
    if unknown:
        raise ContentError(
            f"{where or 'reference'}: contains the labels {unknown}, which are not among the "
            f"plan's {list(mask_values)}. Correct the mask, or plan again with these labels."
        )
    resampled, covered = _read_instances(instances, reference.geometry, geometry)
    # the label of each lesion id; entry 0 is the background, the last entry the highest id
    label_of_id = np.zeros(int(lesions.ids.max(initial=0)) + 1, np.uint8)
    _restore_lost(resampled, instances, len(label_of_id) - 1, reference.geometry, geometry)
    if plan.labels.regions:
        label_of_id[1:] = 1
        labels = _resample_labels(
            values, instances, reference.geometry, resampled, geometry, mask_values
        )
    else:
        label_numbers = [plan.labels.values.index(value) + 1 for value in lesions.labels.tolist()]
        label_of_id[lesions.ids] = label_numbers
        _restore_extents(resampled, covered, lesions, geometry)
        labels = label_of_id[resampled]
    unannotated = [value for value in reference.unannotated if value in mask_values]
    return Reference(
        geometry,
        labels=labels,
        instances=resampled,
        instance_labels=tuple(label_of_id[1:].tolist()),
        ignore=_find_ignored(reference, geometry, resampled, covered),
        annotated=dict.fromkeys([mask_values.index(value) + 1 for value in unannotated], False),
    )


def _find_ignored(
    reference: Reference,
    geometry: Geometry,
    resampled: NDArray[np.int32],
    covered: NDArray[np.float32],
) -> Flags | None:
    """Return a mask on the plan's grid: True for voxels that do not count in training.

    - A voxel of a lesion does not count if lesions cover less than `VISIBLE_SHARE` of it. Only a
      voxel that `_restore_lost` or `_restore_extents` has added is covered so little.
    - A voxel that the reference ignores does not count, unless it belongs to a lesion.

    Return None if all voxels count.

    Args:
        reference: The reference on the file's grid.
        geometry: The plan's grid.
        resampled: Lesion ids on the plan's grid, after `_restore_lost` and `_restore_extents`.
        covered: Share of each voxel that lesions cover.
    """
    ignored = (resampled > 0) & (covered < VISIBLE_SHARE)
    if reference.ignore is not None:
        ignore = reference.ignore.astype(np.uint8)
        is_ignored_in_file = _read_nearest(ignore, reference.geometry, geometry) != 0
        # `_restore_lost` may have put a lesion onto an ignored voxel: the lesion has priority
        ignored |= is_ignored_in_file & (resampled == 0)
    return ignored if ignored.any() else None


def _resample_labels(
    values: NDArray[np.integer[Any]],
    instances: NDArray[np.int32],
    source: Geometry,
    resampled: NDArray[np.int32],
    geometry: Geometry,
    mask_values: Sequence[int],
) -> NDArray[np.uint8]:
    """Return the label map on the plan's grid if voxels of a lesion may have several labels.

    A lesion voxel gets the label of the nearest voxel on the file's grid. If the nearest voxel has
    no label, the lesion voxel gets the lesion's most frequent label.

    Args:
        values: Mask value of each lesion voxel of `instances`, in C order.
        instances: Lesion ids on the file's grid.
        source: The file's grid.
        resampled: Lesion ids on the plan's grid.
        geometry: The plan's grid.
        mask_values: The values that become the labels 1, 2, …
    """
    label_of_value = np.zeros(max(mask_values) + 1, np.uint8)
    label_of_value[list(mask_values)] = np.arange(1, len(mask_values) + 1)
    file_labels = np.zeros(instances.shape, np.uint8)
    file_labels[instances > 0] = label_of_value[values]
    labels = np.where(resampled > 0, _read_nearest(file_labels, source, geometry), np.uint8(0))
    # a restored voxel may be outside of its mask: it gets the lesion's most frequent label
    for lesion in np.unique(resampled[(resampled > 0) & (labels == 0)]):
        most_frequent = np.bincount(file_labels[instances == lesion]).argmax()
        labels[(resampled == lesion) & (labels == 0)] = most_frequent
    return labels


def _read_nearest(array: NDArray[Any], source: Geometry, geometry: Geometry) -> NDArray[Any]:
    """Resample a mask to the plan's grid by the nearest voxel.

    If the plan's grid extends beyond the mask, the outermost voxels continue.

    Args:
        array: The mask `[*file]`.
        source: The file's grid.
        geometry: The plan's grid.
    """
    view = to_canonical(Volume(array[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        return np.ascontiguousarray(view.array[0])
    return resample_to(view.array, view.geometry, geometry, "nearest", edge="extend")[0].numpy()


def _read_instances(
    instances: NDArray[np.int32], source: Geometry, geometry: Geometry
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Resample a mask of lesion ids to the plan's grid.

    A voxel belongs to a lesion if lesions cover at least half of the voxel. If several lesions
    cover it, it belongs to the lesion that covers most of it.

    Args:
        instances: Lesion ids on the file's grid.
        source: The file's grid.
        geometry: The plan's grid.

    Returns:
        Lesion ids on the plan's grid, and the share of each voxel that lesions cover.
    """
    view = to_canonical(Volume(instances[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        resampled = np.ascontiguousarray(view.array[0])
        return resampled, (resampled > 0).astype(np.float32)
    resampled = np.zeros(geometry.shape, np.int32)
    largest_share = np.zeros(geometry.shape, np.float32)
    covered = np.zeros(geometry.shape, np.float32)
    # `find_objects` returns the slices of the bounding box of each id; None for an absent id
    for lesion_id, box in enumerate(ndimage.find_objects(view.array[0]), start=1):
        if box is not None:
            mask = view.array[0][box] == lesion_id
            region, share = _covered_share(mask, view.geometry.crop(box), geometry)
            is_more = share > largest_share[region]
            resampled[region][is_more] = lesion_id
            largest_share[region][is_more] = share[is_more]
            covered[region] += share
    resampled[covered < 0.5 - 1e-6] = 0  # 1e-6 for rounding in float32
    return resampled, covered


def _covered_share(
    mask: Flags, source: Geometry, geometry: Geometry
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """Compute which fraction of each voxel of the plan's grid a mask covers.

    Only the region that the mask's grid reaches is computed, because a lesion is small.

    Args:
        mask: The mask of a lesion, cropped.
        source: The grid of `mask`.
        geometry: The plan's grid.

    Returns:
        The slices of this region on the plan's grid, and the fraction of each voxel in it.
    """
    corners = itertools.product(*[(-0.5, n - 0.5) for n in source.shape])
    reached = geometry.to_index(source.to_mm(list(corners)))
    last_index = np.array(geometry.shape) - 1
    # voxel i covers i ± 0.5
    first = np.floor(reached.min(axis=0) + 0.5).clip(0, last_index).astype(int)
    last = np.ceil(reached.max(axis=0) - 0.5).clip(first, last_index).astype(int)
    reached_slices = tuple(
        slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)
    )
    return reached_slices, resample_to(
        mask[np.newaxis], source, geometry.crop(reached_slices), "share"
    )[0].numpy()


def _restore_lost(
    resampled: NDArray[np.int32],
    instances: NDArray[np.int32],
    highest_id: int,
    source: Geometry,
    geometry: Geometry,
) -> None:
    """Give each lesion that resampling has lost one voxel of `resampled`, in place.

    The voxel is the one at the lesion's centre, or an adjacent voxel (`_find_free_voxel`). An id
    without a voxel in `instances` gets no voxel.

    Args:
        resampled: Lesion ids on the plan's grid.
        instances: Lesion ids on the file's grid.
        highest_id: The highest id in `instances`.
        source: The file's grid.
        geometry: The plan's grid.
    """
    n_voxels = np.bincount(resampled.reshape(-1), minlength=highest_id + 1)
    absent = np.flatnonzero(n_voxels[1:] == 0) + 1  # lost lesions, and ids without voxels
    if not len(absent):
        return
    voxels = np.argwhere(np.isin(instances, absent))
    ids = instances[tuple(voxels.T)]
    lost = np.unique(ids)
    for lesion in lost:
        centre = geometry.to_index(source.to_mm(voxels[ids == lesion].mean(axis=0)))
        # `atleast_2d` and `[0]` change nothing: `centre` is a single point `[dims]`
        resampled[_find_free_voxel(resampled, np.atleast_2d(centre)[0])] = lesion
    logger.debug("%d lesions had no voxel on the plan's grid. Each got one.", len(lost))


def _restore_extents(
    resampled: NDArray[np.int32],
    covered: NDArray[np.float32],
    lesions: Lesions,
    geometry: Geometry,
) -> None:
    """Draw boxes again, in place, that have lost more than a voxel of their length along an axis.

    A detector learns the bounding box of a lesion's voxels, so this box must have the right length.
    A box loses length in these cases:

    - A smaller box covers one of its sides.
    - An equal box covers it completely, such as the box of another label.
    - It is narrower than a voxel, and covers less than half of each voxel.

    Overlapping boxes then share the voxels of the overlap in stripes, if they are at least half as
    long along an axis. A box that gets no voxel this way gets the voxel of `_find_free_voxel`.

    Args:
        resampled: Lesion ids on the plan's grid, after `_restore_lost`.
        covered: Share of each voxel that lesions cover.
        lesions: The lesions on the file's grid. Lesions with a mask are not drawn again.
        geometry: The plan's grid.
    """
    rows = np.flatnonzero(~lesions.has_voxels)
    if not len(rows):
        return
    ids = lesions.ids[rows]
    grid_stop = [*geometry.shape, *geometry.shape]
    boxes = move_boxes(lesions.boxes[rows], lesions.geometry, geometry).clip(0, grid_stop)
    # the voxels whose centre a box contains; along an axis without one, a single voxel
    voxel_slices = [centre_slices(box, geometry.dims) for box in boxes]
    redrawn = np.flatnonzero(_find_boxes_to_redraw(resampled, ids, voxel_slices))
    if len(redrawn):
        may_draw = np.isin(resampled, ids[redrawn]) | ((resampled == 0) & (covered > 0))
        _draw_stripes(
            resampled, ids[redrawn].tolist(), [voxel_slices[i] for i in redrawn], may_draw
        )
    for i in np.flatnonzero(~np.isin(ids, resampled)).tolist():  # too many boxes share few voxels
        centre = np.array([(side.start + side.stop - 1) / 2 for side in voxel_slices[i]])
        resampled[_find_free_voxel(resampled, centre)] = ids[i]


def _find_boxes_to_redraw(
    resampled: NDArray[np.int32], ids: Integers, voxel_slices: Sequence[tuple[slice, ...]]
) -> Flags:
    """Flag the boxes `[n]` that must be drawn again, because they share voxels with other boxes.

    A box is flagged if it has lost at least two voxels of its length along an axis. Boxes that
    overlap such a box are also flagged if they are at least half as long along an axis. A box of
    one voxel is never flagged.

    Args:
        resampled: Lesion ids on the plan's grid.
        ids: The id of each box.
        voxel_slices: The slices of the voxels of each box.
    """
    start, stop = _ends_of(voxel_slices)
    drawn_slices = ndimage.find_objects(resampled, int(ids.max()))
    # the extent of a box without voxels: a negative length, which counts as short
    no_voxels = (slice(max(resampled.shape), 0),) * resampled.ndim
    first, last = _ends_of([drawn_slices[lesion_id - 1] or no_voxels for lesion_id in ids.tolist()])
    is_short = (last - first < stop - start - 1).any(axis=1)
    # a box of one voxel keeps it
    has_several = (stop - start > 1).any(axis=1)
    to_redraw = np.zeros(len(ids), bool)
    for i in np.flatnonzero(is_short).tolist():
        overlaps = ((start[i] < stop) & (start < stop[i])).all(axis=1)
        is_similar = (2 * (stop - start) >= stop[i] - start[i]).any(axis=1)
        to_redraw |= overlaps & is_similar & has_several  # the box itself, too
    return to_redraw


def _draw_stripes(
    resampled: NDArray[np.int32],
    ids: Sequence[int],
    voxel_slices: Sequence[tuple[slice, ...]],
    may_draw: Flags,
) -> None:
    """Draw boxes in place, so that overlapping boxes get alternate diagonal stripes of the overlap.

    Each box thus has voxels on all its sides.

    Args:
        resampled: Lesion ids on the plan's grid.
        ids: The id of each box.
        voxel_slices: The slices of the voxels of each box.
        may_draw: True for the voxels that may be drawn.
    """
    n_boxes = np.zeros(resampled.shape, np.int32)
    for box in voxel_slices:
        n_boxes[box] += 1
    n_before = np.zeros_like(n_boxes)  # boxes of each voxel that have been drawn
    for lesion_id, box in zip(ids, voxel_slices, strict=True):
        line = sum(np.ogrid[box])  # the sum of a voxel's indices is equal along a diagonal
        # each box gets the lines whose remainder is the number of boxes drawn before
        resampled[box][may_draw[box] & (line % n_boxes[box] == n_before[box])] = lesion_id
        n_before[box] += 1


def _ends_of(
    voxel_slices: Sequence[tuple[slice, ...]],
) -> tuple[Integers, Integers]:
    """Return the starts and the stops of the slices of n boxes, as two arrays `[n, dims]`."""
    ends = np.array([[(s.start, s.stop) for s in box] for box in voxel_slices], np.int64)
    return ends[..., 0], ends[..., 1]


def _find_free_voxel(resampled: NDArray[np.int32], centre: Numbers) -> tuple[int, ...]:
    """Return the index of the voxel that a lesion without voxels gets.

    Only voxels within one step of `centre`, the lesion's centre in voxels, are considered. The
    first of these that exists is returned:

    1. The nearest voxel without a lesion.
    2. The nearest voxel of a lesion that has further voxels.
    3. The nearest voxel. It is the only voxel of another lesion, which is then lost.
    """
    last_index = np.array(resampled.shape) - 1
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=resampled.ndim)))
    around = (np.rint(centre).astype(int).clip(0, last_index) + steps).clip(0, last_index)
    distance = np.square(around - centre).sum(axis=1)
    nearest = [tuple(voxel) for voxel in around[np.argsort(distance, kind="stable")].tolist()]
    for voxel in nearest:
        if resampled[voxel] == 0:
            return voxel
    for voxel in nearest:
        n_voxels = (resampled == resampled[voxel]).sum()  # of the lesion that has this voxel
        if n_voxels > 1:
            return voxel
    return nearest[0]
