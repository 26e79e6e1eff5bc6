"""Preparation of cases: image and reference are oriented and resampled to the plan's grid.

The grid covers the same region as the file's grid. The image is also normalised. After clipping,
each scheme of `plan.Normalisation` is the same linear function for all voxels of a channel. So the
air of a brain scan becomes a constant below the tissue, and edges between air and tissue keep their
shape. Every lesion of a reference keeps at least one voxel.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Case, Geometry, Lesions, Reference, Volume
from lesionseg.core.lesions import centre_slices
from lesionseg.data.transforms import run_on_volume
from lesionseg.errors import ContentError, GeometryError, count
from lesionseg.io.limits import limits
from lesionseg.ops.boxes import move_boxes
from lesionseg.ops.components import lesions_of
from lesionseg.ops.resample import resample_to
from lesionseg.plan.plan import Normalisation, Plan

logger = logging.getLogger(__name__)

# spacings and grids that differ by less than this (millimetres) are the same
SAME_MM = 1e-3
# a lesion that covers less than this share of a voxel is not visible in it
VISIBLE_SHARE = 0.1
# percentiles of each case that the scheme `range` uses
RANGE_PERCENTILES = (0.5, 99.5)
LOCAL_STD_FLOOR = 0.1  # share of an image's standard deviation; see `_add_local_contrast`
_SLAB_VOXELS = 1 << 18
# percentiles of larger arrays are computed from evenly spaced voxels, because sorting needs a copy
_MAX_SORTED = 1 << 22
# A scan has a wrong spacing if none of its axes has more voxels than this on the plan's grid.
_LEAST_VOXELS = 2


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the plan's grid: image `[C, *spatial]` float32, and its prepared reference."""

    case: str
    group: str
    image: Volume
    reference: Reference | None


def prepare_case(case: Case, plan: Plan) -> PreparedCase:
    """Prepare image and reference of a case on the plan's grid.

    Args:
        case: as it is read from files.
        plan: the grid, normalisation and labels.

    Returns:
        The prepared case. Its reference is None if the case has none.

    Raises:
        ContentError: if channels, axes or labels are not those of the plan.
        GeometryError: if the spacing cannot be right, or the grid would have too many voxels.
    """
    image = prepare_image(case.image, plan, where=case.case)
    reference = None
    if case.reference is not None:
        reference = prepare_reference(case.reference, image.geometry, plan, where=case.case)
    return PreparedCase(case.case, case.group, image, reference)


def prepare_image(
    volume: Volume,
    plan: Plan,
    *,
    where: str | None = None,
    overwrite: bool = False,
    look: Callable[[Volume], None] | None = None,
) -> Volume:
    """Orient, resample and normalise an image.

    1. In 3-D the axes are permuted and flipped, so that they point along +S, +A, +R as closely as
       the file's axes allow. The same scan in another orientation therefore gives the same array.
    2. The image is resampled to `plan.spacing_mm` by linear interpolation. Axes whose spacing
       differs by at most 1e-3 mm are not resampled.
    3. The channels are normalised. A missing channel is set to 0, its mean after normalisation.
    4. The plan's further transforms are applied.

    Args:
        volume: image `[C, *file]` of any dtype.
        plan: the grid, channels and normalisation.
        where: name of the case in messages.
        overwrite: True normalises the image in place if it is on the plan's grid, which saves the
            memory of a copy.
        look: called with the volume before normalisation. It must not keep the array.

    Returns:
        The image `[C, *plan]` in float32. Its geometry maps the new indices to the patient's
        millimetres.

    Raises:
        ContentError: if channels or axes are not those of the plan.
        GeometryError: if the spacing cannot be right, or the plan's grid would have more voxels
            than `FileLimits` allows.
    """
    kind = f"{volume.array.shape[0]} channels, {volume.geometry.dims} axes"
    expected = f"{len(plan.channel_names)} channels, {plan.dims} axes"
    if kind != expected:
        raise ContentError(
            f"{where or 'image'}: has {kind}; the plan is for {expected}. Give the files that the "
            "plan expects."
        )
    prepared = _resample_to_plan(volume, plan, where=where, overwrite=overwrite)
    if look is not None:
        look(prepared)
    normalise(prepared.array, plan.normalisation)
    if plan.prepare_extra:
        prepared = run_on_volume(plan.prepare_extra, prepared, where)
    for channel in volume.missing:
        prepared.array[channel] = 0
    return Volume(prepared.array, prepared.geometry, missing=volume.missing)


