"""Surface Dice, HD95, long and short axis of a lesion, counts and volumes for predictions.csv.

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
    """Return the slice axis of a volume: the axis with the largest voxel spacing.

    Of several axes whose spacing is within 1 % of the largest, the first one is returned.

    >>> through_plane_axis((1.0, 1.0, 1.0)), through_plane_axis((0.5, 3.0, 0.5))
    (0, 1)
    """
    spacing = np.asarray(spacing_mm)
    return int(np.argmax(spacing >= 0.99 * spacing.max()))


def measure_extent(voxels: Integers, spacing_mm: Sequence[float]) -> Extent:
    """Measure the number of slices and the diameters of a lesion, for lesions.csv.

    The diameters are those of the slice that contains the most voxels of the lesion.

    Args:
        voxels: Array indices of the lesion's voxels `[v, dims]` in C order, at least one.
        spacing_mm: Spacing of each axis in mm.
    """
    dims = len(spacing_mm)
    n_slices = 1
    plane = voxels
    pixel_mm = np.asarray(spacing_mm, float)
    if dims == 3:  # reduce the lesion to its slice with the most voxels
        axis = through_plane_axis(spacing_mm)
        counts = np.bincount(voxels[:, axis] - voxels[:, axis].min())
        n_slices = int((counts > 0).sum())
        fullest = voxels[:, axis].min() + counts.argmax()
        plane = np.delete(voxels[voxels[:, axis] == fullest], axis, axis=1)
        pixel_mm = np.delete(pixel_mm, axis)
    # The first and last pixels of each row contain all corners of the convex hull. In C order, a
    # row begins where the first index changes; −1 is the index of no row.
    starts = np.flatnonzero(np.diff(plane[:, 0], prepend=-1))
    ends = np.append(starts[1:], len(plane)) - 1
    points = plane[np.concatenate([starts, ends])] * pixel_mm
    long_mm, short_mm = _measure_axes(points, pixel_mm)
    has_few_voxels = len(voxels) < NEAR_RESOLUTION_VOXELS
    return Extent(
        slices=n_slices,
        long_axis_mm=long_mm,
        short_axis_mm=short_mm,
        near_resolution=has_few_voxels or (dims == 3 and n_slices == 1),
    )


def _measure_axes(points: Numbers, pixel_mm: Numbers) -> tuple[float, float]:
    """Measure the long and the short axis of a lesion in one slice, both in mm.

    The long axis is the largest distance of two pixel centres. The short axis is the width of the
    lesion perpendicular to the long axis. A lesion extends half a pixel beyond its outermost pixel
    centres, so the extent of one pixel in the direction of each axis is added.

    Args:
        points: Centres of pixels in mm `[n, 2]`, which include all corners of the convex hull.
        pixel_mm: Pixel size along each of the two array axes.

    Returns:
        The length of the long and of the short axis. For a single pixel, these are the larger and
        the smaller side of the pixel.
    """
    distances = squareform(pdist(points))
    first, second = np.unravel_index(distances.argmax(), distances.shape)
    length = float(distances[first, second])
    if length == 0:
        return float(pixel_mm.max()), float(pixel_mm.min())
    along = (points[first] - points[second]) / length  # unit vector of the long axis
    positions_across = points @ [-along[1], along[0]]  # along the perpendicular unit vector
    long_mm = length + float(np.abs(along) @ pixel_mm)
    # the perpendicular vector has the components of `along` in reverse, apart from a sign
    short_mm = float(np.ptp(positions_across) + np.abs(along[::-1]) @ pixel_mm)
    return long_mm, short_mm


def surface_scores(
    reference: Integers,
    prediction: Integers,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> tuple[float, float] | None:
    """Compute surface Dice and HD95, which measure how well the outlines of two masks agree.

    Args:
        reference: Array indices of the voxels of the first mask `[v, dims]`.
        prediction: Array indices of the voxels of the second mask `[v, dims]`.
        spacing_mm: Spacing of each axis in mm.
        tolerance_mm: Distance in mm up to which two surfaces agree.

    Returns:
        Surface Dice and HD95 in mm. Surface Dice is the fraction of the total area of both surfaces
        that is within `tolerance_mm` of the other surface. For HD95, the 95th percentile by area of
        the distance from each surface to the other one is computed; HD95 is the larger percentile.
        None if one of the masks is empty, because it has no surface.
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
        # surface Dice: area near the other surface
        area_within += areas[distance_mm <= tolerance_mm + _SLACK_MM].sum()
        # HD95: the distance up to which the elements have 95 % of the area
        order = np.argsort(distance_mm, kind="stable")
        share = np.cumsum(areas[order]) / areas.sum()
        hd95_mm = max(hd95_mm, float(distance_mm[order[np.searchsorted(share, 0.95)]]))
    _, areas_a = a
    _, areas_b = b
    return float(area_within / (areas_a.sum() + areas_b.sum())), hd95_mm


