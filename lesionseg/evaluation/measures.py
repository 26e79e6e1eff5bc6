"""The extent of a lesion, surface Dice and HD95 of two masks, and counts of accepted candidates.

Surface Dice and HD95 are weighted by area (Nikolov et al. 2018, arXiv 1809.04430). The surface
elements are located at the corners of the voxel grid; MONAI's table states their areas. Time and
memory depend on the bounding box of each mask: one byte per voxel.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist, squareform

from lesionseg.core import Candidate
from lesionseg.core.arrays import Integers, Numbers
from lesionseg.core.labels import free_name

NEAR_RESOLUTION_VOXELS = 8
# Spacings read from float32 headers must not push an element over the tolerance.
_SLACK_MM = 1e-4


class Extent(NamedTuple):
    """Extent of one lesion on its grid.

    Attributes:
        slices: Number of slices along the axis with the coarsest spacing (1 in 2-D).
        long_axis_mm: Largest diameter within the slice with the most voxels, from voxel edge to
            voxel edge.
        short_axis_mm: Width of that slice perpendicular to the long axis.
        near_resolution: True for a lesion of fewer than 8 voxels or of one slice (in 2-D: fewer
            than 8 pixels). Its size and outline are uncertain.
    """

    slices: int
    long_axis_mm: float
    short_axis_mm: float
    near_resolution: bool


def through_plane_axis(spacing_mm: Sequence[float]) -> int:
    """Return the axis with the coarsest spacing, or the first if several agree within 1 %.

    >>> through_plane_axis((1.0, 1.0, 1.0)), through_plane_axis((0.5, 3.0, 0.5))
    (0, 1)
    """
    spacing = np.asarray(spacing_mm)
    return int(np.argmax(spacing >= 0.99 * spacing.max()))


def measure_extent(voxels: Integers, spacing_mm: Sequence[float]) -> Extent:
    """Measure the extent of a lesion, as `Extent` describes.

    Args:
        voxels: Array indices of the lesion's voxels `[v, dims]` in C order, at least one.
        spacing_mm: Spacing of each axis in mm.
    """
    dims = len(spacing_mm)
    n_slices = 1
    plane = voxels
    mm = np.asarray(spacing_mm, float)
    if dims == 3:
        axis = through_plane_axis(spacing_mm)
        counts = np.bincount(voxels[:, axis] - voxels[:, axis].min())
        n_slices = int((counts > 0).sum())
        fullest = voxels[:, axis].min() + counts.argmax()
        plane = np.delete(voxels[voxels[:, axis] == fullest], axis, axis=1)
        mm = np.delete(mm, axis)
    # the first and last pixels of each row contain all corners of the convex hull
    starts = np.flatnonzero(np.diff(plane[:, 0], prepend=-1))
    ends = np.append(starts[1:], len(plane)) - 1
    long_mm, short_mm = _measure_axes(plane[np.concatenate([starts, ends])] * mm, mm)
    has_few_voxels = len(voxels) < NEAR_RESOLUTION_VOXELS
    return Extent(n_slices, long_mm, short_mm, has_few_voxels or (dims == 3 and n_slices == 1))


def _measure_axes(points: Numbers, pixel_mm: Numbers) -> tuple[float, float]:
    """Return the largest distance and the width perpendicular to it, both plus one pixel.

    `points` `[n, 2]` are the centres of pixels in mm. A lesion extends by half a pixel beyond its
    outermost centres, so the extent of a pixel in that direction is added.
    """
    distances = squareform(pdist(points))
    first, second = np.unravel_index(distances.argmax(), distances.shape)
    length = float(distances[first, second])
    if length == 0:
        return float(pixel_mm.max()), float(pixel_mm.min())
    along = (points[first] - points[second]) / length
    positions_across = points @ [-along[1], along[0]]
    long_mm = length + float(np.abs(along) @ pixel_mm)
    return long_mm, float(np.ptp(positions_across) + np.abs(along[::-1]) @ pixel_mm)


def surface_scores(
    reference: Integers,
    prediction: Integers,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> tuple[float, float] | None:
    """Compute surface Dice and HD95 of two masks.

    Args:
        reference: Array indices of the voxels of the first mask `[v, dims]`.
        prediction: Array indices of the voxels of the second mask `[v, dims]`.
        spacing_mm: Spacing of each axis in mm.
        tolerance_mm: Distance in mm up to which two surfaces agree.

    Returns:
        Surface Dice: the share of the area of both surfaces that is within `tolerance_mm` of the
        other surface. HD95 in mm: the larger of the two directed 95th percentiles, by area. None if
        one of the masks is empty, because it has no surface.
    """
    if len(reference) == 0 or len(prediction) == 0:
        return None
    spacing = tuple(map(float, spacing_mm))
    a = _find_surface(reference, spacing)
    b = _find_surface(prediction, spacing)
    area_within = 0.0
    hd95_mm = 0.0
    for (points, areas), (other_points, _) in ((a, b), (b, a)):
        distance_mm, _ = KDTree(other_points).query(points)
        area_within += areas[distance_mm <= tolerance_mm + _SLACK_MM].sum()
        order = np.argsort(distance_mm, kind="stable")
        share = np.cumsum(areas[order]) / areas.sum()
        hd95_mm = max(hd95_mm, float(distance_mm[order[np.searchsorted(share, 0.95)]]))
    _, areas_a = a
    _, areas_b = b
    return float(area_within / (areas_a.sum() + areas_b.sum())), hd95_mm


def _find_surface(voxels: Integers, spacing: tuple[float, ...]) -> tuple[Numbers, Numbers]:
    """Return the positions in mm `[n, dims]` and areas `[n]` of a mask's surface elements.

    A surface element is a corner of the voxel grid with voxels of the mask and of the background
    around it. In 2-D 4 voxels meet at a corner, in 3-D 8. Each of these positions has a power of 2
    as number. The code of a corner is the sum of the numbers of the positions that belong to the
    mask. A table gives the area for each code.
    """
    low = voxels.min(axis=0)
    mask = np.zeros(np.ptp(voxels, axis=0) + 3, np.uint8)  # with a border of one voxel
    mask[tuple((voxels - low + 1).T)] = 1
    areas, number_of_voxel = _area_table(spacing)
    n_corners = np.array(mask.shape) - 1
    code = np.zeros(n_corners, np.uint8)
    for step in product((0, 1), repeat=mask.ndim):
        part = tuple(slice(s, s + n) for s, n in zip(step, n_corners, strict=True))
        code += mask[part] * number_of_voxel[step]
    everything_inside = len(areas) - 1
    corner = np.argwhere((code > 0) & (code < everything_inside))
    return (corner + low) * spacing, areas[code[tuple(corner.T)]]


@lru_cache(maxsize=64)
def _area_table(spacing: tuple[float, ...]) -> tuple[Numbers, NDArray[np.uint8]]:
    """Return the area of each neighbourhood code, and the number that each voxel adds to it."""
    from monai.metrics.utils import get_code_to_measure_table

    areas, kernel = get_code_to_measure_table(spacing)
    return areas.numpy().astype(float), kernel[0, 0].numpy().astype(np.uint8)


def counts_of(
    candidates: Sequence[Candidate], labels: Mapping[int, str], zones: Iterable[str] = ()
) -> dict[str, Any]:
    """Count the accepted candidates and sum their volumes, by label, by zone and in total.

    The keys are columns such as `count_Metastasis`, `ml_Metastasis`, `zone_count_Brainstem` and
    `volume_ml`. Characters such as spaces become `_`. If two names then agree, a number is added to
    the second one. A label or zone that is named and has no candidate gets 0, and a label without a
    name has its value as name. If the volume of one candidate is unknown, the total is None and the
    volumes by label and zone are left out.
    """
    accepted = [c for c in candidates if c.accepted]
    volumes_are_known = all(c.volume_ml is not None for c in accepted)
    by_label: dict[str, list[Candidate]] = {name: [] for name in labels.values()}
    by_zone: dict[str, list[Candidate]] = {name: [] for name in zones}
    for candidate in accepted:
        label = labels.get(candidate.label, str(candidate.label))
        by_label.setdefault(label, []).append(candidate)
        if candidate.zone:
            by_zone.setdefault(candidate.zone, []).append(candidate)
    counts: dict[str, Any] = {"volume_ml": _sum_ml(accepted) if volumes_are_known else None}
    for prefix, by_name in (("", by_label), ("zone_", by_zone)):
        for name, column in column_names(by_name).items():
            own = by_name[name]
            counts[f"{prefix}count_{column}"] = len(own)
            if volumes_are_known:
                counts[f"{prefix}ml_{column}"] = _sum_ml(own)
    return counts


def column_names(names: Iterable[str]) -> dict[str, str]:
    """Return a different column for each name of a label or zone.

    >>> column_names(["<5 mm", ">5 mm"])
    {'<5 mm': '_5_mm', '>5 mm': '_5_mm_2'}
    """
    columns: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name)
        columns[name] = free_name(plain, columns.values(), "{name}_{number}")
    return columns


def _sum_ml(candidates: Sequence[Candidate]) -> float:
    """Sum the volumes of candidates, rounded to a nanolitre."""
    return round(sum(c.volume_ml or 0.0 for c in candidates), 6)
