"""A case on the plan's grid: oriented, resampled, normalised; the reference moves along.

MONAI's `Orientation` says how the axes turn. The grid covers what the file's covers; `onto_grid`
reads the image on it, one slab at a time, as inference does on the way back to the file's grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, Geometry, Volume
from lesionseg.data.onto_grid import SAME_MM, copy_float32, normalise, read_linear, turned
from lesionseg.data.prepared_reference import PreparedReference, prepare_reference
from lesionseg.data.transforms import run_on_volume
from lesionseg.errors import ContentError, GeometryError
from lesionseg.io.formats.guard import limits
from lesionseg.plan.plan import Plan


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
    its own, and if all do and nothing is sheared no voxel is changed. The geometry returned maps
    the new indices to the patient's millimetres. The same voxels in whatever orientation give the
    same array. Holds the image and the result, or, where `overwrite` gives leave and the image lies
    on the plan's grid, the image alone. `look` is called before normalisation, and may not keep
    what it is shown. The plan's further transforms come last. A missing channel is 0 in the end,
    the mean of its scale. Raises `ContentError` when channels or axes are not the plan's,
    `GeometryError` when the plan's grid would hold more than `limits.max_voxels`.
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
    if plan.prepare_extra:
        prepared = run_on_volume(plan.prepare_extra, prepared, where)
    for channel in volume.missing:
        prepared.array[channel] = 0
    return Volume(prepared.array, prepared.geometry, missing=volume.missing)


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
    if target == list(oriented.spacing_mm) and not _is_sheared(linear):
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


def _is_sheared(linear: NDArray[np.float64]) -> bool:
    """Whether axes are off a right angle by more than 1e-3: half a voxel over 500."""
    axes = linear / np.linalg.norm(linear, axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(len(axes))).max() > 1e-3)


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
