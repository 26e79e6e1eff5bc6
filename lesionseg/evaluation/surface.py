"""Surface Dice and HD95 of two masks, by area (Nikolov et al. 2018, arXiv 1809.04430).

Surface elements lie on the corners of the voxel grid; their areas are MONAI's table. Cost and
memory follow the boxes around the masks, at a byte a voxel.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

# Spacings read from float32 headers must not push an element over the tolerance.
_SLACK_MM = 1e-4


def surface_scores(
    reference: NDArray[np.int64],
    prediction: NDArray[np.int64],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> tuple[float, float] | None:
    """Surface Dice and HD95 in mm of two masks given as voxels `[v, dims]`.

    Surface Dice: the share of both surfaces' area within `tolerance_mm` of the other one. HD95: the
    larger of the two directed 95th percentiles, by area. None when either mask is empty: there is
    no surface to measure from.
    """
    if len(reference) == 0 or len(prediction) == 0:
        return None
    spacing = tuple(map(float, spacing_mm))
    a, b = (_surface(voxels, spacing) for voxels in (reference, prediction))
    within, hd95 = 0.0, 0.0
    for (points, areas), (others, _) in ((a, b), (b, a)):
        distance = KDTree(others).query(points)[0]
        within += areas[distance <= tolerance_mm + _SLACK_MM].sum()
        order = np.argsort(distance, kind="stable")
        share = np.cumsum(areas[order]) / areas.sum()
        place = min(int(np.searchsorted(share, 0.95)), len(order) - 1)
        hd95 = max(hd95, float(distance[order[place]]))
    return float(within / (a[1].sum() + b[1].sum())), hd95


def _surface(
    voxels: NDArray[np.int64], spacing: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places in mm `[n, dims]` and areas `[n]` of the surface elements of a mask."""
    low = voxels.min(axis=0)
    mask = np.zeros(np.ptp(voxels, axis=0) + 3, dtype=np.uint8)
    mask[tuple((voxels - low + 1).T)] = 1
    areas, kernel = _area_table(spacing)
    corners = np.array(mask.shape) - 1
    code = np.zeros(corners, dtype=np.uint8)
    for step in product((0, 1), repeat=mask.ndim):
        part = tuple(slice(s, s + n) for s, n in zip(step, corners, strict=True))
        code += mask[part] * kernel[step]
    edge = np.argwhere((code > 0) & (code < len(areas) - 1))
    return (edge + low) * spacing, areas[code[tuple(edge.T)]]


@lru_cache(maxsize=64)
def _area_table(spacing: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Area by neighbourhood code, and what each voxel of a neighbourhood adds to the code."""
    from monai.metrics.utils import get_code_to_measure_table

    areas, kernel = get_code_to_measure_table(spacing)
    return areas.numpy().astype(np.float64), kernel[0, 0].numpy().astype(np.uint8)
