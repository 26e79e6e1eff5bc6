"""The grid of an image: shape, affine in RAS mm, spacing, equality of grids; `Volume`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lesionseg.core.arrays import Flags, Numbers
from lesionseg.errors import GeometryError

_MIN_DETERMINANT = 1e-9  # of the matrix of axis directions, each scaled to length 1
_N_SAMPLES = 8000  # points, to estimate how much of two grids overlaps


def joint_unit(units: Iterable[str]) -> str:
    """Return the unit to show with a number that is computed from the sizes on several grids.

    `units` are the units of the grids (`Geometry.size_unit`). "px" (unknown pixel size) is ignored
    if another grid has millimetres. If radiographs ("mm at the detector") and other images are
    mixed, the unit says so. The unit of an empty list is "mm".

    >>> joint_unit(["mm", "mm at the detector"]), joint_unit(["px", "mm"])
    ('mm, partly at the detector', 'mm')
    """
    distinct = set(units)
    in_mm = distinct - {"px"}  # "mm", "mm at the detector", or both
    if len(in_mm) > 1:
        return "mm, partly at the detector"
    if in_mm:
        return in_mm.pop()
    return "px" if distinct else "mm"


def describe_sides(sides: Iterable[float]) -> str:
    """Format the lengths of a voxel, a shape, a tile or a stride along each axis as text.

    Lengths below 1000 have up to four significant digits, longer ones are rounded to integers.

    >>> describe_sides((12345, 16, 0.7109375))
    '12345 × 16 × 0.7109'
    """
    return " × ".join(f"{side:.4g}" if side < 1000 else f"{side:.0f}" for side in sides)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Shape and position of a grid of `dims` spatial axes (3: z, y, x; 2: y, x).

    Attributes:
        shape: Number of voxels along each axis.
        affine: `[dims+1, dims+1]`, maps an array index (z, y, x) to RAS millimetres (x, y, z). In
            2-D, it maps (y, x) to (x, y). It is a copy that cannot be written.
        unit: Unit of lengths: "mm", or "mm at the detector" for a radiograph, which magnifies the
            patient.

    Raises:
        GeometryError: If the affine cannot be inverted, or does not fit the number of axes.
    """

    shape: tuple[int, ...]
    affine: Numbers
    unit: str = "mm"

    def __post_init__(self) -> None:
        """Convert shape and affine to fixed types, and check that the affine can be inverted."""
        affine = np.array(self.affine, float)
        affine.setflags(write=False)
        # `object.__setattr__`, because the dataclass is frozen
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "affine", affine)
        if affine.shape != (self.dims + 1, self.dims + 1):
            raise GeometryError(f"An affine of {affine.shape} does not fit {self.dims} axes.")
        # scale each axis direction to length 1, so that the determinant does not depend on spacing
        lengths = np.linalg.norm(affine[:-1, :-1], axis=0)
        is_flat = not np.all(np.isfinite(affine)) or lengths.min(initial=1) <= 0
        if is_flat or abs(np.linalg.det(affine[:-1, :-1] / lengths)) < _MIN_DETERMINANT:
            raise GeometryError(f"The affine cannot be inverted: {affine.tolist()}.")

    @classmethod
    def from_spacing(
        cls, shape: Sequence[int], spacing_mm: Sequence[float], unit: str = "mm"
    ) -> "Geometry":
        """Return a grid without rotation, whose first voxel is at the origin.

        Its array axes (z, y, x) point to superior, anterior and right (+S, +A, +R) of the patient.
        `spacing_mm` has the order of the array axes.

        >>> Geometry.from_spacing((4, 5, 6), (3, 2, 1)).to_mm([[1, 1, 1]]).tolist()
        [[1.0, 2.0, 3.0]]
        """
        dims = len(shape)
        affine = np.eye(dims + 1)
        # array order (z, y, x) to RAS order (x, y, z), hence on the antidiagonal
        affine[:dims, :dims] = np.fliplr(np.diag(np.asarray(spacing_mm, float)[::-1]))
        return cls(tuple(shape), affine, unit)

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each array axis, in millimetres."""
        return tuple(np.linalg.norm(self.affine[: self.dims, : self.dims], axis=0).tolist())

    @property
    def canonical_order(self) -> tuple[int, ...]:
        """The order of array axes that brings a volume closest to the axes S, A and R.

        Item 0 is the array axis closest to superior–inferior, item 1 the one closest to
        anterior–posterior, and item 2 the one closest to right–left. In 2-D, it is (0, 1).

        >>> Geometry((2, 3, 4), np.eye(4)).canonical_order  # array axes: R, A, S
        (2, 1, 0)
        """
        if self.dims != 3:
            return tuple(range(self.dims))
        cosines = np.abs(self.affine[:3, :3]) / np.asarray(self.spacing_mm)  # [R A S, array axis]
        # rows 2, 1, 0 are S, A, R
        return max(permutations(range(3)), key=lambda order: cosines[(2, 1, 0), order].sum())

    @property
    def size_unit(self) -> str:
        """Name of the unit of lesion sizes on this grid: `unit`, or "px" for an unknown pixel size.

        If the file of a 2-D image states no pixel size, the reader sets it to exactly 1 mm. A
        spacing of exactly 1 mm in 2-D therefore means an unknown pixel size.
        """
        return "px" if self.dims == 2 and set(self.spacing_mm) == {1.0} else self.unit

    @property
    def voxel_size(self) -> float:
        """Volume of one voxel in mm³ (2-D: area of a pixel in mm²): the affine's determinant."""
        return float(abs(np.linalg.det(self.affine[: self.dims, : self.dims])))

    @property
    def centre_mm(self) -> Numbers:
        """The centre of the grid `[dims]` in RAS millimetres."""
        return self.to_mm(np.subtract(self.shape, 1) / 2)

    def to_mm(self, index: ArrayLike) -> Numbers:
        """Convert array indices `[n, dims]` (z, y, x) to RAS millimetres `[n, dims]` (x, y, z)."""
        return _apply_affine(index, self.affine)

    def to_index(self, mm: ArrayLike) -> Numbers:
        """Convert RAS millimetres `[n, dims]` (x, y, z) to array indices (z, y, x), not rounded.

        The centre of voxel i has the index i.
        """
        return _apply_affine(mm, np.linalg.inv(self.affine))

    def crop(self, part: Sequence[slice]) -> "Geometry":
        """Return the grid of a cropped array, whose voxels keep their positions in the patient.

        `part` has one slice with start and stop for each array axis.
        """
        affine = self.affine.copy()
        # the position of the new first voxel
        affine[:-1, -1] = self.to_mm([[axis.start for axis in part]])[0]
        return Geometry(tuple(axis.stop - axis.start for axis in part), affine, self.unit)

    def distance_mm(self, other: "Geometry") -> float:
        """Return the largest distance in mm between equal corners of two grids, to compare grids.

        A corner is the centre of a corner voxel. The distance is infinite if the shapes differ.
        """
        if self.shape != other.shape:
            return float("inf")
        last = np.subtract(self.shape, 1)
        # `ndindex` yields each combination of 0 (first voxel) and 1 (last voxel) of the axes
        corners = [np.multiply(corner, last) for corner in np.ndindex((2,) * self.dims)]
        return float(np.linalg.norm(self.to_mm(corners) - other.to_mm(corners), axis=1).max())

    def move(self, matrix: Numbers) -> "Geometry":
        """Return the grid after a transformation of the patient space, such as a registration.

        `matrix` `[dims+1, dims+1]` maps old to new positions in RAS millimetres.
        """
        return Geometry(self.shape, matrix @ self.affine, self.unit)

    def contains(self, points_mm: ArrayLike) -> Flags:
        """Flag the points that are inside a voxel of the grid.

        `points_mm` are positions `[n, dims]` in RAS millimetres, with the result `[n]`, or a single
        position `[dims]`.
        """
        index = self.to_index(points_mm)  # a voxel extends by 0.5 from its whole-numbered centre
        is_inside = (index >= -0.5) & (index <= np.subtract(self.shape, 0.5))
        return np.asarray(is_inside.all(axis=-1))

    def overlap(self, other: "Geometry") -> float:
        """Estimate the fraction of the smaller grid that is inside the larger grid.

        The fraction is estimated from 8000 random points with a fixed seed, so the result is
        reproducible.
        """
        small, large = sorted((self, other), key=lambda grid: grid.voxel_size * prod(grid.shape))
        rng = np.random.default_rng(0)
        # indices from border to border, because voxel i extends from i − 0.5 to i + 0.5
        points = rng.uniform(-0.5, np.subtract(small.shape, 0.5), (_N_SAMPLES, self.dims))
        return float(large.contains(small.to_mm(points)).mean())

    def describe(self) -> str:
        """Describe shape, spacing and position of the first voxel for a message.

        The axis x comes first, as in NIfTI files.
        """
        origin = tuple(map(float, self.affine[:-1, -1].round(3)))
        spacing = tuple(round(s, 4) for s in reversed(self.spacing_mm))
        shape = tuple(reversed(self.shape))
        return f"of shape {shape}, spacing {spacing} mm, first voxel at {origin} mm"

    def describe_difference(self, other: "Geometry") -> str:
        """Describe how two grids differ for a message: in shape, or by millimetres at a corner."""
        if self.shape != other.shape:
            return "the shapes differ"
        return f"corners are up to {self.distance_mm(other):.4g} mm apart"

    def matches(self, other: "Geometry", tolerance_mm: float = 1e-3) -> bool:
        """Return True if both grids have equal shapes and corners at most `tolerance_mm` apart."""
        return self.distance_mm(other) <= tolerance_mm


