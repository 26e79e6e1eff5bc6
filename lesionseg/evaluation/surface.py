"""Distances between the surfaces of two masks: surface Dice and HD95.

A mask's surface is its voxels with a face neighbour outside the mask (or outside the image);
distances are between voxel centres, in millimetres along axes taken as orthogonal. Nearest points
are looked up in a k-d tree of the other surface: exact, and the cost follows the surfaces, not
the box around them, which for lesions strewn over an organ is four to eight times cheaper than a
distance transform.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

# Spacings read from float32 headers must not push a point over the tolerance.
_SLACK_MM = 1e-4


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """For each surface point of one mask the distance in mm to the other surface; both ways."""

    from_reference_mm: NDArray[np.float64]
    from_prediction_mm: NDArray[np.float64]

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces within `tolerance_mm` of the other one (Nikolov et al. 2018)."""
        within = sum(
            int((d <= tolerance_mm + _SLACK_MM).sum())
            for d in (self.from_reference_mm, self.from_prediction_mm)
        )
        return within / (len(self.from_reference_mm) + len(self.from_prediction_mm))

    def hd95_mm(self) -> float:
        """The larger of the two directed 95th percentiles."""
        return float(
            max(
                np.percentile(self.from_reference_mm, 95),
                np.percentile(self.from_prediction_mm, 95),
            )
        )


def surface_distances(
    reference: NDArray[np.int64], prediction: NDArray[np.int64], spacing_mm: Sequence[float]
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks given as voxels `[v, dims]`.

    None when either mask is empty: there is no surface to measure from.
    """
    if len(reference) == 0 or len(prediction) == 0:
        return None
    spacing: NDArray[np.float64] = np.asarray(spacing_mm, dtype=np.float64)
    a = np.multiply(surface_voxels(reference), spacing, dtype=np.float64)
    b = np.multiply(surface_voxels(prediction), spacing, dtype=np.float64)
    return SurfaceDistances(_nearest(a, b), _nearest(b, a))


def surface_voxels(voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of a mask's voxels `[v, dims]` that have a face neighbour outside the mask."""
    low = voxels.min(axis=0) - 1
    # a margin of one voxel, so that no neighbour lies outside the array
    inside = np.zeros(voxels.max(axis=0) - low + 2, dtype=np.bool_)
    place = np.ravel_multi_index(tuple((voxels - low).T), inside.shape)
    flat = inside.reshape(-1)
    flat[place] = True
    enclosed = np.ones(len(voxels), dtype=np.bool_)
    for step in inside.strides:  # of booleans: bytes are elements
        enclosed &= flat[place - step] & flat[place + step]
    return voxels[~enclosed]


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cKDTree(others).query(points)[0])
