"""Distances between the surfaces of two masks: surface Dice and HD95.

Surface elements lie on the corners of voxels and weigh as much as they have area, as Nikolov et
al. 2018 define it; distances are in millimetres along axes taken as orthogonal. The nearest
element is looked up in a k-d tree of the other surface: exact, and the cost follows the surfaces,
not the box around them, which for lesions strewn over an organ is several times cheaper than a
distance transform.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lesionseg.evaluation.surfels import Surfels, surfels_of

# Spacings read from float32 headers must not push an element over the tolerance.
_SLACK_MM = 1e-4


@dataclass(frozen=True, eq=False)
class Surface:
    """Distance in mm to the other surface and area, of each element, by ascending distance."""

    distances_mm: NDArray[np.float64]
    areas: NDArray[np.float64]

    @classmethod
    def towards(cls, own: Surfels, other: Surfels) -> "Surface":
        """The elements of one surface with their distance to another one."""
        distances = np.asarray(cKDTree(other.points_mm).query(own.points_mm)[0])
        order = np.lexsort((own.areas, distances))
        return cls(distances[order], own.areas[order])

    def area_within(self, tolerance_mm: float) -> float:
        """Area of the elements no farther than `tolerance_mm` from the other surface."""
        return float(self.areas[self.distances_mm <= tolerance_mm + _SLACK_MM].sum())

    def percentile_mm(self, percent: float) -> float:
        """The distance within which `percent` of the area lies."""
        share = np.cumsum(self.areas) / self.areas.sum()
        place = min(int(np.searchsorted(share, percent / 100)), len(share) - 1)
        return float(self.distances_mm[place])


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The reference's and the prediction's surface, each with its distances to the other."""

    reference: Surface
    prediction: Surface

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces' area within `tolerance_mm` of the other one."""
        both = (self.reference, self.prediction)
        area = sum(float(s.areas.sum()) for s in both)
        return sum(s.area_within(tolerance_mm) for s in both) / area

    def hd95_mm(self) -> float:
        """The larger of the two directed 95th percentiles, by area."""
        return max(self.reference.percentile_mm(95), self.prediction.percentile_mm(95))


def surface_distances(
    reference: NDArray[np.int64], prediction: NDArray[np.int64], spacing_mm: Sequence[float]
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks given as voxels `[v, dims]`.

    None when either mask is empty: there is no surface to measure from.
    """
    if len(reference) == 0 or len(prediction) == 0:
        return None
    a, b = surfels_of(reference, spacing_mm), surfels_of(prediction, spacing_mm)
    return SurfaceDistances(Surface.towards(a, b), Surface.towards(b, a))