def _find_surface(voxels: Integers, spacing: tuple[float, ...]) -> tuple[Numbers, Numbers]:
    """Return the positions in mm `[n, dims]` and areas `[n]` of a mask's surface elements.

    The positions have the order of array axes. A surface element is a corner of the voxel grid at
    which voxels of the mask and of the background meet. At each corner, 4 voxels meet in 2-D and 8
    in 3-D. Each of these neighbours has its own power of 2. The code of a corner is the sum of the
    powers of the neighbours inside the mask. MONAI's table gives the surface area for each code.

    Args:
        voxels: Array indices of the mask's voxels `[v, dims]`, at least one.
        spacing: Spacing of each axis in mm.
    """
    low = voxels.min(axis=0)
    mask = np.zeros(np.ptp(voxels, axis=0) + 3, np.uint8)  # with a border of one voxel
    mask[tuple((voxels - low + 1).T)] = 1
    areas, bit_of_neighbour = _area_table(spacing)
    n_corners = np.array(mask.shape) - 1
    code = np.zeros(n_corners, np.uint8)
    # for each neighbour of a corner, such as (0, 1, 1): the voxels that are this neighbour
    for offset in product((0, 1), repeat=mask.ndim):
        neighbours = tuple(slice(s, s + n) for s, n in zip(offset, n_corners, strict=True))
        code += mask[neighbours] * bit_of_neighbour[offset]
    # codes between no neighbour and all neighbours inside the mask belong to the surface
    everything_inside = len(areas) - 1
    corner = np.argwhere((code > 0) & (code < everything_inside))
    # the positions are half a voxel too high, in both masks alike, so distances do not change
    return (corner + low) * spacing, areas[code[tuple(corner.T)]]


@lru_cache(maxsize=64)
def _area_table(spacing: tuple[float, ...]) -> tuple[Numbers, NDArray[np.uint8]]:
    """Return MONAI's table of surface areas for a voxel spacing in mm.

    Returns:
        The area of a surface element in mm² (2-D: its length in mm) for each code of
        `_find_surface`. Then the power of 2 that each neighbour adds to the code, `[2, 2, 2]` in
        3-D and `[2, 2]` in 2-D.
    """
    from monai.metrics.utils import get_code_to_measure_table

    areas, kernel = get_code_to_measure_table(spacing)
    # the first two axes of MONAI's kernel are batch and channel
    return areas.numpy().astype(float), kernel[0, 0].numpy().astype(np.uint8)


def counts_of(
    candidates: Sequence[Candidate], labels: Mapping[int, str], zones: Iterable[str] = ()
) -> dict[str, Any]:
    """Count the accepted candidates of a case and sum their volumes, for predictions.csv.

    Args:
        candidates: The candidates of the case. Rejected candidates are not counted.
        labels: Names of the label values. A label value without a name is named by its number.
        zones: Names of the anatomical zones. A zone that only candidates name is added.

    Returns:
        The cells of the case by column, such as `count_Metastasis`, `ml_Metastasis`,
        `zone_count_Brainstem`, `zone_ml_Brainstem` and `volume_ml`. `column_names` derives the
        columns from the names. A label or zone in the arguments without a candidate gets 0. If the
        volume of an accepted candidate is unknown, `volume_ml` is None and the other volumes are
        left out.
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
            candidates_of_name = by_name[name]
            counts[f"{prefix}count_{column}"] = len(candidates_of_name)
            if volumes_are_known:
                counts[f"{prefix}ml_{column}"] = _sum_ml(candidates_of_name)
    return counts


def column_names(names: Iterable[str]) -> dict[str, str]:
    """Return a unique column name for each name of a label, zone or region.

    Each sequence of characters other than letters, digits, `_`, `.` and `-` becomes one `_`. If two
    names become equal, a number is added to the later one.

    >>> column_names(["<5 mm", ">5 mm"])
    {'<5 mm': '_5_mm', '>5 mm': '_5_mm_2'}
    """
    columns: dict[str, str] = {}
    for name in names:
        cleaned = re.sub(r"[^\w.-]+", "_", name)
        columns[name] = free_name(cleaned, columns.values(), "{name}_{number}")
    return columns


def _sum_ml(candidates: Sequence[Candidate]) -> float:
    """Sum the volumes of candidates in ml, rounded to a nanolitre. Unknown volumes count as 0."""
    return round(sum(c.volume_ml or 0.0 for c in candidates), 6)
