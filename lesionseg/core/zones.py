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
        places = (lesions.geometry.to_mm(lesions.voxels_of(row)) for row in range(len(lesions)))
        middles = (lesions.centres_mm[[row]] for row in range(len(lesions)))
        return [self._zone(p if len(p) else m) for p, m in zip(places, middles, strict=True)]

    def _zone(self, points_mm: NDArray[np.float64]) -> str:
        index = np.rint(self.geometry.to_index(points_mm)).astype(np.int64)
        inside = ((index >= 0) & (index < self.geometry.shape)).all(axis=1)
        values = self.values[tuple(index[inside].T)]
        values = values[values > 0]
        tree, surface = self._surface
        if not len(values) and tree is not None:
            distances, rows = tree.query(points_mm)
            values = surface[rows[[distances.argmin()]]]
        if not len(values):
            return ""
        distinct, counts = np.unique(values, return_counts=True)
        value = int(distinct[counts.argmax()])
        return self.names.get(value, str(value))

    @cached_property
    def _surface(self) -> tuple[Any, NDArray[np.integer[Any]]]:
        """Where zones end, for look-ups by place: a tree of points in mm, and their values."""
        from scipy.ndimage import binary_erosion
        from scipy.spatial import cKDTree

        marked = self.values > 0
        at = np.nonzero(marked & ~binary_erosion(marked))
        points = self.geometry.to_mm(np.stack(at, axis=1))
        return (cKDTree(points) if len(points) else None), self.values[at]
