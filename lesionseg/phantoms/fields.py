"""Random smooth fields and soft edges, from which the simulated anatomy is built."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.floating[Any]]
Axes = Sequence[Field | np.floating[Any]]  # a single number where all points share it


def millimetre_axes(shape: Sequence[int], spacing_mm: Sequence[float]) -> list[Field]:
    """Open grid of voxel centres in mm, the middle of the volume at 0; one broadcastable per axis.

    >>> [axis.ravel().tolist() for axis in millimetre_axes((2, 3), (1.0, 2.0))]
    [[-0.5, 0.5], [-2.0, 0.0, 2.0]]
    """
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    return [np.asarray(axis, dtype=np.float32) for axis in np.ix_(*axes)]


def smooth_field(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    wavelength_mm: float,
) -> Field:
    """Gaussian random field `[*shape]` of zero mean, unit variance and about the given wavelength.

    Noise on a grid with two and a half nodes a wavelength, upsampled by cubic splines: its cost
    hardly depends on the wavelength, which a Gaussian filter's would.
    """
    node_mm = wavelength_mm / 2.5
    nodes = [int(np.ceil(n * s / node_mm)) + 3 for n, s in zip(shape, spacing_mm, strict=True)]
    coarse = ndimage.spline_filter(rng.standard_normal(nodes), order=3, output=np.float32)
    field = coarse
    for axis, (n, s) in enumerate(zip(shape, spacing_mm, strict=True)):
        field = _along(field, axis, 1.0 + rng.random() * 0.5 + np.arange(n) * s / node_mm)
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), dtype=np.float32)


def _along(field: Field, axis: int, position: Field) -> Field:
    """Evaluate cubic B-spline coefficients at `position` along one axis (separable upsampling)."""
    node = np.floor(position).astype(int)
    t = position - node
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    matrix = np.zeros((len(position), field.shape[axis]), dtype=np.float32)
    for offset, weight in enumerate(weights):
        column = np.clip(node - 1 + offset, 0, field.shape[axis] - 1)
        np.add.at(matrix, (np.arange(len(position)), column), weight / 6)
    return np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)


def inside(depth_mm: Field, width_mm: float) -> Field:
    """Share of a voxel inside a surface: 1 deep inside, ½ on it, 0 outside; linear over a voxel.

    `depth_mm` is the signed distance to the surface, positive inside; `width_mm` the voxel's size.
    This is the partial volume of a plane that crosses a voxel along an axis.
    """
    return np.asarray(np.clip(depth_mm / np.float32(width_mm) + np.float32(0.5), 0, 1))


def ellipsoid_depth(axes: Axes, centre_mm: Sequence[float], radii_mm: Sequence[float]) -> Field:
    """Approximate signed distance in mm to an ellipsoid's surface, positive inside.

    First order: (1 − f) · f / |∇f| with f = |x / r|; exact for a sphere.
    """
    scaled = [
        (a - np.float32(c)) / np.float32(r) for a, c, r in _triples(axes, centre_mm, radii_mm)
    ]
    floor = np.float32(1e-3)  # keeps the quotient at the centre finite and equal to the radius
    value = np.sqrt(sum(x * x for x in scaled)) + floor
    slope = np.sqrt(sum((x / np.float32(r)) ** 2 for x, r in zip(scaled, radii_mm, strict=True)))
    return np.asarray((1 - value) * value / (slope + floor / min(radii_mm)), dtype=np.float32)


def _triples(
    axes: Axes, centre_mm: Sequence[float], radii_mm: Sequence[float]
) -> list[tuple[Field | np.floating[Any], float, float]]:
    return list(zip(axes, centre_mm, radii_mm, strict=True))