def _resample_to_plan(volume: Volume, plan: Plan, *, where: str | None, overwrite: bool) -> Volume:
    """Orient and resample an image. Return float32 in C order, a copy unless `overwrite`."""
    view = to_canonical(volume)
    geometry = plan_geometry(view.geometry, plan)
    if geometry is view.geometry:
        array = np.ascontiguousarray(view.array, dtype=np.float32)
        if not overwrite and np.may_share_memory(array, volume.array):
            array = array.copy()
        return Volume(array, geometry)
    most = max(view.geometry.shape)
    if max(geometry.shape) <= _LEAST_VOXELS < most:
        spacing = " × ".join(f"{mm:.3g}" for mm in view.geometry.spacing_mm)
        raise GeometryError(
            f"{where or 'image'}: with voxels of {spacing} mm, the whole scan has only "
            f"{count(max(geometry.shape), 'voxel')} along its longest axis on the plan's grid. "
            "Correct the spacing or its unit in the file's header, or use a model that was trained "
            "on such scans."
        )
    # a small file with large voxels must not exhaust the memory
    if math.prod(geometry.shape) > limits().max_voxels:
        sizes = " × ".join(map(str, geometry.shape))
        raise GeometryError(
            f"{where or 'image'}: would have {sizes} voxels on the plan's grid, more than "
            f"{limits().max_voxels}. Check the voxel size in the file's header."
        )
    return read_linear(view, geometry)


def to_canonical(volume: Volume) -> Volume:
    """Return a view of the volume whose axes point along +S, +A, +R; a 2-D image as it is.

    Oblique axes are assigned to the closest direction. Strides may be negative.
    """
    if volume.geometry.dims != 3:
        return volume
    geometry = volume.geometry
    cosines = geometry.affine[:3, :3] / geometry.spacing_mm
    old_axes = geometry.canonical_order  # of the new axes z, y and x
    new_to_old = np.zeros((4, 4))  # from an index of the view to one of the file
    new_to_old[3, 3] = 1
    steps = [slice(None)]  # channels keep their order
    for new, old in enumerate(old_axes):
        # array axes are z, y, x, but rows of the affine are x, y, z
        runs_up = cosines[2 - new, old] > 0
        new_to_old[old, new] = 1 if runs_up else -1
        new_to_old[old, 3] = 0 if runs_up else geometry.shape[old] - 1
        steps.append(slice(None, None, 1 if runs_up else -1))
    transposed = volume.array.transpose([0, *(1 + axis for axis in old_axes)])
    view = transposed[tuple(steps)]
    return Volume(view, Geometry(view.shape[1:], geometry.affine @ new_to_old))


def plan_geometry(oriented: Geometry, plan: Plan) -> Geometry:
    """Return the grid of the same region and centre with the plan's spacing.

    A shear, as of a tilted CT gantry, is removed. An axis keeps its spacing if it differs by at
    most 1e-3 mm. If all axes keep theirs and there is no shear, `oriented` itself is returned.
    """
    target = []
    for own, planned in zip(oriented.spacing_mm, plan.spacing_mm, strict=True):
        target.append(own if abs(own - planned) <= SAME_MM else planned)
    linear = oriented.affine[:-1, :-1]
    axes = linear / np.linalg.norm(linear, axis=0)
    # a shear of 1e-3 moves the last of 500 voxels by half a voxel
    is_sheared = np.abs(axes.T @ axes - np.eye(len(axes))).max() > 1e-3
    if target == list(oriented.spacing_mm) and not is_sheared:
        return oriented
    # make the directions orthonormal; that of the first axis does not change
    upper = np.linalg.cholesky(linear.T @ linear).T
    directions = linear @ np.linalg.inv(upper)
    extent = np.abs(directions.T @ linear) @ np.array(oriented.shape)
    shape = np.maximum(np.rint(extent / target), 1).astype(int)
    affine = np.eye(oriented.dims + 1)
    affine[:-1, :-1] = directions * target
    centre = oriented.to_mm((np.array(oriented.shape) - 1) / 2)
    affine[:-1, -1] = centre - affine[:-1, :-1] @ ((shape - 1) / 2)
    return Geometry(tuple(shape.tolist()), affine)


