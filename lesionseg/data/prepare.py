"""A case on the plan's grid: oriented, resampled, normalised; the reference moves along.

MONAI's `Orientation` says how the axes turn. The grid covers what the file's covers; `onto_grid`
reads the image on it, one slab at a time, as inference does on the way back to the file's grid.
"""

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.data.adaptor import as_torch
from lesionseg.data.normalise import normalise
from lesionseg.data.onto_grid import copy_float32, read_linear, turned
from lesionseg.data.transforms import run_on_volume
from lesionseg.errors import ContentError, GeometryError
from lesionseg.io.formats.guard import limits
from lesionseg.ops.components import lesions_of
from lesionseg.ops.resample import resample_area, resample_nearest
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

# spacings and grids closer than this (millimetres) are the same
SAME_MM = 1e-3
# a lesion that covers less of its voxel than this does not show in the image
VISIBLE_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class PreparedReference:
    """What a reader marked, on the plan's grid.

    `labels` `[*spatial]` uint8: 0 background, k for `plan.mask_values[k-1]` (without regions:
    network channel k-1). `instances` `[*spatial]` int32: lesion ids 1..n. `instance_labels[id-1]`:
    the label k of lesion id, 1 for all with regions, 0 for an id without a lesion. `valid`
    `[*spatial]` bool: voxels that teach; None when all do.
    """

    labels: NDArray[np.uint8]
    instances: NDArray[np.int32]
    instance_labels: tuple[int, ...]
    valid: NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case as the network meets it: image `[C, *spatial]` float32 on the plan's grid."""

    case: str
    group: str
    image: Volume
    reference: PreparedReference | None


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
    its own, and if all do no voxel is changed. The geometry returned maps the new indices to the
    patient's millimetres. The same voxels in whatever orientation give the same array. Holds the
    image and the result, or, where `overwrite` gives leave and the image lies on the plan's grid,
    the image alone. `look` is called before normalisation, and may not keep what it is shown. The
    plan's further transforms come last.
    Raises `ContentError` when channels or axes are not the plan's, `GeometryError` when the plan's
    grid would hold more than `limits.max_voxels`.
    """
    if volume.array.shape[0] != len(plan.channel_names) or volume.geometry.dims != plan.dims:
        raise ContentError(
            "The image is not of the kind the plan was made for.",
            where=where,
            seen=f"{volume.array.shape[0]} channels, {volume.geometry.dims} axes",
            expected=f"{len(plan.channel_names)} channels, {plan.dims} axes",
        )
    prepared = _on_plan_grid(volume, plan, where=where, overwrite=overwrite)
    if look is not None:
        look(prepared)
    normalise(prepared.array, plan.normalisation)
    extra = plan.prepare_extra
    return run_on_volume(extra, prepared, where) if extra else prepared


def plan_geometry(oriented: Geometry, plan: Plan) -> Geometry:
    """The plan's grid over an oriented one: what it covers, about the same centre, new spacing.

    A shear (a tilted CT gantry) is straightened. Axes within 1e-3 mm of the plan's spacing keep
    theirs; if all do, the very same geometry is returned.
    """
    target = [
        own if abs(own - wanted) <= SAME_MM else wanted
        for own, wanted in zip(oriented.spacing_mm, plan.spacing_mm, strict=True)
    ]
    if target == list(oriented.spacing_mm):
        return oriented
    linear = oriented.affine[:-1, :-1]
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


def prepare_reference(
    reference: Reference, geometry: Geometry, plan: Plan, *, where: str | None = None
) -> PreparedReference:
    """Bring a reference to the plan's grid `geometry` (that of the prepared image).

    Lesions are the reference's instances; else the components of its labels; else its boxes,
    filled, the smaller over the larger. A voxel is lesion where lesions cover half of it, and
    belongs to the one that covers most. A lesion that would vanish keeps the voxel at its centre;
    where it covers less than a tenth of that, so that the image cannot show it, the voxel does not
    teach. What is ignored holds no lesion. No lesion gives zeros. Raises `ContentError` for a
    label the plan does not know.
    """
    lesions = lesions_of(reference)
    instances = lesions.drawn()
    if reference.ignore is not None:  # a box may reach into what is ignored
        instances[reference.ignore] = 0
    inside = _inside(instances, reference) if plan.regions else None
    _refuse_unknown(np.unique(lesions.labels if inside is None else inside), plan, where)
    moved, covered = _read_instances(instances, reference.geometry, geometry)
    channel = np.zeros(int(lesions.ids.max(initial=0)) + 1, dtype=np.uint8)
    _revive(moved, instances, len(channel) - 1, reference.geometry, geometry)
    if inside is not None:
        channel[1:] = 1
        labels = _parts(inside, instances, moved, (reference.geometry, geometry), plan)
    else:
        channel[lesions.ids] = [plan.label_values.index(v) + 1 for v in lesions.labels.tolist()]
        labels = channel[moved]
    valid = None
    invisible = (moved > 0) & (covered < VISIBLE_SHARE)
    if reference.ignore is not None or invisible.any():
        valid = ~invisible
    if reference.ignore is not None:
        ignore = reference.ignore.astype(np.uint8)
        # a lesion revived beside its place is still one
        valid &= (_read_nearest(ignore, reference.geometry, geometry) == 0) | (moved > 0)
    return PreparedReference(labels, moved, tuple(channel[1:].tolist()), valid)


def _inside(instances: NDArray[np.int32], reference: Reference) -> NDArray[np.integer[Any]]:
    """The mask value of each lesion voxel, in C order; 1 where there is no label map."""
    if reference.labels is None:
        return np.ones(np.count_nonzero(instances), dtype=np.uint8)
    return reference.labels[instances > 0]


def _refuse_unknown(values: NDArray[np.integer[Any]], plan: Plan, where: str | None) -> None:
    unknown = sorted(set(values.tolist()) - set(plan.mask_values))
    if unknown:
        raise ContentError(
            "A lesion has a label the plan does not know.",
            where=where,
            seen=unknown,
            expected=list(plan.mask_values),
        )


def _parts(
    values: NDArray[np.integer[Any]],
    instances: NDArray[np.int32],
    moved: NDArray[np.int32],
    geometry: tuple[Geometry, Geometry],
    plan: Plan,
) -> NDArray[np.uint8]:
    """The prepared labels within lesions that hold several; `values` are those of `_inside`.

    `geometry`: the file's grid and the plan's.
    """
    place = np.zeros(max(plan.mask_values) + 1, dtype=np.uint8)
    place[list(plan.mask_values)] = np.arange(1, len(plan.mask_values) + 1)
    drawn = np.zeros(instances.shape, dtype=np.uint8)
    drawn[instances > 0] = place[values]
    labels = np.where(moved > 0, _read_nearest(drawn, *geometry), np.uint8(0))
    # a revived lesion may lie where its mask does not: there it is what most of it is
    for lesion in np.unique(moved[(moved > 0) & (labels == 0)]):
        usual = np.bincount(drawn[instances == lesion]).argmax()
        labels[(moved == lesion) & (labels == 0)] = usual
    return labels


def _on_plan_grid(volume: Volume, plan: Plan, *, where: str | None, overwrite: bool) -> Volume:
    """Turned and resampled, float32."""
    view = turned(volume)
    geometry = plan_geometry(view.geometry, plan)
    if geometry is view.geometry:
        return copy_float32(view, overwrite=overwrite)
    _refuse_huge(geometry, where)
    return read_linear(view, geometry)


def _refuse_huge(geometry: Geometry, where: str | None) -> None:
    """A small file with large voxels must not ask for more memory than any machine has."""
    most = limits().max_voxels
    if math.prod(geometry.shape) > most:
        sizes, spacing = (
            " × ".join(f"{n:g}" for n in s) for s in (geometry.shape, geometry.spacing_mm)
        )
        raise GeometryError(
            "The image would have too many voxels on the plan's grid.",
            where=where,
            seen=f"{sizes} voxels of {spacing} mm",
            expected=f"at most {most} voxels (limits.max_voxels)",
            remedy="Check the voxel size in the file's header; if it is right, cut the image into "
            "parts, or train with a coarser plan.spacing_mm.",
        )


def _read_nearest(array: NDArray[Any], source: Geometry, geometry: Geometry) -> NDArray[Any]:
    """`array` `[*file]` on the plan's grid: turned only where that is enough, else nearest."""
    view = turned(Volume(array[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        return np.ascontiguousarray(view.array[0])
    array, matrix = _reaching(view, geometry)
    return resample_nearest(as_torch(array), matrix, geometry.shape)[0].numpy()


def _read_instances(
    instances: NDArray[np.int32], source: Geometry, geometry: Geometry
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Lesion ids on the plan's grid, and the share of each voxel that lesions cover."""
    view = turned(Volume(instances[np.newaxis], source))
    if view.geometry.matches(geometry, SAME_MM):
        moved = np.ascontiguousarray(view.array[0])
        return moved, (moved > 0).astype(np.float32)
    moved = np.zeros(geometry.shape, dtype=np.int32)
    most, total = (np.zeros(geometry.shape, dtype=np.float32) for _ in range(2))
    matrix = np.linalg.inv(view.geometry.affine) @ geometry.affine
    for number, place in enumerate(ndimage.find_objects(view.array[0]), start=1):
        if place is not None:
            mask = view.array[0][place] == number
            there, share = _share_of_voxels(mask, place, matrix, geometry.shape)
            more = share > most[there]
            moved[there][more], most[there][more] = number, share[more]
            total[there] += share
    moved[total < 0.5 - 1e-6] = 0
    return moved, total


def _share_of_voxels(
    mask: NDArray[np.bool_],
    place: tuple[slice, ...],
    matrix: NDArray[np.float64],
    shape: tuple[int, ...],
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """The part of the plan's grid that a mask at `place` of the file's reaches; its share there.

    `matrix` maps an index of the plan's grid to one of the file's.
    """
    corners = np.array(list(itertools.product(*[(s.start - 0.5, s.stop - 0.5) for s in place])))
    inverse = np.linalg.inv(matrix)
    reached = corners @ inverse[:-1, :-1].T + inverse[:-1, -1]
    first = np.floor(reached.min(axis=0) + 0.5).clip(0, np.array(shape) - 1).astype(int)
    last = np.ceil(reached.max(axis=0) - 0.5).clip(first, np.array(shape) - 1).astype(int)
    there = tuple(slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    # nothing around it: a voxel that reaches over the mask is not all mask
    border = math.ceil(np.abs(matrix[:-1, :-1]).max())
    part = torch.from_numpy(np.pad(mask, border)[np.newaxis])
    moved, begin = matrix.copy(), np.array([s.start for s in place]) - border
    moved[:-1, -1] += matrix[:-1, :-1] @ first - begin
    return there, resample_area(part, moved, tuple((last - first + 1).tolist()))[0].numpy()


def _reaching(volume: Volume, geometry: Geometry) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The volume's voxels, and the matrix that maps an index of `geometry` to one of theirs.

    Where the grid reaches farther than half a voxel over the volume (its last voxel may, by half
    of its own size), the outermost voxels are repeated: an edge to nothing would look like air.
    """
    matrix = np.linalg.inv(volume.geometry.affine) @ geometry.affine
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in geometry.shape])))
    reach = corners @ matrix[:-1, :-1].T + matrix[:-1, -1]
    over = reach.max(axis=0) - np.array(volume.geometry.shape) + 1
    before = np.ceil(-reach.min(axis=0) - 0.5 - SAME_MM).clip(0).astype(int)
    after = np.ceil(over - 0.5 - SAME_MM).clip(0).astype(int)
    if not before.any() and not after.any():
        return volume.array, matrix
    matrix[:-1, -1] += before
    padding = [(0, 0), *zip(before.tolist(), after.tolist(), strict=True)]
    return np.pad(volume.array, padding, mode="edge"), matrix


def _revive(
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
    """The background voxel nearest to `centre` among the 3^d around it; the centre if none is."""
    limit = np.array(moved.shape) - 1
    middle = np.rint(centre).astype(int).clip(0, limit)
    around = middle + np.array(list(itertools.product((-1, 0, 1), repeat=moved.ndim)))
    around = around.clip(0, limit)
    distance = np.square(around - centre).sum(axis=1)
    for voxel in around[np.argsort(distance, kind="stable")]:
        if moved[tuple(voxel)] == 0:
            return tuple(int(v) for v in voxel)
    return tuple(int(v) for v in middle)
