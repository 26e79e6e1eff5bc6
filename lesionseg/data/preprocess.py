"""A case on the plan's grid: oriented, resampled, normalised; the reference moves along.

The grid covers what the file's covers. The image is read on it one slab at a time, as inference
does on the way back to the file's grid. Every scheme of `plan.Normalisation` is one straight line
for all voxels of a channel after clipping: air of a brain scan gets a constant below the tissue,
and no edge between air and tissue is bent by it. No lesion of a reference is lost on the way.
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

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.data.transforms import run_on_volume
from lesionseg.errors import ContentError, GeometryError
from lesionseg.io.limits import limits
from lesionseg.ops.components import lesions_of
from lesionseg.ops.resample import resample_to
from lesionseg.plan.plan import Normalisation, Plan

logger = logging.getLogger(__name__)

# spacings and grids closer than this (millimetres) are the same
SAME_MM = 1e-3
# a lesion that covers less of its voxel than this does not show in the image
VISIBLE_SHARE = 0.1
# percentiles that the scheme `range` takes from each case
RANGE_PERCENTILES = (0.5, 99.5)
_SLAB_VOXELS = 1 << 18
# percentiles of larger arrays are taken from evenly spaced voxels: sorting copies what it sorts
_MAX_SORTED = 1 << 22
# a scan that has no more voxels along any axis of the plan's grid shows nothing there
_LEAST_VOXELS = 2


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the plan's grid: image `[C, *spatial]` float32, and its prepared reference."""

    case: str
    group: str
    image: Volume
    reference: Reference | None


def prepare_case(case: Case, plan: Plan) -> PreparedCase:
    """Bring image and reference to the plan's grid; errors name the case."""
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
    """Orient, resample and normalise an image `[C, *file]`; `[C, *plan]` float32, a new array.

    In 3-D the axes end up along +S, +A, +R, as near as the file's own axes allow; in 2-D they stay.
    Spacing becomes `plan.spacing_mm` by linear interpolation; an axis within 1e-3 mm of it keeps
    its own, and if all do and nothing is sheared no voxel is changed. The geometry returned maps
    the new indices to the patient's millimetres. The same voxels in whatever orientation give the
    same array. Holds the image and the result, or, where `overwrite` gives leave and the image lies
    on the plan's grid, the image alone. `look` is called before normalisation, and may not keep
    what it is shown. The plan's further transforms come last. A missing channel is 0 in the end,
    the mean of its scale. Raises `ContentError` when channels or axes are not the plan's,
    `GeometryError` if the plan's grid would have more voxels than `FileLimits` allows.
    """
    kind = f"{volume.array.shape[0]} channels, {volume.geometry.dims} axes"
    expected = f"{len(plan.channel_names)} channels, {plan.dims} axes"
    if kind != expected:
        raise ContentError(f"{where or 'image'}: has {kind}; the plan is for {expected}.")
    prepared = _on_plan_grid(volume, plan, where=where, overwrite=overwrite)
    if look is not None:
        look(prepared)
    normalise(prepared.array, plan.normalisation)
    if plan.prepare_extra:
        prepared = run_on_volume(plan.prepare_extra, prepared, where)
    for channel in volume.missing:
        prepared.array[channel] = 0
    return Volume(prepared.array, prepared.geometry, missing=volume.missing)


def _on_plan_grid(volume: Volume, plan: Plan, *, where: str | None, overwrite: bool) -> Volume:
    """Oriented and resampled, float32 in C order, in memory of its own unless `overwrite`."""
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
            f"{where or 'image'}: with voxels of {spacing} mm, the whole scan is only "
            f"{max(geometry.shape)} of the plan's voxels large. Correct the spacing or its unit in "
            "the file's header, or take a model that was trained on such scans."
        )
    # a small file with large voxels must not ask for more memory than any machine has
    if math.prod(geometry.shape) > limits().max_voxels:
        sizes = " × ".join(map(str, geometry.shape))
        raise GeometryError(
            f"{where or 'image'}: would have {sizes} voxels on the plan's grid, more than "
            f"{limits().max_voxels}. Check the voxel size in the file's header."
        )
    return read_linear(view, geometry)


