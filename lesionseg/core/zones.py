"""Anatomical zones of a case, from whatever mask, and in which of them a lesion lies."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.geometry import Geometry
from lesionseg.core.lesions import Lesions


@dataclass(frozen=True, eq=False)
class Zones:
    """Zone values `[*spatial]`, 0 outside any, on a grid of their own, and the values' names."""

    values: NDArray[np.integer[Any]]
    geometry: Geometry
    names: Mapping[int, str]

    def of(self, lesions: Lesions) -> list[str]:
        """The zone of each lesion: the one that most of its voxels lie in, else the nearest.

        Of equals the smaller value; of a bare box its centre counts. Empty without any zone.
        """
        return [self._zone(self._points_mm(lesions, row)) for row in range(len(lesions))]

    def _points_mm(self, lesions: Lesions, row: int) -> NDArray[np.float64]:
        voxels = lesions.voxels_of(row)
        return lesions.geometry.to_mm(voxels) if len(voxels) else lesions.centres_mm[[row]]

    def _zone(self, points_mm: NDArray[np.float64]) -> str:
        index = np.rint(self.geometry.to_index(points_mm)).astype(np.int64)
        inside = ((index >= 0) & (index < self.geometry.shape)).all(axis=1)
        values = self.values[tuple(index[inside].T)]
        values = values[values > 0] if (values > 0).any() else self._nearest(points_mm)
        if not len(values):
            return ""
        distinct, counts = np.unique(values, return_counts=True)
        value = int(distinct[counts.argmax()])
        return self.names.get(value, str(value))

    def _nearest(self, points_mm: NDArray[np.float64]) -> NDArray[np.integer[Any]]:
        """The value of the zone voxel that is nearest to any of the points; none without zones."""
        tree, values = self._surface
        if tree is None:
            return values
        distances, rows = tree.query(points_mm)
        return np.asarray(values[rows[[distances.argmin()]]])

    @cached_property
    def _surface(self) -> tuple[Any, NDArray[np.integer[Any]]]:
        """Where zones end, for look-ups by place: a tree of points in mm, and their values."""
        from scipy.ndimage import binary_erosion
        from scipy.spatial import cKDTree

        marked = self.values > 0
        at = np.nonzero(marked & ~binary_erosion(marked))
        points = self.geometry.to_mm(np.stack(at, axis=1))
        return (cKDTree(points) if len(points) else None), self.values[at]
