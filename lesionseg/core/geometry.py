"""Where voxels lie in the patient: shape and affine; and an array with them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lesionseg.errors import GeometryError

_LEAST_DETERMINANT = 1e-9  # of the axes' directions, whatever the spacing


def joint_unit(units: Iterable[str]) -> str:
    """What sizes of several grids are called; "px" only where no pixel size is known of any.

    >>> joint_unit(["mm", "mm at the detector"]), joint_unit(["px", "mm"])
    ('mm, partly at the detector', 'mm')
    """
    distinct = set(units)
    known = distinct - {"px"}
    if not known:
        return "px" if distinct else "mm"
    return known.pop() if len(known) == 1 else "mm, partly at the detector"


@dataclass(frozen=True, eq=False)
class Geometry:
    """Shape and position of a grid of `dims` spatial axes (3: z, y, x; 2: y, x).

    `affine` is `[dims+1, dims+1]` and maps an array index (z, y, x) to RAS millimetres (x, y, z);
    in 2-D it maps (y, x) to (x, y). `unit` says what its lengths are measured in: "mm", or
    "mm at the detector" for a radiograph that shows things larger than they are. Raises
    `GeometryError` when the affine cannot be inverted.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    unit: str = "mm"

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)
        if affine.shape != (self.dims + 1, self.dims + 1):
            raise GeometryError(f"An affine of {affine.shape} does not fit {self.dims} axes.")
        lengths = np.linalg.norm(affine[:-1, :-1], axis=0)
        is_flat = not np.all(np.isfinite(affine)) or lengths.min(initial=1) <= 0
        if is_flat or abs(np.linalg.det(affine[:-1, :-1] / lengths)) < _LEAST_DETERMINANT:
            raise GeometryError(f"The affine cannot be inverted: {affine.tolist()}.")

    @classmethod
    def from_spacing(
        cls, shape: Sequence[int], spacing_mm: Sequence[float], unit: str = "mm"
    ) -> "Geometry":
        """Grid whose axes (z, y, x) run along +S, +A, +R from the origin.

        >>> Geometry.from_spacing((4, 5, 6), (3, 2, 1)).to_mm([[1, 1, 1]]).tolist()
        [[1.0, 2.0, 3.0]]
        """
        dims = len(shape)
        affine = np.eye(dims + 1)
        affine[:dims, :dims] = np.fliplr(np.diag(np.asarray(spacing_mm, dtype=float)[::-1]))
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
        """Which array axes run along S, A and R, as nearly as they do; a raster's stay.

        >>> Geometry((2, 3, 4), np.eye(4)).canonical_order  # array axes: R, A, S
        (2, 1, 0)
        """
        if self.dims != 3:
            return tuple(range(self.dims))
        along = np.abs(self.affine[:3, :3]) / np.asarray(self.spacing_mm)
        return max(permutations(range(3)), key=lambda p: along[(2, 1, 0), p].sum())

    @property
    def size_unit(self) -> str:
        """What sizes on this grid are to be called: `unit`, or "px" where no pixel size is known.

        A picture whose pixels are exactly 1 mm wide is one that states none.
        """
        return "px" if self.dims == 2 and set(self.spacing_mm) == {1.0} else self.unit

    @property
    def voxel_size(self) -> float:
        """Volume of one voxel in mm³ (area of a pixel in mm²): |det affine|."""
        return float(abs(np.linalg.det(self.affine[: self.dims, : self.dims])))

    def to_mm(self, index: ArrayLike) -> NDArray[np.float64]:
        """RAS millimetres `[n, dims]` (x, y, z) of array indices `[n, dims]` (z, y, x)."""
        return _moved(index, self.affine)

    def to_index(self, mm: ArrayLike) -> NDArray[np.float64]:
        """Array indices `[n, dims]` (z, y, x), not rounded, of RAS millimetres `[n, dims]`."""
        return _moved(mm, np.linalg.inv(self.affine))

    def crop(self, part: Sequence[slice]) -> "Geometry":
        """Return the grid of a part of this one: a slice with start and stop for each axis."""
        affine = self.affine.copy()
        affine[:-1, -1] = self.to_mm([[axis.start for axis in part]])[0]
        return Geometry(tuple(axis.stop - axis.start for axis in part), affine, self.unit)

    def distance_mm(self, other: "Geometry") -> float:
        """Largest distance between the same corner of the two grids; infinite if shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        corners = list(product(*[(0, n - 1) for n in self.shape]))
        return float(np.linalg.norm(self.to_mm(corners) - other.to_mm(corners), axis=1).max())

    def apart_text(self, other: "Geometry") -> str:
        """Say for a message how two grids differ: in shape, or by how many millimetres."""
        if self.shape != other.shape:
            return "the shapes differ"
        return f"corners are up to {self.distance_mm(other):.4g} mm apart"

    def matches(self, other: "Geometry", tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and all corners within `tolerance_mm`."""
        return self.distance_mm(other) <= tolerance_mm


def _moved(points: ArrayLike, affine: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray(np.asarray(points, np.float64) @ affine[:-1, :-1].T + affine[:-1, -1])


@dataclass(frozen=True, eq=False)
class Volume:
    """An array `[C, *spatial]` with its geometry; a 2-D X-ray is a volume with two spatial axes.

    `valid` `[*spatial]` bool: voxels that show something, and not the padding, shutter or
    collimator of a radiograph; None when all do. `missing`: the channels of which there is no file;
    they are 0.
    """

    array: NDArray[Any]
    geometry: Geometry
    valid: NDArray[np.bool_] | None = None
    missing: tuple[int, ...] = ()

    @property
    def present(self) -> list[NDArray[Any]]:
        """The channels `[*spatial]` that are not missing."""
        return [channel for c, channel in enumerate(self.array) if c not in self.missing]

    def __post_init__(self) -> None:
        if self.array.shape[1:] != self.geometry.shape:
            shapes = f"{self.array.shape}, not {('C', *self.geometry.shape)}"
            raise GeometryError(f"The array does not fit its geometry: {shapes}.")
