"""Lesions of a case, measured: diameter, volume, centre, box; the zone (organ) of a lesion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.core.geometry import Geometry
from lesionseg.errors import ContentError

_UNIT_BALL = {2: np.pi, 3: 4 / 3 * np.pi}  # area or volume by the number of axes


def equivalent_diameter_mm(volume_mm: ArrayLike, dims: int) -> Numbers:
    """Compute the equivalent diameter: that of the ball (3-D) or disc (2-D) of the same size.

    The diameter is `2·(3V/4π)^⅓` for a volume V, and in 2-D `2·(A/π)^½` for an area A.

    Args:
        volume_mm: Volumes in mm³, in 2-D areas in mm², of any shape.
        dims: Number of spatial axes.

    Returns:
        Diameters in mm, float64, of the same shape. A volume of 0 has a diameter of 0.

    >>> float(np.round(equivalent_diameter_mm(4 / 3 * np.pi * 5**3, 3), 6))
    10.0
    """
    return 2 * (np.asarray(volume_mm, float) / _UNIT_BALL[dims]) ** (1 / dims)


def box_diameters_mm(boxes: NDArray[Any], geometry: Geometry) -> Numbers:
    """Compute the diameters in mm of lesions that have only boxes `[n]`.

    The diameter is the equivalent diameter of the ellipsoid (2-D: ellipse) inscribed in each box,
    which is the cube root (2-D: square root) of the box volume. `boxes` is `[n, 2·dims]` (starts,
    stops; half-open voxels).

    >>> box_diameters_mm(np.array([[0, 0, 8, 2]]), Geometry.from_spacing((9, 9), (1, 1))).tolist()
    [4.0]
    """
    sides = np.maximum(boxes[:, geometry.dims :] - boxes[:, : geometry.dims], 0)
    volumes = np.prod(sides, axis=1, dtype=float) * geometry.voxel_size
    result: Numbers = volumes ** (1 / geometry.dims)
    return result


def box_centres_mm(boxes: NDArray[Any], geometry: Geometry) -> Numbers:
    """Compute the centres `[n, dims]` of half-open boxes `[n, 2·dims]` in RAS millimetres."""
    # the centre of voxel i is i, so a half-open box ends half a voxel below its stop
    return geometry.to_mm((boxes[:, : geometry.dims] + boxes[:, geometry.dims :]) / 2 - 0.5)


def box_slices(box: Sequence[float] | NDArray[Any], dims: int) -> tuple[slice, ...]:
    """Return one slice per axis that together select the voxels that a box touches, even partly.

    `box` has all starts, then all stops; voxel i covers [i, i + 1). Negative indices become 0.

    >>> box_slices((-1.0, 2.5, 3.0, 4.5), 2)
    (slice(0, 3, None), slice(2, 5, None))
    """
    start = np.floor(box[:dims]).clip(0).astype(int).tolist()
    return tuple(map(slice, start, np.ceil(box[dims:]).clip(0).astype(int).tolist()))


def centre_slices(box: Sequence[float] | NDArray[Any], dims: int) -> tuple[slice, ...]:
    """Return one slice per axis that together select the voxels whose centres are inside a box.

    The slices are used to draw a box into a mask. `box` has all starts, then all stops; voxel i
    covers [i, i + 1). Unlike the slices of `box_slices`, these are as large as the box on average.
    If the box contains no voxel centre along an axis, the voxel at the middle of the box is
    selected there. Negative indices become 0.

    >>> centre_slices((0.4, 2.6, 3.4, 2.9), 2)
    (slice(0, 3, None), slice(2, 3, None))
    """
    ends = np.asarray(box, float)
    # i + 0.5 is the centre of voxel i, so this is the first voxel whose centre is not below the end
    start = np.ceil(ends[:dims] - 0.5)
    stop = np.ceil(ends[dims:] - 0.5)
    contains_no_centre = stop <= start
    start = np.where(contains_no_centre, np.floor((ends[:dims] + ends[dims:]) / 2), start)
    stop = np.where(contains_no_centre, start + 1, stop)
    return tuple(map(slice, start.clip(0).astype(int).tolist(), stop.clip(0).astype(int).tolist()))


def clip_boxes(boxes: ArrayLike, shape: Sequence[int], where: object) -> NDArray[np.float32]:
    """Clip the lesion boxes of a dataset to the grid of their image.

    Args:
        boxes: Boxes `[n, 2·dims]` (starts, stops; half-open voxels).
        shape: Shape of the grid.
        where: File or entry with which an error message begins.

    Returns:
        The clipped boxes `[n, 2·dims]`.

    Raises:
        ContentError: If a box is empty or outside the grid.
    """
    dims = len(shape)
    unclipped = np.asarray(boxes, float).reshape(-1, 2 * dims)
    clipped = np.clip(unclipped, 0, [*shape, *shape]).astype(np.float32)
    for box in unclipped[~(clipped[:, :dims] < clipped[:, dims:]).all(axis=1)]:
        sides = []
        for axis in reversed(range(dims)):  # x first, as in tables
            name = "zyx"[axis - dims]  # counted from the end, because 2-D has no z
            sides.append(f"{name} {box[axis]:g} to {box[dims + axis]:g} of 0 to {shape[axis]}")
        raise ContentError(
            f"{where}: the box is empty or outside its image ({', '.join(sides)}). Correct the box."
        )
    result: NDArray[np.float32] = clipped
    return result


@dataclass(frozen=True, eq=False)
class Lesions:
    """A table of lesions or candidates, one row each, and their voxels.

    Attributes:
        geometry: Grid of the boxes and voxels.
        ids: `[n]`, the value of each lesion or candidate in `instances`.
        labels: `[n]`, the label value of each lesion or candidate.
        boxes: `[n, 2·dims]` (starts, stops; half-open voxels).
        centres_mm: `[n, dims]`, the mean of the voxels, or the centre of a box without voxels.
        diameters_mm: `[n]` equivalent diameters; for a box without voxels, that of the inscribed
            ellipsoid.
        voxels: `[v, dims]` array indices of the voxels of all rows, one row after the other. A row
            without voxels has only its box.
        first: `[n + 1]`. The voxels of row i are `voxels[first[i]:first[i + 1]]`.
        instances: `[*spatial]` mask of the ids, if there is one.
    """

    geometry: Geometry
    ids: Integers
    labels: Integers
    boxes: Numbers
    centres_mm: Numbers
    diameters_mm: Numbers
    voxels: Integers
    first: Integers
    instances: NDArray[np.integer[Any]] | None = None

    @classmethod
    def measure(
        cls,
        geometry: Geometry,
        ids: Integers,
        labels: Sequence[int],
        boxes: NDArray[Any] | None,
        index: Integers,
        first: Integers,
    ) -> "Lesions":
        """Measure boxes, centres and diameters of lesions from their voxels, or from their boxes.

        Without `boxes`, rows without voxels are left out.

        Args:
            geometry: The grid.
            ids: The id of each lesion `[n]`.
            labels: The label value of each lesion `[n]`.
            boxes: The box of each lesion `[n, 2·dims]`, or None. It is used only for rows without
                voxels. For other rows, the bounding box of the voxels is computed.
            index: Flat indices of the voxels of all lesions in C order, lesion by lesion `[v]`.
            first: `[n + 1]`. The voxels of lesion i are `index[first[i]:first[i + 1]]`.
        """
        counts = np.diff(first)
        present = np.ones(len(ids), bool) if boxes is not None else counts > 0
        # the rows that are left out have no voxels, so `index` stays complete
        counts = counts[present]
        first = np.concatenate([[0], np.cumsum(counts)])
        all_boxes = np.zeros((len(counts), 2 * geometry.dims))
        if boxes is not None:
            all_boxes[:] = boxes
        voxels = np.stack(np.unravel_index(index, geometry.shape), axis=1)
        centres = box_centres_mm(all_boxes, geometry)
        # rows with voxels; `reduceat` reduces the voxels of each row
        rows = np.flatnonzero(counts)
        if len(rows):
            all_boxes[rows, : geometry.dims] = np.minimum.reduceat(voxels, first[rows], axis=0)
            all_boxes[rows, geometry.dims :] = np.maximum.reduceat(voxels, first[rows], axis=0) + 1
            sums = np.add.reduceat(voxels, first[rows], axis=0)
            centres[rows] = geometry.to_mm(sums / counts[rows, None])
        diameters = equivalent_diameter_mm(counts * geometry.voxel_size, geometry.dims)
        return cls(
            geometry=geometry,
            ids=ids[present],
            labels=np.asarray(labels, np.int64)[present],
            boxes=all_boxes,
            centres_mm=centres,
            diameters_mm=np.where(counts > 0, diameters, box_diameters_mm(all_boxes, geometry)),
            voxels=voxels,
            first=first,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def n_voxels(self) -> Integers:
        """Number of voxels of each row; 0 for a box without voxels."""
        return np.diff(self.first)

    @cached_property
    def sizes_vox(self) -> Integers:
        """Size of each row in voxels, at least 1, for the rules of the plan.

        For a row without voxels, it is the volume of the ellipsoid inscribed in the box, rounded to
        voxels.
        """
        dims = self.geometry.dims
        # in mm³ (2-D: mm²); the equivalent diameter gives back the volume of the voxels
        volumes = _UNIT_BALL[dims] * (self.diameters_mm / 2) ** dims
        return np.maximum(np.rint(volumes / self.geometry.voxel_size), 1).astype(np.int64)

    @property
    def has_voxels(self) -> Flags:
        """True for rows with voxels `[n]`, False for rows with only a box."""
        return self.n_voxels > 0

    def voxels_of(self, row: int) -> Integers:
        """Return the array indices `[v, dims]` of the voxels of one lesion, in C order."""
        return self.voxels[self.first[row] : self.first[row + 1]]

    def volume_ml(self, row: int) -> float | None:
        """Return the volume of the lesion in this row in ml; None in 2-D and without voxels."""
        n = int(self.n_voxels[row])
        return n * self.geometry.voxel_size / 1000 if self.geometry.dims == 3 and n else None

    def draw(self) -> NDArray[np.int32]:
        """Draw the lesions into an instance mask `[*spatial]` with their ids, 0 for background.

        A lesion with only a box is drawn as the voxels of `centre_slices`. Their bounding box is as
        large as the box on average, which matters because a detector learns it. Smaller boxes are
        drawn over larger boxes, and lesions with voxels over boxes.
        """
        instances = np.zeros(self.geometry.shape, np.int32)
        dims = self.geometry.dims
        volumes = np.prod(self.boxes[:, dims:] - self.boxes[:, :dims], axis=1)
        for row in np.argsort(-volumes, kind="stable"):  # the largest first
            if not self.n_voxels[row]:
                instances[centre_slices(self.boxes[row], dims)] = self.ids[row]
        instances[tuple(self.voxels.T)] = np.repeat(self.ids, self.n_voxels)
        return instances


@dataclass(frozen=True, eq=False)
class Zones:
    """A mask `[*spatial]` of anatomical zones, 0 outside all zones, on its own grid.

    `names` has the names of the values. A value without a name is called by its number.
    """

    values: NDArray[np.integer[Any]]
    geometry: Geometry
    names: Mapping[int, str]

    def of(self, lesions: Lesions) -> list[str]:
        """Return the name of the anatomical zone of each lesion; "" if the mask has no zones.

        The zone of a lesion is the zone that contains most voxels of the lesion. If no zone
        contains a voxel of the lesion, it is the nearest zone. For a lesion with only a box, the
        centre of the box counts instead of voxels. If zones contain equal numbers of voxels, the
        one with the smallest value counts.
        """
        names = []
        for row, centre in enumerate(lesions.centres_mm):
            points_mm = lesions.geometry.to_mm(lesions.voxels_of(row))
            if not len(points_mm):
                points_mm = centre[np.newaxis]
            value = self._find_zone(points_mm)
            names.append("" if value is None else self.names.get(value, str(value)))
        return names

    def _find_zone(self, points_mm: Numbers) -> int | None:
        """Return the value of the zone that contains most points, or of the nearest zone.

        Args:
            points_mm: Positions in RAS millimetres `[n, dims]`, for example of a lesion's voxels.

        Returns:
            The value of the zone in the mask; None if the mask has no zones.
        """
        index = np.rint(self.geometry.to_index(points_mm)).astype(np.int64)
        is_on_grid = ((index >= 0) & (index < self.geometry.shape)).all(axis=1)
        values = self.values[tuple(index[is_on_grid].T)]
        values = values[values > 0]
        if len(values):
            distinct, counts = np.unique(values, return_counts=True)
            return int(distinct[counts.argmax()])
        tree, surface_values = self._surface
        if tree is None:
            return None
        # no point is in a zone: the zone of the surface voxel that is nearest to any point
        distances, nearest = tree.query(points_mm)
        return int(surface_values[nearest[distances.argmin()]])

    @cached_property
    def _surface(self) -> tuple[Any, NDArray[np.integer[Any]]]:
        """The surface voxels of all zones together, to find the zone that is nearest to a point.

        A pair: a KD-tree of the positions of the voxels in RAS mm, which is None if there are no
        zones, and the zone value of each voxel.
        """
        from scipy.ndimage import binary_erosion
        from scipy.spatial import cKDTree

        is_zone = self.values > 0
        surface = np.nonzero(is_zone & ~binary_erosion(is_zone))
        points = self.geometry.to_mm(np.stack(surface, axis=1))
        return (cKDTree(points) if len(points) else None), self.values[surface]