def to_canonical(volume: Volume) -> Volume:
    """The volume with its axes along +S, +A, +R (closest to it when oblique); a raster as it is.

    A view of the same voxels, whose strides may be negative.
    """
    if volume.geometry.dims != 3:
        return volume
    geometry = volume.geometry
    cosines = geometry.affine[:3, :3] / geometry.spacing_mm
    axes = geometry.canonical_order
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    signs = [1 if cosines[2 - new, old] > 0 else -1 for new, old in enumerate(axes)]
    for new, old in enumerate(axes):
        matrix[old, new] = signs[new]
        matrix[old, 3] = geometry.shape[old] - 1 if signs[new] < 0 else 0
    flips = tuple(slice(None, None, sign) for sign in signs)
    view = volume.array.transpose(0, *(1 + axis for axis in axes))[(slice(None), *flips)]
    return Volume(view, Geometry(view.shape[1:], geometry.affine @ matrix))


def plan_geometry(oriented: Geometry, plan: Plan) -> Geometry:
    """The plan's grid over an oriented one: what it covers, about the same centre, new spacing.

    A shear (a tilted CT gantry) is straightened. Axes within 1e-3 mm of the plan's spacing keep
    theirs; if all do and nothing is sheared, the very same geometry is returned.
    """
    target = [
        own if abs(own - wanted) <= SAME_MM else wanted
        for own, wanted in zip(oriented.spacing_mm, plan.spacing_mm, strict=True)
    ]
    linear = oriented.affine[:-1, :-1]
    axes = linear / np.linalg.norm(linear, axis=0)
    # off a right angle by more than 1e-3: half a voxel over 500
    is_sheared = np.abs(axes.T @ axes - np.eye(len(axes))).max() > 1e-3
    if target == list(oriented.spacing_mm) and not is_sheared:
        return oriented
    # the orthonormal directions of the axes: the first stays, a shear leaves the others
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
    """Read an image `[C, *spatial]` on another grid that covers about the same place.

    Linear between voxel centres; on a coarser grid the mean over each voxel. If the grid extends
    beyond the volume (by up to half of its last voxel), the outermost voxels continue: an edge to
    zero would look like air.
    """
    array = resample_to(volume.array, volume.geometry, geometry, "mean", edge="extend")
    return Volume(array.numpy(), geometry)