def read_linear(volume: Volume, geometry: Geometry) -> Volume:
    """Resample an image `[C, *spatial]` to another grid that covers about the same region.

    Values are interpolated linearly; on a coarser grid they are means over each voxel. If the grid
    extends beyond the volume (by up to half of its last voxel), the outermost values continue,
    because zeros would look like air.
    """
    array = resample_to(volume.array, volume.geometry, geometry, "mean", edge="extend")
    return Volume(array.numpy(), geometry)


def normalise(array: NDArray[np.float32], schemes: Sequence[Normalisation]) -> None:
    """Normalise `[C, *spatial]` float32 in place, channel c by `schemes[c]`.

    With `zscore`, `range` and `local`, a channel becomes 0 if it is constant or has no voxel other
    than 0. Temporary arrays are smaller than half a channel, except with `local`, which needs two
    channels.
    """
    for channel, scheme in zip(array, schemes, strict=True):
        inside = None  # all voxels
        if scheme.scheme == "zscore":
            inside = channel != 0  # before clipping, zero means air
        lower = scheme.lower
        upper = scheme.upper
        if scheme.scheme in ("range", "local"):
            step = math.ceil(channel.size / _MAX_SORTED)
            sample = channel.reshape(-1)[::step]
            lower, upper = np.percentile(sample, RANGE_PERCENTILES).tolist()
        if lower is not None or upper is not None:
            np.clip(channel, lower, upper, out=channel)
        mean = scheme.mean
        std = scheme.std
        if scheme.scheme != "dataset":
            mean, std = _measure_moments(channel, inside)
        channel -= np.float32(mean)
        if std > 0:  # 0 for a constant channel
            channel /= np.float32(std)
        if scheme.scheme == "local":
            _add_local_contrast(channel, scheme.sigma)


def _add_local_contrast(channel: NDArray[np.float32], sigma: float) -> None:
    """Add to each voxel its difference from its surroundings, in standard deviations, in place.

    Schilham et al. 2006 (Medical Image Analysis 10:247) replace a radiograph by its local contrast
    before they search nodules. We add it, so that the brightness over larger distances remains.
    `LOCAL_STD_FLOOR` is added to the deviation, so that noise in a uniform region, such as outside
    the body, is not enlarged.
    """
    mean = _local_mean(channel, sigma)
    variance = _local_mean(np.square(channel), sigma) - np.square(mean)
    contrast = np.subtract(channel, mean, out=mean)
    contrast /= np.sqrt(variance.clip(min=0)) + np.float32(LOCAL_STD_FLOOR)
    channel += contrast


def window_of(sigma: float) -> int:
    """Return the window, in voxels, of three running means that approximate a Gaussian.

    Three means over w voxels have the variance (w² − 1) / 4 together, so w is √(4σ² + 1), rounded
    to an odd number (Wells 1986, IEEE PAMI 8:234). Unlike a Gaussian, they take the same time for
    any σ.

    >>> window_of(24)
    49
    """
    return 2 * round((math.sqrt(4 * sigma**2 + 1) - 1) / 2) + 1


