"""A reference on the plan's grid: lesions moved along with the image, none lost on the way."""

import itertools
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Reference, Volume
from lesionseg.data.adaptor import as_torch
from lesionseg.data.onto_grid import SAME_MM, turned
from lesionseg.errors import ContentError
from lesionseg.ops.components import lesions_of
from lesionseg.ops.resample import resample_area, resample_nearest
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

# a lesion that covers less of its voxel than this does not show in the image
VISIBLE_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class PreparedReference:
    """What a reader marked, on the plan's grid.

    `labels` `[*spatial]` uint8: 0 background, k for `plan.mask_values[k-1]` (without regions:
    network channel k-1). `instances` `[*spatial]` int32: lesion ids 1..n. `instance_labels[id-1]`:
    the label k of lesion id, 1 for all with regions, 0 for an id without a lesion. `valid`
    `[*spatial]` bool: voxels that teach; None when all do. `unannotated`: the k of which nothing
    is known here.
    """

    labels: NDArray[np.uint8]
    instances: NDArray[np.int32]
    instance_labels: tuple[int, ...]
    valid: NDArray[np.bool_] | None
    unannotated: tuple[int, ...] = ()


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
    unknown = tuple(
        plan.mask_values.index(v) + 1 for v in reference.unannotated if v in plan.mask_values
    )
    return PreparedReference(labels, moved, tuple(channel[1:].tolist()), valid, unknown)


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
    covered = np.zeros(instances.shape, dtype=np.uint8)
    covered[instances > 0] = place[values]
    labels = np.where(moved > 0, _read_nearest(covered, *geometry), np.uint8(0))
    # a revived lesion may lie where its mask does not: there it is what most of it is
    for lesion in np.unique(moved[(moved > 0) & (labels == 0)]):
        usual = np.bincount(covered[instances == lesion]).argmax()
        labels[(moved == lesion) & (labels == 0)] = usual
    return labels


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
