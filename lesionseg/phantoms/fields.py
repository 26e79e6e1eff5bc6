"""Random smooth fields, soft edges and tubes, from which the simulated anatomy is built."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Field = NDArray[np.floating[Any]]
Axes = Sequence[Field | np.floating[Any]]  # a single number where all points share it
Points = NDArray[np.float64]
STEP_MM = 0.8


def is_lesion_free(index: int, share: float) -> bool:
    """Whether case `index` is one of the evenly spread lesion-free ones."""
    return int((index + 1) * share + 1e-9) > int(index * share + 1e-9)


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
    each = zip(axes, centre_mm, radii_mm, strict=True)
    scaled = [(a - np.float32(c)) / np.float32(r) for a, c, r in each]
    floor = np.float32(1e-3)  # keeps the quotient at the centre finite and equal to the radius
    value = np.sqrt(sum(x * x for x in scaled)) + floor
    slope = np.sqrt(sum((x / np.float32(r)) ** 2 for x, r in zip(scaled, radii_mm, strict=True)))
    return np.asarray((1 - value) * value / (slope + floor / min(radii_mm)), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Tube:
    """Points `[n, 3]` (z up, y to the front, x; mm) along a tube's middle, `step_mm` apart."""

    points: Points
    radius_mm: float
    step_mm: float = STEP_MM


def tube_thickness(tubes: Iterable[Tube], shape: Sequence[int], pixel_mm: float) -> Field:
    """Millimetres of tube that each ray along y crosses, `[*shape]`; overlapping tubes add up.

    A tube of radius r is the sum over its middle line of discs of radius r: a straight one
    across the beam gives the chord 2·√(r² − ρ²), one along the beam its length. So the shadow is
    the projected middle line convolved with a disc, one convolution a radius.
    """
    margin = 24
    size = [fft.next_fast_len(n + 2 * margin, real=True) for n in shape]
    total = np.zeros((size[0], size[1] // 2 + 1), dtype=np.complex64)
    by_radius = sorted(tubes, key=lambda tube: tube.radius_mm)
    for radius, group in groupby(by_radius, key=lambda tube: tube.radius_mm):
        line = _splat(list(group), shape, size, pixel_mm, margin)
        disc = _disc(radius / pixel_mm, size)
        total += fft.rfft2(line) * fft.rfft2(disc)
    shadow = fft.irfft2(total, s=size)[margin : margin + shape[0], margin : margin + shape[1]]
    return np.maximum(np.asarray(shadow, dtype=np.float32), 0)


def tube_share(
    tubes: Iterable[Tube],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    middle: Sequence[float],
) -> Field:
    """Share 0..1 of each voxel `[*shape]` that lies in a tube; the volume's middle is at `middle`.

    Tubes finer than a voxel fill as much of it as their cross-section does.
    """
    share = np.zeros(shape, dtype=np.float32)
    spacing, side = np.asarray(spacing_mm), float(np.mean(spacing_mm))
    for tube in tubes:
        at = (tube.points - np.asarray(middle)) / spacing + (np.asarray(shape) - 1) / 2
        half = np.ceil((tube.radius_mm + side / 2) / spacing).astype(int)
        around = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1)
        voxels = np.rint(at).astype(int)[:, None] + around.reshape(-1, 3)
        distance = np.linalg.norm((voxels - at[:, None]) * spacing, axis=-1)
        filled = inside(tube.radius_mm - distance, side)
        filled *= np.float32(min(1.0, np.pi * (tube.radius_mm / side) ** 2))
        within = ((voxels >= 0) & (voxels < shape)).all(axis=-1) & (filled > 0)
        np.maximum.at(share, tuple(voxels[within].T), filled[within])
    return share


def _splat(
    tubes: Sequence[Tube], shape: Sequence[int], size: Sequence[int], pixel_mm: float, margin: int
) -> Field:
    """Bilinear histogram of the tubes' middle lines, in mm of line a pixel."""
    points = np.concatenate([t.points for t in tubes])
    weight = np.concatenate([np.full(len(t.points), t.step_mm) for t in tubes])
    row = (shape[0] - 1) / 2 - points[:, 0] / pixel_mm + margin
    column = (shape[1] - 1) / 2 + points[:, 2] / pixel_mm + margin
    inside = (row >= 0) & (row < size[0] - 1) & (column >= 0) & (column < size[1] - 1)
    row, column, weight = row[inside], column[inside], weight[inside]
    r, c = np.floor(row).astype(int), np.floor(column).astype(int)
    line = np.zeros(size[0] * size[1])
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - (row - r)) * np.abs(1 - right - (column - c))
            index = (r + down) * size[1] + c + right
            line += np.bincount(index, weight * share, minlength=line.size)
    return line.reshape(size[0], size[1]).astype(np.float32)


def _disc(radius_px: float, size: Sequence[int]) -> Field:
    """A disc with a soft rim around pixel (0, 0) of a periodic image, values 0..1."""
    y, x = (np.minimum(np.arange(n), n - np.arange(n)) for n in size)
    distance = np.hypot(y[:, None], x[None, :])
    disc = np.clip(radius_px - distance + 0.5, 0, 1)
    return np.asarray(disc * (np.pi * radius_px**2 / disc.sum()), dtype=np.float32)


def polyline(corners_mm: Sequence[Sequence[float]], radius_mm: float) -> Tube:
    """A tube along straight pieces between corners (z, y, x)."""
    corners = np.asarray(corners_mm, dtype=np.float64)
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    at = np.arange(STEP_MM / 2, lengths[-1], STEP_MM)
    points = np.stack([np.interp(at, lengths, corners[:, k]) for k in range(3)], axis=1)
    return Tube(points, radius_mm)


def vessel_tree(
    rng: np.random.Generator, root_mm: Sequence[float], n_trunks: int, side: int
) -> list[Tube]:
    """A branching tree of vessels from the hilum of one lung (side −1 or 1), one tube a level.

    Each vessel splits in two of three quarters its radius, near Murray's law (2^(−1/3) = 0.79;
    J Gen Physiol 1926;9:835), and runs seven radii before it splits.
    """
    start = np.tile(np.asarray(root_mm, dtype=np.float64), (n_trunks, 1))
    fan = np.linspace(-1.25, 1.35, n_trunks) + rng.normal(0, 0.12, n_trunks)
    heading = np.stack([np.sin(fan), rng.normal(0, 0.5, n_trunks), side * np.cos(fan)], axis=1)
    tubes, radius = [], 3.6
    while radius > 0.45:
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        length = 7.5 * radius * rng.uniform(0.8, 1.6, size=(len(start), 1))
        at = np.linspace(0, 1, int(np.ceil(10 * radius)) + 2)[None, :, None]
        bend = rng.normal(0, 0.22, size=(len(start), 1, 3)) * at**2
        path = start[:, None] + (heading[:, None] * at + bend) * length[:, None]
        steps = float(np.linalg.norm(np.diff(path, axis=1), axis=2).mean())
        tubes.append(Tube(path.reshape(-1, 3), radius, steps))
        start = np.repeat(path[:, -1], 2, axis=0)
        heading = np.repeat(path[:, -1] - path[:, -2], 2, axis=0)
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        heading = heading + rng.normal(0, 0.42, size=heading.shape)
        radius = round(radius * 0.75, 3)
    return tubes