def _local_mean(channel: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Return the mean of each voxel's surroundings. The image is mirrored at its edges."""
    window = window_of(sigma)
    mean = channel
    for _ in range(3):
        mean = ndimage.uniform_filter(mean, window, mode="reflect")
    return mean


def _measure_moments(
    channel: NDArray[np.float32], inside: NDArray[np.bool_] | None
) -> tuple[float, float]:
    """Return mean and standard deviation of the voxels inside, or of all if `inside` is None.

    The standard deviation of a constant channel is 0.
    """
    n_voxels = 0
    total = 0.0
    for values in _iterate_slabs(channel, inside):
        n_voxels += values.size
        total += float(values.sum())
    if n_voxels == 0:
        return 0.0, 0.0
    mean = total / n_voxels
    squares = 0.0
    for values in _iterate_slabs(channel, inside):
        squares += float(np.square(values - mean).sum())
    std = float(np.sqrt(squares / n_voxels))
    # float32 rounds the mean, so a constant channel differs a little from it
    is_varying = std > 1e-6 * abs(mean)
    return mean, (std if is_varying else 0.0)


def _iterate_slabs(
    channel: NDArray[np.float32], inside: NDArray[np.bool_] | None
) -> Iterator[NDArray[np.float64]]:
    """Yield the voxels inside in float64, some rows at a time."""
    rows = max(1, _SLAB_VOXELS * len(channel) // max(channel.size, 1))
    for start in range(0, len(channel), rows):
        slab = channel[start : start + rows]
        inner = slab if inside is None else slab[inside[start : start + rows]]
        yield inner.astype(np.float64)


def prepare_reference(
    reference: Reference, geometry: Geometry, plan: Plan, *, where: str | None = None
) -> Reference:
    """Resample a reference to the plan's grid.

    Lesions are those of `lesions_of`. Boxes are filled, and smaller boxes overwrite larger ones,
    unless one would lose a side (`_restore_extents`). A voxel belongs to a lesion if lesions cover
    at least half of it, and then to the one that covers most. A lesion that would vanish keeps the
    voxel at its centre. If the lesion covers less than a tenth of this voxel, it is not visible,
    and the voxel is ignored. All other ignored voxels have no lesion.

    Args:
        reference: on the file's grid.
        geometry: the plan's grid, that of the prepared image.
        plan: its labels.
        where: name of the case in messages.

    Returns:
        A reference with `labels` uint8 and `instances` int32 `[*spatial]`, zeros without lesions.
        Label k means `plan.labels.mask_values[k-1]`, which is network channel k-1 without regions.
        In `instance_labels`, the label of a lesion is 1 with regions, and 0 for an id without a
        lesion. `ignore` is True for voxels that do not count in training, or None.

    Raises:
        ContentError: if the plan does not have a label of the reference.
    """
    mask_values = plan.labels.mask_values
    lesions = lesions_of(reference)
    instances = lesions.draw()
    if reference.ignore is not None:  # a box may contain ignored voxels
        instances[reference.ignore] = 0
    values_of_voxels = None
    if plan.labels.regions:  # a lesion of regions may have voxels of several mask values
        values_of_voxels = _mask_values_of(reference, instances)
    present = lesions.labels if values_of_voxels is None else values_of_voxels
    _require_known_values(present, mask_values, where)
    moved, covered = _read_instances(instances, reference.geometry, geometry)
    label_of_id = np.zeros(int(lesions.ids.max(initial=0)) + 1, dtype=np.uint8)
    _restore_lost(moved, instances, len(label_of_id) - 1, reference.geometry, geometry)
    if values_of_voxels is not None:
        label_of_id[1:] = 1
        labels = _resample_labels(
            values_of_voxels, instances, moved, (reference.geometry, geometry), mask_values
        )
    else:
        channels = [plan.labels.values.index(value) + 1 for value in lesions.labels.tolist()]
        label_of_id[lesions.ids] = channels
        _restore_extents(moved, covered, lesions, geometry)
        labels = label_of_id[moved]
    known = [value for value in reference.unannotated if value in mask_values]
    unannotated = [mask_values.index(value) + 1 for value in known]
    return Reference(
        geometry,
        labels=labels,
        instances=moved,
        instance_labels=tuple(label_of_id[1:].tolist()),
        ignore=_find_ignored(reference, geometry, moved, covered),
        annotated=dict.fromkeys(unannotated, False),
    )


def _mask_values_of(reference: Reference, instances: NDArray[np.int32]) -> NDArray[np.integer[Any]]:
    """Return the mask value of each lesion voxel, in C order. Lesions of boxes have the value 1."""
    if reference.labels is not None:
        return np.asarray(reference.labels[instances > 0])
    return np.ones(np.count_nonzero(instances), dtype=np.uint8)


def _require_known_values(
    present: NDArray[np.integer[Any]], mask_values: Sequence[int], where: str | None
) -> None:
    """Raise `ContentError` if the plan does not have one of the label values of a reference."""
    unknown = sorted(set(np.unique(present).tolist()) - set(mask_values))
    if unknown:
        raise ContentError(
            f"{where or 'reference'}: contains the labels {unknown}, which are not among the "
            f"plan's {list(mask_values)}. Correct the mask, or plan again with these labels."
        )


def _find_ignored(
    reference: Reference,
    geometry: Geometry,
    moved: NDArray[np.int32],
    covered: NDArray[np.float32],
) -> NDArray[np.bool_] | None:
    """Return True for the voxels of the plan's grid that do not count in training.

    - A voxel of a lesion does not count if lesions cover less than `VISIBLE_SHARE` of it. Only a
      voxel that `_restore_lost` has added is covered so little.
    - A voxel that the reference ignores does not count, unless it belongs to a lesion.

    Return None if all voxels count.

    Args:
        reference: on the file's grid.
        geometry: the plan's grid.
        moved: lesion ids on the plan's grid, after `_restore_lost`.
        covered: share of each voxel that lesions cover.
    """
    ignored = (moved > 0) & (covered < VISIBLE_SHARE)
    if reference.ignore is not None:
        ignore = reference.ignore.astype(np.uint8)
        is_ignored = _read_nearest(ignore, reference.geometry, geometry) != 0
        # `_restore_lost` may have put a lesion onto an ignored voxel: the lesion has priority
        ignored |= is_ignored & (moved == 0)
    return ignored if ignored.any() else None


def _resample_labels(
    values: NDArray[np.integer[Any]],
    instances: NDArray[np.int32],
    moved: NDArray[np.int32],
    geometry: tuple[Geometry, Geometry],
    mask_values: Sequence[int],
) -> NDArray[np.uint8]:
    """Return the prepared labels of lesions whose voxels may have several labels.

    Args:
        values: mask value of each voxel of `instances`, in C order.
        instances: lesion ids on the file's grid.
        moved: lesion ids on the plan's grid.
        geometry: the file's grid and the plan's grid.
        mask_values: the values that become the labels 1, 2, …
    """
    source, target = geometry
    label_of_value = np.zeros(max(mask_values) + 1, dtype=np.uint8)
    label_of_value[list(mask_values)] = np.arange(1, len(mask_values) + 1)
    before = np.zeros(instances.shape, dtype=np.uint8)
    before[instances > 0] = label_of_value[values]
    labels = np.where(moved > 0, _read_nearest(before, source, target), np.uint8(0))
    # a restored voxel may be outside of its mask: it gets the lesion's most frequent label
    for lesion in np.unique(moved[(moved > 0) & (labels == 0)]):
        most_frequent = np.bincount(before[instances == lesion]).argmax()
        labels[(moved == lesion) & (labels == 0)] = most_frequent
    return labels


def _read_nearest(array: NDArray[Any], source: Geometry, geometry: Geometry) -> NDArray[Any]:
    """Return `array` `[*file]` on the plan's grid, by the nearest voxel.

    If the grids agree, values are copied. If the plan's grid extends beyond the volume, the
    outermost values continue.
    """
    view = to_canonical(Volume(array[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        return np.ascontiguousarray(view.array[0])
    moved = resample_to(view.array, view.geometry, geometry, "nearest", edge="extend")
    return moved[0].numpy()


def _read_instances(
    instances: NDArray[np.int32], source: Geometry, geometry: Geometry
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return lesion ids on the plan's grid, and the share of each voxel that lesions cover."""
    view = to_canonical(Volume(instances[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        moved = np.ascontiguousarray(view.array[0])
        return moved, (moved > 0).astype(np.float32)
    moved = np.zeros(geometry.shape, dtype=np.int32)
    most = np.zeros(geometry.shape, dtype=np.float32)
    total = np.zeros(geometry.shape, dtype=np.float32)
    for number, place in enumerate(ndimage.find_objects(view.array[0]), start=1):
        if place is not None:
            mask = view.array[0][place] == number
            there, share = _share_of_voxels(mask, view.geometry.crop(place), geometry)
            is_more = share > most[there]
            moved[there][is_more] = number
            most[there][is_more] = share[is_more]
            total[there] += share
    moved[total < 0.5 - 1e-6] = 0
    return moved, total


def _share_of_voxels(
    mask: NDArray[np.bool_], source: Geometry, geometry: Geometry
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """Return the slices of `geometry` that a mask on the grid `source` reaches, and its share.

    The share is the fraction of each voxel that the mask covers. It is 0 outside of `source`.
    """
    corners = itertools.product(*[(-0.5, n - 0.5) for n in source.shape])
    reached = geometry.to_index(source.to_mm(list(corners)))
    limit = np.array(geometry.shape) - 1
    first = np.floor(reached.min(axis=0) + 0.5).clip(0, limit).astype(int)
    last = np.ceil(reached.max(axis=0) - 0.5).clip(first, limit).astype(int)
    there = tuple(slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    share = resample_to(mask[np.newaxis], source, geometry.crop(there), "share")
    return there, share[0].numpy()


def _restore_lost(
    moved: NDArray[np.int32],
    instances: NDArray[np.int32],
    n: int,
    source: Geometry,
    geometry: Geometry,
) -> None:
    """Assign one voxel to each lesion that resampling has lost, in place.

    It is the voxel at the lesion's centre, or the nearest free one. `n` is the number of lesions.
    """
    present = np.bincount(moved.reshape(-1), minlength=n + 1)
    lost = set(np.flatnonzero(present[1:] == 0) + 1)
    if not lost:
        return
    voxels = np.argwhere(np.isin(instances, list(lost)))
    ids = instances[tuple(voxels.T)]
    for lesion in np.unique(ids):
        centre = geometry.to_index(source.to_mm(voxels[ids == lesion].mean(axis=0)))
        moved[_find_free_voxel(moved, np.atleast_2d(centre)[0])] = lesion
    logger.debug("%d lesions were smaller than a voxel of the plan's grid.", len(lost))


def _restore_extents(
    moved: NDArray[np.int32],
    covered: NDArray[np.float32],
    lesions: Lesions,
    geometry: Geometry,
) -> None:
    """Draw boxes again, in place, that have lost more than a voxel of their length along an axis.

    A detector learns the bounding box of a lesion's voxels. Smaller boxes may cover a side of a
    larger one, and equal boxes, such as those of two labels, cover each other. A box that is
    narrower than a voxel may cover less than half of each voxel. The box shares the voxels of an
    overlap with boxes that are at least half as long along an axis.

    Args:
        moved: lesion ids on the plan's grid, after `_restore_lost`.
        covered: share of each voxel that lesions cover.
        lesions: on the file's grid.
        geometry: the plan's grid.
    """
    rows = np.flatnonzero(~lesions.has_voxels)
    if not len(rows):
        return
    ids = lesions.ids[rows]
    limit = [*geometry.shape, *geometry.shape]
    boxes = move_boxes(lesions.boxes[rows], lesions.geometry, geometry).clip(0, limit)
    places = [centre_slices(box, geometry.dims) for box in boxes]
    start, stop = _ends_of(places)
    objects = ndimage.find_objects(moved, int(ids.max()))
    nothing = (slice(max(limit), 0),) * geometry.dims
    first, last = _ends_of([objects[number - 1] or nothing for number in ids.tolist()])
    is_short = (last - first < stop - start - 1).any(axis=1)
    # a box of one voxel keeps it
    has_several = (stop - start > 1).any(axis=1)
    is_sharing = np.zeros(len(rows), dtype=np.bool_)
    for i in np.flatnonzero(is_short).tolist():
        overlaps = ((start[i] < stop) & (start < stop[i])).all(axis=1)
        is_similar = (2 * (stop - start) >= stop[i] - start[i]).any(axis=1)
        is_sharing |= overlaps & is_similar & has_several  # the box itself, too
    if not is_sharing.any():
        return
    sharing = np.flatnonzero(is_sharing).tolist()
    is_shared = np.isin(moved, ids[is_sharing]) | ((moved == 0) & (covered > 0))
    n_boxes = np.zeros(geometry.shape, dtype=np.int32)
    for i in sharing:
        n_boxes[places[i]] += 1
    n_before = np.zeros_like(n_boxes)  # boxes of each voxel that have been drawn
    for i in sharing:
        place = places[i]
        line = sum(np.ogrid[place])  # diagonal lines belong to the boxes in turn
        is_own = is_shared[place] & (line % n_boxes[place] == n_before[place])
        moved[place][is_own] = ids[i]
        n_before[place] += 1


def _ends_of(
    places: Sequence[tuple[slice, ...]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the starts and the stops of slices, each `[n, dims]`."""
    ends = np.array([[(s.start, s.stop) for s in place] for place in places], dtype=np.int64)
    return ends[..., 0], ends[..., 1]


def _find_free_voxel(moved: NDArray[np.int32], centre: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the nearest free voxel within one step of `centre`.

    If none is free, return the nearest voxel of a lesion that has further voxels.
    """
    limit = np.array(moved.shape) - 1
    middle = np.rint(centre).astype(int).clip(0, limit)
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=moved.ndim)))
    around = (middle + steps).clip(0, limit)
    distance = np.square(around - centre).sum(axis=1)
    by_distance = around[np.argsort(distance, kind="stable")].tolist()
    nearest = [tuple(voxel) for voxel in by_distance]
    for voxel in nearest:
        if moved[voxel] == 0:
            return voxel
    for voxel in nearest:
        n_voxels = (moved == moved[voxel]).sum()  # of the lesion that has this voxel
        if n_voxels > 1:
            return voxel
    return nearest[0]  # overwrites a lesion of one voxel