def normalise(array: NDArray[np.float32], schemes: Sequence[Normalisation]) -> None:
    """Normalise `[C, *spatial]` float32 in place, channel c by `schemes[c]`.

    A constant channel becomes 0 under `zscore` and `range`; so does one without a non-zero voxel.
    Temporaries stay under half a copy of one channel.
    """
    for channel, scheme in zip(array, schemes, strict=True):
        # zero means air before clipping, so the mask is taken first
        inside = channel != 0 if scheme.scheme == "zscore" else None
        lower, upper = scheme.lower, scheme.upper
        if scheme.scheme == "range":
            step = -(-channel.size // _MAX_SORTED)
            lower, upper = np.percentile(channel.reshape(-1)[::step], RANGE_PERCENTILES).tolist()
        if lower is not None or upper is not None:
            np.clip(channel, lower, upper, out=channel)
        mean, std = scheme.mean, scheme.std
        if scheme.scheme != "dataset":
            mean, std = _moments(channel, inside)
        channel -= np.float32(mean)
        channel /= np.float32(std if std > 0 else 1.0)


def _moments(channel: NDArray[np.float32], inside: NDArray[np.bool_] | None) -> tuple[float, float]:
    count, total = 0, 0.0
    for values in _slabs(channel, inside):
        count += values.size
        total += float(values.sum())
    if count == 0:
        return 0.0, 0.0
    mean = total / count
    squares = sum(float(np.square(values - mean).sum()) for values in _slabs(channel, inside))
    std = float(np.sqrt(squares / count))
    # rounding of float32 input is no variation
    return mean, std if std > 1e-6 * abs(mean) else 0.0


def _slabs(
    channel: NDArray[np.float32], inside: NDArray[np.bool_] | None
) -> Iterator[NDArray[np.float64]]:
    rows = max(1, _SLAB_VOXELS * len(channel) // max(channel.size, 1))
    for start in range(0, len(channel), rows):
        slab = channel[start : start + rows]
        inner = slab if inside is None else slab[inside[start : start + rows]]
        yield inner.astype(np.float64)


def prepare_reference(
    reference: Reference, geometry: Geometry, plan: Plan, *, where: str | None = None
) -> Reference:
    """Bring a reference to the plan's grid `geometry` (that of the prepared image).

    The result has `labels` uint8 and `instances` int32. A label is k for
    `plan.labels.mask_values[k-1]`, which is network channel k-1 without regions. The label of a
    lesion is 1 with regions, and 0 for an id without a lesion. Voxels in `ignore` do not teach.

    Lesions are the reference's instances; else the components of its labels; else its boxes,
    filled, the smaller over the larger. A voxel is lesion where lesions cover half of it, and
    belongs to the one that covers most. A lesion that would vanish keeps the voxel at its centre;
    where it covers less than a tenth of that, so that the image cannot show it, the voxel does not
    teach. What is ignored holds no lesion. No lesion gives zeros. Raises `ContentError` for a
    label the plan does not know.
    """
    mask_values = plan.labels.mask_values
    lesions = lesions_of(reference)
    instances = lesions.draw()
    if reference.ignore is not None:  # a box may reach into what is ignored
        instances[reference.ignore] = 0
    values = np.unique(lesions.labels)
    inside: NDArray[np.integer[Any]] = np.ones(np.count_nonzero(instances), dtype=np.uint8)
    if plan.labels.regions:
        # the mask value of each lesion voxel, in C order; 1 without a label map
        inside = inside if reference.labels is None else reference.labels[instances > 0]
        values = np.unique(inside)
    if unknown := sorted(set(values.tolist()) - set(mask_values)):
        raise ContentError(
            f"{where or 'reference'}: holds the labels {unknown}, which are not among the plan's "
            f"{list(mask_values)}."
        )
    moved, covered = _read_instances(instances, reference.geometry, geometry)
    channel = np.zeros(int(lesions.ids.max(initial=0)) + 1, dtype=np.uint8)
    _restore_lost(moved, instances, len(channel) - 1, reference.geometry, geometry)
    if plan.labels.regions:
        channel[1:] = 1
        labels = _parts(inside, instances, moved, (reference.geometry, geometry), mask_values)
    else:
        channel[lesions.ids] = [plan.labels.values.index(v) + 1 for v in lesions.labels.tolist()]
        labels = channel[moved]
    untaught = (moved > 0) & (covered < VISIBLE_SHARE)
    if reference.ignore is not None:
        ignore = reference.ignore.astype(np.uint8)
        # a lesion restored beside its place is still one
        untaught |= (_read_nearest(ignore, reference.geometry, geometry) != 0) & (moved == 0)
    return Reference(
        geometry,
        labels=labels,
        instances=moved,
        instance_labels=tuple(channel[1:].tolist()),
        ignore=untaught if reference.ignore is not None or untaught.any() else None,
        annotated={
            mask_values.index(value) + 1: False
            for value in reference.unannotated
            if value in mask_values
        },
    )


def _parts(
    values: NDArray[np.integer[Any]],
    instances: NDArray[np.int32],
    moved: NDArray[np.int32],
    geometry: tuple[Geometry, Geometry],
    mask_values: Sequence[int],
) -> NDArray[np.uint8]:
    """Return the prepared labels within lesions that contain several.

    `values`: mask value of each voxel of `instances`. `geometry`: the file's grid and the plan's.
    `mask_values`: those that prepared labels 1, 2, … stand for.
    """
    place = np.zeros(max(mask_values) + 1, dtype=np.uint8)
    place[list(mask_values)] = np.arange(1, len(mask_values) + 1)
    covered = np.zeros(instances.shape, dtype=np.uint8)
    covered[instances > 0] = place[values]
    labels = np.where(moved > 0, _read_nearest(covered, *geometry), np.uint8(0))
    # a restored lesion may lie where its mask does not: there it is what most of it is
    for lesion in np.unique(moved[(moved > 0) & (labels == 0)]):
        usual = np.bincount(covered[instances == lesion]).argmax()
        labels[(moved == lesion) & (labels == 0)] = usual
    return labels


def _read_nearest(array: NDArray[Any], source: Geometry, geometry: Geometry) -> NDArray[Any]:
    """Return `array` `[*file]` on the plan's grid, by the nearest voxel unless the grids agree.

    If the grid extends beyond the volume, the outermost voxels continue.
    """
    view = to_canonical(Volume(array[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        return np.ascontiguousarray(view.array[0])
    moved = resample_to(view.array, view.geometry, geometry, "nearest", edge="extend")
    return moved[0].numpy()


def _read_instances(
    instances: NDArray[np.int32], source: Geometry, geometry: Geometry
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Lesion ids on the plan's grid, and the share of each voxel that lesions cover."""
    view = to_canonical(Volume(instances[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        moved = np.ascontiguousarray(view.array[0])
        return moved, (moved > 0).astype(np.float32)
    moved = np.zeros(geometry.shape, dtype=np.int32)
    most, total = (np.zeros(geometry.shape, dtype=np.float32) for _ in range(2))
    for number, place in enumerate(ndimage.find_objects(view.array[0]), start=1):
        if place is not None:
            mask = view.array[0][place] == number
            there, share = _share_of_voxels(mask, view.geometry.crop(place), geometry)
            more = share > most[there]
            moved[there][more], most[there][more] = number, share[more]
            total[there] += share
    moved[total < 0.5 - 1e-6] = 0
    return moved, total


def _share_of_voxels(
    mask: NDArray[np.bool_], source: Geometry, geometry: Geometry
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """Return the part of `geometry` that a mask on the grid `source` reaches, and its share there.

    The share is the fraction of each voxel that the mask covers; it is 0 outside of `source`.
    """
    corners = itertools.product(*[(-0.5, n - 0.5) for n in source.shape])
    reached = geometry.to_index(source.to_mm(list(corners)))
    limit = np.array(geometry.shape) - 1
    first = np.floor(reached.min(axis=0) + 0.5).clip(0, limit).astype(int)
    last = np.ceil(reached.max(axis=0) - 0.5).clip(first, limit).astype(int)
    there = tuple(slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    return there, resample_to(mask[np.newaxis], source, geometry.crop(there), "share")[0].numpy()


def _restore_lost(
    moved: NDArray[np.int32],
    instances: NDArray[np.int32],
    n: int,
    source: Geometry,
    geometry: Geometry,
) -> None:
    """Give each lesion that resampling lost one voxel: its centre, or the nearest free one."""
    present = np.bincount(moved.reshape(-1), minlength=n + 1)
    lost = set(np.flatnonzero(present[1:] == 0) + 1)
    if not lost:
        return
    voxels = np.argwhere(np.isin(instances, list(lost)))
    ids = instances[tuple(voxels.T)]
    # one lesion's voxel must not be taken from a lesion that has only that one
    for lesion in np.unique(ids):
        centre = geometry.to_index(source.to_mm(voxels[ids == lesion].mean(axis=0)))
        moved[_free_voxel(moved, np.atleast_2d(centre)[0])] = lesion
    logger.debug("%d lesions were smaller than a voxel of the plan's grid.", len(lost))


def _free_voxel(moved: NDArray[np.int32], centre: NDArray[np.float64]) -> tuple[int, ...]:
    """The nearest free voxel within one step of `centre`, else of a lesion that keeps others."""
    limit = np.array(moved.shape) - 1
    middle = np.rint(centre).astype(int).clip(0, limit)
    around = middle + np.array(list(itertools.product((-1, 0, 1), repeat=moved.ndim)))
    around = around.clip(0, limit)
    distance = np.square(around - centre).sum(axis=1)
    nearest = [tuple(voxel) for voxel in around[np.argsort(distance, kind="stable")].tolist()]
    free = (voxel for voxel in nearest if moved[voxel] == 0)
    shared = (voxel for voxel in nearest if (moved == moved[voxel]).sum() > 1)
    return next(itertools.chain(free, shared), nearest[0])