def _apply_affine(points: ArrayLike, affine: NDArray[np.floating[Any]]) -> Numbers:
    """Transform points `[n, dims]` by an affine `[dims+1, dims+1]`; return points `[n, dims]`."""
    result: Numbers = np.asarray(points, float) @ affine[:-1, :-1].T + affine[:-1, -1]
    return result


@dataclass(frozen=True, eq=False)
class Volume:
    """An array `[C, *spatial]` with its geometry. A radiograph is a volume with two spatial axes.

    `valid` `[*spatial]` bool is False for the pixels of a radiograph that are padding or outside
    its display shutter, otherwise True; None means that all voxels are valid. `missing` contains
    the indices of channels without a file; these channels are 0. `warnings` contains the warnings
    of the readers, each a sentence. Raises `GeometryError` if array and geometry have different
    shapes.
    """

    array: NDArray[Any]
    geometry: Geometry
    valid: Flags | None = None
    missing: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def brightness(self) -> NDArray[Any]:
        """Convert a colour image with the channels red, green and blue to grey `[*spatial]`.

        The weights of the channels are those of ITU-R BT.601.
        """
        return np.tensordot((0.299, 0.587, 0.114), self.array, axes=1)

    @property
    def present_channels(self) -> list[NDArray[Any]]:
        """The channels `[*spatial]` that have a file, without those that were filled with 0."""
        return [channel for c, channel in enumerate(self.array) if c not in self.missing]

    def __post_init__(self) -> None:
        """Check that the array has the shape of the grid, after its axis of channels."""
        if self.array.shape[1:] != self.geometry.shape:
            shapes = f"{self.array.shape}, not {('C', *self.geometry.shape)}"
            raise GeometryError(f"The array does not fit its geometry: shape {shapes}.")
