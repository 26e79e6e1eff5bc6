"""Simulated scans (MRI, CT, radiographs): anatomy, lesion sizes and shapes, noise, file layout.

They have exact references, to try lesionseg without the data of patients.

A case is made in three steps: smooth tissue, lesions with irregular outlines, and the noise and
blur of a scanner. With the same settings, case i of a set depends only on the seed and on i. The
files of a set state that it is simulated. Numbers measured on simulated scans are not claims about
patients.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Len
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    create_model,
)
from scipy import ndimage

from lesionseg.config import Probability, Settings, read
from lesionseg.core import Geometry, Labels, Volume
from lesionseg.core.arrays import Integers, Numbers
from lesionseg.errors import ConfigError, OutputError, require_one_of
from lesionseg.io.layouts.nnunet import write_dataset_json
from lesionseg.io.text import read_json, write_json
from lesionseg.io.volumes import write_volume
from lesionseg.ops.components import label_components

log = logging.getLogger(__name__)

__all__ = [
    "simulate_once",
    "write_ct_phantoms",
    "write_mri_phantoms",
    "write_xray_phantoms",
]

Field = NDArray[np.floating[Any]]
Shape = Sequence[int]
Spacing = Sequence[float]
Placed = tuple[tuple[slice, ...], Field]  # box of a lesion, and share 0..1 of each voxel in it
Range = tuple[int, int]  # minimum and maximum, inclusive
Simulated = tuple[Field, NDArray[Any]]  # image and lesions `[*shape]`
Progress = Callable[[str, int, int], None]
SUBSAMPLES = 3  # points along each axis of a voxel, to count the share that a lesion covers
SETTINGS = "simulation.json"
SPREAD_OF_DIAMETERS = 0.45  # standard deviation of their logarithm
SHARE_IN_TISSUE = 0.6  # of a lesion; a position with less is rejected
TRIES = 60  # positions tried for a lesion before it is left out


def _validate_order(values: Range) -> Range:
    """Check the minimum and maximum of a setting, and return them unchanged.

    Raise `ValueError` if the first number is larger than the second one.
    """
    if values[0] > values[1]:
        raise ValueError("the first number is larger than the second one")
    return values


# the types of the settings `data.phantoms.*`; `simulate_once` checks that the values have them
Shape3 = Annotated[tuple[PositiveInt, ...], Len(3, 3)]
Spacing3 = Annotated[tuple[PositiveFloat, ...], Len(3, 3)]
NumberOfLesions = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_validate_order)]


class SimulatedCase(NamedTuple):
    """A simulated case: the image and the lesions `[*shape]` on one grid."""

    case: str
    image: Field
    lesions: NDArray[Any]
    geometry: Geometry


class Grid(NamedTuple):
    """The grid of a simulated scan."""

    shape: Shape  # in voxels
    spacing_mm: Spacing


@dataclass(frozen=True, eq=False)
class _Lesion:
    """A simulated lesion.

    Attributes:
        box: The voxels around it.
        share: The fraction of each voxel in the box (0..1) that it covers.
        diameter_mm: The diameter of a ball of its volume, before tissue restricted it.
    """

    box: tuple[slice, ...]
    share: Field
    diameter_mm: float


def millimetre_axes(shape: Shape, spacing_mm: Spacing) -> list[Field]:
    """Return the coordinates of voxel centres in mm, one broadcastable array per axis.

    The centre of the volume has the coordinate 0.

    >>> [axis.ravel().tolist() for axis in millimetre_axes((2, 3), (1.0, 2.0))]
    [[-0.5, 0.5], [-2.0, 0.0, 2.0]]
    """
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    return [np.asarray(axis, np.float32) for axis in np.ix_(*axes)]


def smooth_field(rng: Generator, shape: Shape, spacing_mm: Spacing, wave_mm: float) -> Field:
    """Draw a random field `[*shape]` of mean 0, variance 1 and about the given wavelength.

    The field gives tissue its texture, bends organs and shades images. White noise on a coarse grid
    with 2.5 nodes per wavelength is upsampled by cubic B-splines. The time hardly depends on the
    wavelength, unlike the time of a Gaussian filter.
    """
    node_mm = wave_mm / 2.5  # distance of the nodes
    # a cubic B-spline needs 3 nodes more than intervals
    n_nodes = [int(np.ceil(n * mm / node_mm)) + 3 for n, mm in zip(shape, spacing_mm, strict=True)]
    field = ndimage.spline_filter(rng.standard_normal(n_nodes), order=3, output=np.float32)
    for axis, (n, mm) in enumerate(zip(shape, spacing_mm, strict=True)):
        # The start is random, so that nodes are not always at the same voxels.
        position = 1.0 + rng.random() * 0.5 + np.arange(n) * mm / node_mm  # in nodes
        node = np.floor(position).astype(int)
        t = position - node
        # weights, times 6, of the four nodes around a position
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        matrix = np.zeros((n, field.shape[axis]), np.float32)
        for offset, weight in enumerate(weights):
            column = np.clip(node - 1 + offset, 0, field.shape[axis] - 1)
            np.add.at(matrix, (np.arange(n), column), weight / 6)
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    # 1e-6 avoids a division by 0 for a constant field
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), np.float32)


def coverage(depth_mm: Field, width_mm: float) -> Field:
    """Return which fraction of each voxel (0..1) is inside a surface, so that edges are smooth.

    Args:
        depth_mm: Distance from the voxel's centre to the surface, positive inside.
        width_mm: Size of a voxel. While the surface passes through the voxel, the share increases
            linearly from 0 to 1.
    """
    result: Field = np.clip(depth_mm / np.float32(width_mm) + np.float32(0.5), 0, 1)
    return result


def ellipsoid_depth(
    axes: Sequence[Field | np.floating[Any]], centre_mm: Sequence[float], radii_mm: Sequence[float]
) -> Field:
    """Return the approximate distance in mm to the surface of an ellipsoid, positive inside.

    The first-order formula is (1 − f) / |∇f| with f = |x / r|. It is exact for a sphere, up to
    0.1 % of its radius.

    Args:
        axes: Coordinates of the voxels in mm along each axis. The arrays may broadcast.
        centre_mm: Centre of the ellipsoid.
        radii_mm: Radius of the ellipsoid along each axis.
    """
    each = zip(axes, centre_mm, radii_mm, strict=True)
    scaled = [(a - np.float32(c)) / np.float32(r) for a, c, r in each]
    floor = np.float32(1e-3)  # makes the quotient at the centre finite: it equals the radius
    value = np.sqrt(sum(x * x for x in scaled)) + floor
    slope = np.sqrt(sum((x / np.float32(r)) ** 2 for x, r in zip(scaled, radii_mm, strict=True)))
    return np.asarray((1 - value) * value / (slope + floor / min(radii_mm)), np.float32)


def rippled_radius(rng: Generator, points: Field) -> Field:
    """Draw an irregular lesion shape and return its radial coordinate at points.

    The coordinate is the norm |A·x| of a random ellipsoid plus three random waves. It increases
    outwards, except in steep waves. The outline of a lesion consists of all points with the same
    radial coordinate.

    Args:
        rng: Draws the shape.
        points: `[n, d]`, in units of the lesion's radius.
    """
    dims = points.shape[1]
    rotation, _ = np.linalg.qr(rng.standard_normal((dims, dims)))
    stretch = np.exp(rng.normal(0, 0.2, size=dims))  # of the axes, by about 20 %
    # divided by its geometric mean, so that the volume stays the same
    radius = np.linalg.norm(points @ (rotation * (stretch / stretch.prod() ** (1 / dims))), axis=1)
    # Wave vectors in radians per radius, and random phases. The waves have an amplitude of 0.12.
    waves = rng.normal(0, 1.8, size=(dims, 3))
    result: Field = radius + 0.12 * np.cos(points @ waves + rng.uniform(0, 2 * np.pi, size=3)).sum(
        axis=1
    )
    return result


def lesion_share(rng: Generator, diameter: float, spacing_mm: Spacing, jitter: Field) -> Field:
    """Draw an irregular lesion and return which fraction of each voxel (0..1) it covers.

    Each voxel is divided into `SUBSAMPLES` points along each axis. The innermost points belong to
    the lesion, as many as the volume requires.

    Args:
        rng: Draws the outline.
        diameter: The lesion has the volume of a ball of this diameter in mm.
        spacing_mm: Size of a voxel along each axis.
        jitter: Offset `[d]` of the lesion from the centre of the middle voxel, in voxels.

    Returns:
        A box around the lesion, with an odd number of voxels along each axis.
    """
    spacing = np.asarray(spacing_mm, float)
    dims = len(spacing_mm)
    # voxels on each side of the middle; 0.95 instead of 0.5, because outlines are irregular
    half = np.ceil(0.95 * diameter / spacing).astype(int) + 1
    coordinates_mm: list[Field] = []  # of the subsamples along each axis
    split_shape: list[int] = []  # of an array of all subsamples: voxels, subsamples in a voxel, …
    for n_half, mm, offset in zip(half, spacing, jitter, strict=True):
        n_voxels = 2 * n_half + 1
        in_voxels = (np.arange(n_voxels * SUBSAMPLES) + 0.5) / SUBSAMPLES - n_half - 0.5 - offset
        coordinates_mm.append(in_voxels * mm)
        split_shape += [n_voxels, SUBSAMPLES]
    points = np.stack([g.ravel() for g in np.meshgrid(*coordinates_mm, indexing="ij")], axis=1)
    radius = rippled_radius(rng, points / (diameter / 2))
    ball_volume = np.pi / (2 * dims) * diameter**dims  # volume of a ball; in 2-D the area of a disc
    subsample_volume = spacing.prod() / SUBSAMPLES**dims  # volume that a subsample represents
    n_inside = min(round(ball_volume / subsample_volume), radius.size - 1)
    is_inside = radius < np.partition(radius, n_inside)[n_inside]
    # the mean of the subsamples in each voxel
    subsample_axes = tuple(range(1, 2 * dims, 2))
    return np.asarray(is_inside.reshape(split_shape).mean(axis=subsample_axes), np.float32)


def place_at(
    centre: Integers, share: Field, tissue: Field, labels: NDArray[Any], gap: int
) -> Placed | None:
    """Try to place a lesion at a voxel, restricted to the tissue in which it may grow.

    `labels` is not changed. A voxel is lesion if at least half of it is covered.

    Args:
        centre: The voxel at which the middle of the lesion's box is placed.
        share: The fraction of each voxel that the lesion covers (`lesion_share`).
        tissue: Share 0..1 of tissue in each voxel.
        labels: The lesions that were placed before, as positive numbers.
        gap: Minimum number of voxels to other lesions and to the border of the volume.

    Returns:
        The box and the shares of its voxels. None if the box does not fit into the volume, if
        another lesion is too near, or if the tissue leaves no voxel or several components.
    """
    half = np.array(share.shape) // 2  # the sides are odd
    start = centre - half
    stop = centre + half + 1
    if (start < gap).any() or (stop > np.array(labels.shape) - gap).any():
        return None
    box = tuple(map(slice, start, stop))
    share = share * tissue[box]
    is_lesion = share >= 0.5
    is_other = labels[tuple(map(slice, start - gap, stop + gap))] > 0
    if is_other.any():  # the filter is slow
        # the lesion, grown by `gap` voxels on each side
        is_near = ndimage.maximum_filter(np.pad(is_lesion, gap), size=2 * gap + 1)
        if is_other[is_near].any():
            return None
    if label_components(is_lesion).max() != 1:  # no voxel, or several components
        return None
    return box, share


def _place_lesions(
    rng: Generator,
    tissue: Field,
    spacing_mm: Spacing,
    n_lesions: Range,
    diameter_mm: tuple[float, float, float],
    gap: int,
) -> tuple[list[_Lesion], NDArray[np.int32]]:
    """Draw lesions of random sizes, and place them at random positions in a tissue.

    Large lesions are placed first. A voxel is lesion if at least half of it is covered. Lesions
    never touch. Without tissue there is no lesion. A lesion is left out in two cases:

    - It covers less than half of each voxel.
    - At none of `TRIES` random positions, more than `SHARE_IN_TISSUE` of it is in the tissue.

    Args:
        rng: Draws number, sizes, outlines and positions.
        tissue: Share 0..1 of tissue in each voxel.
        spacing_mm: Size of a voxel along each axis.
        n_lesions: Minimum and maximum number of lesions.
        diameter_mm: Minimum, median and maximum of the log-normal diameters. Diameters beyond the
            limits are clipped.
        gap: Minimum number of voxels between two lesions, and to the border of the volume.

    Returns:
        The placed lesions, and a mask that contains the number 1..n of the lesion of each voxel.
    """
    instances = np.zeros(tissue.shape, np.int32)
    lesions: list[_Lesion] = []
    tissue_voxels = np.flatnonzero(tissue > 0.5)
    n_drawn = int(rng.integers(n_lesions[0], n_lesions[1] + 1)) if len(tissue_voxels) else 0
    diameters = np.exp(rng.normal(np.log(diameter_mm[1]), SPREAD_OF_DIAMETERS, size=n_drawn))
    # the largest first, because it is the hardest to place
    for diameter in np.sort(np.clip(diameters, diameter_mm[0], diameter_mm[2]))[::-1].tolist():
        unrestricted = lesion_share(rng, diameter, spacing_mm, rng.uniform(-0.5, 0.5, tissue.ndim))
        if unrestricted.max() < 0.5:  # too small for any voxel
            # draw the same numbers as a search without success
            rng.choice(tissue_voxels, size=TRIES)
            continue
        for _ in range(TRIES):
            centre = np.array(np.unravel_index(int(rng.choice(tissue_voxels)), tissue.shape))
            placed = place_at(centre, unrestricted, tissue, instances, gap)
            if placed is None:
                continue
            box, share = placed
            if share.sum() > SHARE_IN_TISSUE * unrestricted.sum():
                lesions.append(_Lesion(box, share, diameter))
                instances[box][share >= 0.5] = len(lesions)
                break
    return lesions, instances


def draw_head(rng: Generator, grid: Grid) -> tuple[Field, Field]:
    """Draw the FLAIR signal of a head, relative to white matter, and the share of white matter.

    The head fills the grid. It has skin, dark bone, folded cortex, white matter and dark
    ventricles. Sizes are proportional to the grid.

    Returns:
        Signal `[z, y, x]`, about 1 for white matter, and the share 0..1 of white matter in each
        voxel, where lesions may be placed.
    """
    half_mm = np.asarray(grid.shape) * np.asarray(grid.spacing_mm) / 2
    draw_field = partial(smooth_field, rng, grid.shape, grid.spacing_mm)
    scale = float(half_mm.min()) / 75  # an adult's head has a half-width of 75 mm
    # all further lengths are mm in an adult's head, times `scale`
    voxel_mm = float(np.mean(grid.spacing_mm))
    bend = np.float32(2.5 * scale)  # mm
    # coordinates from the centre of the head, bent by random fields
    axes = millimetre_axes(grid.shape, grid.spacing_mm)
    z, y, x = (axis + bend * draw_field(120 * scale) for axis in axes)
    # depth below the skin and below the surface of the brain
    skin = ellipsoid_depth((z, y, x), (0, 0, 0), 0.95 * half_mm * rng.uniform(0.95, 1, size=3))
    brain = skin - np.float32(12 * scale)
    # Distance to the nearest sulcus: the sulci follow the lines on which a random field is 0. Near
    # them, a wave of amplitude 1 increases by 2π per wavelength.
    wave = 26 * scale
    folds = np.abs(draw_field(wave)) * np.float32(wave / (2 * np.pi))
    # Sulci are 14 mm deep, and the fissure between the hemispheres is 26 mm deep. Farther inside,
    # the distance from the bottom counts.
    sulci = np.hypot(folds, np.maximum(brain - 14 * scale, 0))
    fissure = np.hypot(x, np.maximum(brain - 26 * scale, 0))
    surface = np.minimum(brain, np.minimum(sulci, fissure))  # depth below the folded surface
    # two bent ventricles, one on each side of the midline
    ventricle_scale = scale * rng.uniform(0.8, 1.4)
    ventricle_bend = (y / (32 * scale)) ** 2 * np.float32(8 * scale)
    ventricle_axes = (z - 10 * scale + ventricle_bend, y, np.abs(x) - 8 * scale - ventricle_bend)
    ventricle = coverage(
        ellipsoid_depth(
            ventricle_axes, (0, 0, 0), (6 * ventricle_scale, 32 * scale, 4.5 * ventricle_scale)
        ),
        voxel_mm,
    )
    # The shares of brain tissue, white matter and scalp. Grey matter is between 0.7 and 3.6 mm
    # below the surface.
    tissue = coverage(surface - 0.7 * scale, voxel_mm) * (1 - ventricle)
    white = coverage(surface - 3.6 * scale, voxel_mm) * (1 - ventricle)
    texture = 1 + 0.04 * draw_field(14 * scale)
    scalp = coverage(skin, voxel_mm) - coverage(skin - 5 * scale, voxel_mm)
    # scalp has the signal 0.9; in the brain, white matter adds 1 and grey matter 1.12 to the 0.12
    # of fluid
    signal = (
        0.9 * scalp + (0.12 * coverage(brain, voxel_mm) + white + 1.12 * (tissue - white)) * texture
    )
    return np.asarray(signal, np.float32), white


def acquire_mri(rng: Generator, signal: Field, spacing_mm: Spacing) -> Field:
    """Simulate the acquisition of an MRI signal: coil shading, noise and a random intensity scale.

    The noise is Rician, as in magnitude images (Gudbjartsson & Patz, Magn Reson Med 1995;34:910).
    """
    # shading by about 12 %, with a wavelength of 220 mm
    coil = np.exp(np.float32(0.12) * smooth_field(rng, signal.shape, spacing_mm, wave_mm=220.0))
    # of the real and the imaginary part; white matter has a signal of about 1
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(0.05)
    scale = np.float32(300 * np.exp(rng.normal(0, 0.2)))  # a spread of about 20 %
    return np.asarray(np.hypot(signal * coil + noise[0], noise[1]) * scale, np.float32)


def write_mri_phantoms(
    folder: Path,
    n_cases: PositiveInt,
    *,
    seed: NonNegativeInt,
    n_test: NonNegativeInt = 0,
    lesion_free_share: Probability = 1 / 6,
    shape: Shape3 = (96, 112, 96),
    spacing_mm: Spacing3 = (1.5, 1.5, 1.5),
    contrast: FiniteFloat = 1.0,
    n_lesions: NumberOfLesions = (10, 40),
    progress: Progress | None = None,
) -> None:
    """Write simulated FLAIR scans of heads with white-matter lesions as an nnU-Net raw folder.

    Lesions have diameters of 2 to 15 mm, median 7 mm.

    Args:
        folder: The folder to write.
        n_cases: Number of cases.
        seed: Seed of the set.
        n_test: The last `n_test` cases are test cases.
        lesion_free_share: Share of the cases without a lesion, spread evenly.
        shape: Voxels along z, y and x.
        spacing_mm: Size of a voxel along z, y and x.
        contrast: Factor for the difference between lesions and the tissue around them.
        n_lesions: Minimum and maximum number of lesions of a case with lesions. A lesion that fits
            nowhere is omitted.
        progress: Called after each case with its id, the number of finished cases and the number of
            all cases.

    Raises:
        ConfigError: If `n_test` is negative or larger than `n_cases`.
    """

    def simulate(rng: Generator, n: Range) -> Simulated:
        """Draw the image and the lesions of one head. `n`: minimum and maximum lesion count."""
        signal, white = draw_head(rng, grid)
        lesions, instances = _place_lesions(
            rng,
            tissue=white,
            spacing_mm=spacing_mm,
            n_lesions=n,
            diameter_mm=(2.0, 7.0, 15.0),  # minimum, median, maximum
            gap=1,
        )
        for lesion in lesions:
            # A lesion of 6 mm is about 0.62 brighter than white matter, which has the signal 1. The
            # exponent makes small lesions a bit fainter, as in patients. The limits exclude extreme
            # random factors. `lesion.share` makes the edges soft.
            excess = 0.62 * (lesion.diameter_mm / 6) ** 0.25 * np.exp(rng.normal(0, 0.25))
            signal[lesion.box] += lesion.share * np.float32(contrast * np.clip(excess, 0.25, 1.2))
        return acquire_mri(rng, signal, spacing_mm), instances

    about = f"SIMULATED FLAIR scans of heads with white-matter lesions; no patient. Seed {seed}."
    grid = Grid(shape, spacing_mm)
    cases = draw_cases(simulate, "SIM", n_cases, seed, lesion_free_share, grid, n_lesions, progress)
    write_nnunet_raw(folder, cases, n_cases, n_test, "simulated_flair", "FLAIR", about)


def _vessel_share(rng: Generator, grid: Grid, wave_mm: float, radius_mm: Field) -> Field:
    """Draw winding vessels, and return which fraction of each voxel (0..1) they cover.

    The vessels follow the lines on which two random fields are both 0.

    Args:
        rng: Draws the fields.
        grid: The grid of the scan.
        wave_mm: Wavelength of the fields, about the distance of the vessels.
        radius_mm: Radius of a vessel at each voxel.
    """
    first = smooth_field(rng, grid.shape, grid.spacing_mm, wave_mm)
    second = smooth_field(rng, grid.shape, grid.spacing_mm, wave_mm)
    # near its zeros, a wave of amplitude 1 increases by 2π per wavelength
    distance_mm = np.hypot(first, second) * np.float32(wave_mm / (2 * np.pi))
    return coverage(radius_mm - distance_mm, float(np.mean(grid.spacing_mm)))


@dataclass(frozen=True, eq=False)
class _ChestSpace:
    """The coordinates of a chest that fills a grid.

    The origin is the middle of the chest; z points up, y to the front. Organs are ellipsoids whose
    sizes are shares of half the extent of the grid. The depth below a surface is in mm, positive
    inside.

    Attributes:
        z: Position of each voxel in mm. A random field bends the three positions a bit, and with
            them all surfaces.
        y: The same along y.
        x: The same along x.
        half_mm: Half the extent of the grid along z, y and x.
        voxel_mm: Mean side of a voxel.
    """

    z: Field
    y: Field
    x: Field
    half_mm: Numbers
    voxel_mm: float

    @classmethod
    def draw(cls, rng: Generator, grid: Grid) -> "_ChestSpace":
        """Draw the coordinates of the voxels of a grid, bent by random smooth fields."""
        half_mm = np.asarray(grid.shape) * np.asarray(grid.spacing_mm) / 2
        bend = np.float32(0.02 * half_mm.min())  # 2 %, so that organs are not exact ellipsoids
        z, y, x = (
            axis + bend * smooth_field(rng, grid.shape, grid.spacing_mm, wave_mm=90)
            for axis in millimetre_axes(grid.shape, grid.spacing_mm)
        )
        return cls(z, y, x, half_mm, float(np.mean(grid.spacing_mm)))

    def torso_depth(self, size: Field) -> Field:
        """Return each voxel's depth in mm below the skin of a torso, an elliptic cylinder along z.

        The depth is negative outside. `size` `[3]` contains factors of the radii along z, y and x.
        """
        _, front, side = self.half_mm
        radii = (1, 0.96 * front, 0.98 * side) * size
        # with z = 0 everywhere, the ellipsoid becomes a cylinder along z, and the radius 1 has no
        # effect
        return ellipsoid_depth((0 * self.z, self.y, self.x), (0, 0, 0), radii)

    def lung_depth(self, size: Field) -> Field:
        """Return each voxel's depth in mm below the surface of the lung on its side.

        The depth is negative outside. The lungs are narrower at their tops. `size` `[3]` contains
        factors of the radii along z, y and x.
        """
        up, front, side = self.half_mm
        # up to 1.35 at the top: larger coordinates make the ellipsoid narrower
        narrow = 1 + 0.35 * np.clip(self.z / up, 0, 1) ** 2
        # |x| mirrors one lung to the other side; its centre is at 0.44 of half the width
        axes = (self.z, self.y * narrow, (np.abs(self.x) - 0.44 * side) * narrow)
        return ellipsoid_depth(axes, (0, 0, 0), (0.92 * up, 0.72 * front, 0.36 * side) * size)

    def heart_depth(self) -> Field:
        """Return each voxel's depth in mm below the surface of the heart, negative outside.

        The heart's centre is below the middle of the chest, in front of it, and towards +x. This is
        the right side of a radiograph in the usual display, which is the patient's left.
        """
        up, front, side = self.half_mm
        centre = (-0.3 * up, 0.15 * front, 0.12 * side)
        return ellipsoid_depth((self.z, self.y, self.x), centre, (0.4 * self.half_mm).tolist())

    def hilum_distance(self) -> Field:
        """Return each voxel's distance from the root (hilum) of the nearer lung.

        The unit is the smallest half extent of the grid. Vessels become thinner with this distance.
        """
        side = self.half_mm[2]
        # the hila are at 0.2 of half the width, on both sides of the middle
        distance_mm = np.sqrt(self.z**2 + self.y**2 + (np.abs(self.x) - 0.2 * side) ** 2)
        result: Field = distance_mm / np.float32(self.half_mm.min())
        return result


def _draw_chest(rng: Generator, grid: Grid) -> tuple[Field, Field]:
    """Draw a chest that fills the grid, without lesions and noise.

    The chest has a torso, two lungs and a heart, whose sizes are proportional to the grid
    (`_ChestSpace`). Ribs, spine and vessels have fixed sizes in mm.

    Returns:
        Hounsfield units of each voxel, and the share 0..1 of lung in each voxel, where nodules may
        be placed. Vessels in the lungs count as lung.
    """
    space = _ChestSpace.draw(rng, grid)
    voxel_mm = space.voxel_mm
    size = rng.uniform(0.92, 1.0, size=3)  # of this patient along each axis
    torso = space.torso_depth(size)
    lung = coverage(np.minimum(space.lung_depth(size), -space.heart_depth()), voxel_mm)
    vessels = _draw_vessels(rng, grid, space)
    air = _draw_air(rng, grid, space)
    # a shell 10 mm below the skin, 8 mm thick, cut into oblique ribs every 24 mm
    shell = coverage(4 - np.abs(torso - 10), voxel_mm)
    rib = shell * (np.cos((space.z + 0.5 * space.y) * 2 * np.pi / 24) > 0.2)
    # a cylinder with a radius of 15 mm near the back
    spine = coverage(15 - np.hypot(space.x, space.y + 0.7 * space.half_mm[1]), voxel_mm)
    hounsfield = np.full(grid.shape, -1000, np.float32)  # air
    # share and Hounsfield units of each tissue; a later one replaces the earlier ones
    tissues: list[tuple[Field, Any]] = [
        (coverage(torso, voxel_mm), 40),
        (rib, 350),
        (spine, 180),
        (lung, air),
        (lung * vessels, 45),
    ]
    for share, value in tissues:
        hounsfield += share * (value - hounsfield)
    return hounsfield, lung


def _draw_vessels(rng: Generator, grid: Grid, space: _ChestSpace) -> Field:
    """Draw large and small vessels of the lungs, which become thinner away from the hilum.

    Return the share 0..1 of each voxel that a vessel covers.
    """
    hilum = space.hilum_distance()
    large = _vessel_share(rng, grid, wave_mm=55, radius_mm=4.5 * np.exp(-1.5 * hilum))
    small = _vessel_share(rng, grid, wave_mm=24, radius_mm=1.4 * np.exp(-0.7 * hilum))
    return np.maximum(large, small)


def _draw_air(rng: Generator, grid: Grid, space: _ChestSpace) -> Field:
    """Draw the Hounsfield units of lung tissue at each voxel, with fine and coarse texture.

    Lung is denser at the back of the chest, because the patient is on his or her back.
    """
    fine = smooth_field(rng, grid.shape, grid.spacing_mm, wave_mm=7.0)
    coarse = smooth_field(rng, grid.shape, grid.spacing_mm, wave_mm=25.0)
    # y is in mm, positive at the front: 0.4 HU per mm
    return rng.normal(-860, 20) - np.float32(0.4) * space.y + 12 * fine + 18 * coarse


def write_ct_phantoms(
    folder: Path,
    n_cases: PositiveInt,
    *,
    seed: NonNegativeInt,
    n_test: NonNegativeInt = 0,
    lesion_free_share: Probability = 1 / 3,
    shape: Shape3 = (152, 128, 192),
    spacing_mm: Spacing3 = (1.5, 1.5, 1.5),
    contrast: FiniteFloat = 1.0,
    n_nodules: NumberOfLesions = (1, 6),
    progress: Progress | None = None,
) -> None:
    """Write simulated chest CT scans with nodules of 3 to 15 mm as an nnU-Net raw folder.

    By default a third of the scans has no nodule, as in LUNA16.

    Args:
        folder: The folder to write.
        n_cases: Number of cases.
        seed: Seed of the set.
        n_test: The last `n_test` cases are test cases.
        lesion_free_share: Share of the cases without a nodule, spread evenly.
        shape: Voxels along z, y and x.
        spacing_mm: Size of a voxel along z, y and x.
        contrast: Factor for the difference between nodules and lung.
        n_nodules: Minimum and maximum number of nodules of a case with nodules. A nodule that fits
            nowhere is omitted.
        progress: Called after each case with its id, the number of finished cases and the number of
            all cases.

    Raises:
        ConfigError: If `n_test` is negative or larger than `n_cases`.
    """

    def simulate(rng: Generator, n: Range) -> Simulated:
        """Draw the image and the lesions of one chest. `n`: minimum and maximum lesion count."""
        hounsfield, lung = _draw_chest(rng, grid)
        lesions, instances = _place_lesions(
            rng,
            tissue=lung,
            spacing_mm=spacing_mm,
            n_lesions=n,
            diameter_mm=(3.0, 6.0, 15.0),  # minimum, median, maximum
            gap=2,
        )
        for lesion in lesions:
            is_solid = rng.random() > 0.2  # otherwise the nodule is ground glass
            level = rng.uniform(-60, 80) if is_solid else rng.uniform(-650, -400)  # HU
            # a vessel in a nodule of ground glass stays as dense as it is
            excess = np.maximum(np.float32(level) - hounsfield[lesion.box], 0)
            hounsfield[lesion.box] += lesion.share * np.float32(contrast) * excess
        return _acquire_ct(rng, hounsfield, spacing_mm), instances

    about = f"SIMULATED chest CT with lung nodules; no patient. Seed {seed}."
    grid = Grid(shape, spacing_mm)
    cases = draw_cases(
        simulate, "SIMC", n_cases, seed, lesion_free_share, grid, n_nodules, progress
    )
    write_nnunet_raw(folder, cases, n_cases, n_test, "simulated_chest_ct", "CT", about)


def _acquire_ct(rng: Generator, hounsfield: Field, spacing_mm: Spacing) -> Field:
    """Simulate the acquisition of a CT scan: blur the chest and add noise.

    The blur has σ = 0.6 mm. The noise has a standard deviation of 40 HU, and a grain of σ = 0.5 mm.
    """
    white_noise = rng.standard_normal(hounsfield.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white_noise, [0.5 / s for s in spacing_mm])
    blurred = ndimage.gaussian_filter(hounsfield, [0.6 / s for s in spacing_mm])
    result: Field = blurred + np.float32(40 / grain.std()) * grain
    return result


def _acquire_radiograph(rng: Generator, attenuation: Field) -> Field:
    """Simulate the acquisition of a radiograph. Return 12-bit grey levels 0..4095.

    Radiation scatters, a detector counts photons with Poisson noise, and the negative logarithm of
    the counts is the grey level: pixels are bright if the chest absorbs much radiation. The 0.02
    and 99.7 percentiles of the image become 0 and 4095. `attenuation` `[y, x]` is the exponent of
    the absorption along the ray of each pixel.
    """
    scatter_sigma = 0.09 * min(attenuation.shape)  # in pixels
    light = np.exp(-attenuation)
    # the scatter is 30 % of the light
    light = light + 0.3 * ndimage.gaussian_filter(light, scatter_sigma, truncate=2.0)
    photons = 4e5  # that a pixel receives without a patient
    # the detector blurs with σ = 0.6 pixels
    counts = rng.poisson(ndimage.gaussian_filter(light, 0.6) * photons)
    density = -np.log(np.maximum(counts, 1) / photons)  # the logarithm of 0 is infinite
    # reduce slow changes of brightness, as the processing of digital radiographs does
    density -= 0.5 * ndimage.gaussian_filter(density, scatter_sigma, mode="nearest", truncate=2.0)
    lower, upper = np.percentile(density, (0.02, 99.7))
    result: Field = np.rint(np.clip((density - lower) / (upper - lower), 0, 1) * 4095)
    return result


def write_xray_phantoms(
    folder: Path,
    n_cases: PositiveInt,
    *,
    seed: NonNegativeInt,
    lesion_free_share: Probability = 1 / 4,
    shape: tuple[PositiveInt, PositiveInt] = (512, 512),
    pixel_mm: PositiveFloat = 0.7,
    contrast: FiniteFloat = 1.0,
    n_nodules: NumberOfLesions = (1, 4),
    progress: Progress | None = None,
) -> None:
    """Write simulated radiographs with nodules of 5 to 30 mm as a COCO folder with instance masks.

    A simulated chest, as in `write_ct_phantoms`, is projected along parallel rays. `images/`
    contains grey levels of 12 bits, and `masks/` contains nodule ids. Both are 16-bit PNG.

    Args:
        folder: The folder to write.
        n_cases: Number of cases.
        seed: Seed of the set.
        lesion_free_share: Share of the cases without a nodule, spread evenly.
        shape: Rows and columns.
        pixel_mm: Size of a pixel.
        contrast: Factor for the difference between nodules and lung.
        n_nodules: Minimum and maximum number of nodules of a case with nodules. A nodule that fits
            nowhere is omitted.
        progress: Called after each case with its id, the number of finished cases and the number of
            all cases.
    """
    # the chest is 0.66 as deep as the shorter side of the image, in 48 layers along the rays
    n_layers = 48
    depth_mm = 0.66 * min(shape) * pixel_mm / n_layers
    # it is simulated at half the resolution of the radiograph, rounded up
    volume_shape = ((shape[0] + 1) // 2, n_layers, (shape[1] + 1) // 2)
    volume = Grid(volume_shape, (2 * pixel_mm, depth_mm, 2 * pixel_mm))
    grid = Grid(shape, (pixel_mm, pixel_mm))

    def simulate(rng: Generator, n: Range) -> Simulated:
        """Draw one radiograph and its nodules. `n`: minimum and maximum lesion count."""
        hounsfield, lung = _draw_chest(rng, volume)
        per_mm = 0.0205 * np.maximum(1 + hounsfield / 1000, 0)  # of water at 60 keV (NISTIR 5632)
        attenuation = _project(per_mm, depth_mm, shape)
        lung_mm = _project(lung, depth_mm, shape)
        # a nodule is placed where the rays pass through much lung
        deep_lung = np.asarray(lung_mm > 0.4 * lung_mm.max(), np.float32)
        lesions, instances = _place_lesions(
            rng,
            tissue=deep_lung,
            spacing_mm=grid.spacing_mm,
            n_lesions=n,
            diameter_mm=(5.0, 15.0, 30.0),  # minimum, median, maximum
            gap=3,
        )
        for lesion in lesions:
            # per mm: 0.0205 of water minus 0.0041 of lung (−800 HU), which the nodule replaces,
            # times a random factor
            density = 0.0164 * rng.uniform(0.9, 2.0)
            absorbed = np.float32(contrast * density) * lesion.share * _thickness_mm(lesion)
            attenuation[lesion.box] += absorbed
        return _acquire_radiograph(rng, attenuation), instances

    cases = draw_cases(
        simulate, "SIMX", n_cases, seed, lesion_free_share, grid, n_nodules, progress
    )
    about = f"SIMULATED chest radiographs with nodules; no patient. Seed {seed}."
    _write_coco(folder, cases, about, pixel_mm)


def _project(values: Field, depth_mm: float, shape: tuple[int, int]) -> Field:
    """Integrate a quantity per mm, such as attenuation, along the rays of a radiograph.

    Args:
        values: The quantity at each voxel `[z, y, x]`, at half the resolution of the radiograph.
            The rays run along y.
        depth_mm: Size of a voxel along y.
        shape: Rows and columns of the radiograph.

    Returns:
        The integrals on the grid of the radiograph `[y, x]`, first row at the top.
    """
    # reversed, because z points up, and the first row of a picture is its top
    sums = values.sum(axis=1)[::-1] * depth_mm
    # twice the resolution; cut, because an odd number of rows or columns was rounded up
    result: Field = ndimage.zoom(sums, 2, order=1)[: shape[0], : shape[1]]
    return result


def _thickness_mm(lesion: _Lesion) -> Field:
    """Return the thickness of a nodule in mm along the ray of each pixel of its box.

    The nodule is as thick as a ball. In the projection, the ray at the distance r·d from the edge
    of a ball of radius r has the length 2r·√(d·(2 − d)) inside the ball. For an irregular outline,
    d is 1 at the point farthest from the edge.
    """
    # padded, because the border of the box must count as the edge of the nodule
    from_edge = ndimage.distance_transform_edt(np.pad(lesion.share >= 0.5, 1))[1:-1, 1:-1]
    d = from_edge / from_edge.max()  # 0 at the edge, 1 at the centre
    result: Field = lesion.diameter_mm * np.sqrt(d * (2 - d))
    return result


def _write_coco(folder: Path, cases: Iterable[SimulatedCase], about: str, pixel_mm: float) -> None:
    """Write simulated radiographs as a COCO folder.

    The folder contains `images/`, `masks/` with lesion ids, and `annotations.json`.

    Args:
        folder: The folder to write.
        cases: The cases, as `draw_cases` yields them.
        about: Description of the dataset.
        pixel_mm: Size of a pixel.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (case, levels, instances, geometry) in enumerate(cases, start=1):
        png = f"{case}.png"
        write_array(folder / "images" / png, levels.astype(np.uint16), geometry)
        write_array(folder / "masks" / png, instances.astype(np.uint16), geometry)
        height, width = geometry.shape
        images.append(
            {
                "id": image_id,
                "file_name": png,
                "mask_file": png,
                "patient": case,
                "width": width,
                "height": height,
                "pixel_mm": pixel_mm,
            }
        )
        for label, (rows, columns) in enumerate(ndimage.find_objects(instances), start=1):
            size = columns.stop - columns.start, rows.stop - rows.start  # width and height
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [float(n) for n in (columns.start, rows.start, *size)],
                    "area": int((instances == label).sum()),
                    "iscrowd": 0,
                    "mask_label": label,
                }
            )
    document = {
        "info": {"description": about, "license": "CC0-1.0"},
        "categories": [{"id": 1, "name": "nodule", "supercategory": "lesion"}],
        "images": images,
        "annotations": annotations,
    }
    write_json(folder / "annotations.json", document)


def draw_cases(
    simulate: Callable[[Generator, Range], Simulated],
    prefix: str,
    n_cases: int,
    seed: int,
    lesion_free_share: float,
    grid: Grid,
    n_lesions: Range,
    progress: Progress | None,
) -> Iterator[SimulatedCase]:
    """Simulate the cases of a set, and yield them in the order of their numbers.

    Case i has the id `<prefix>_<i>`. It depends only on the seed, i and the other arguments.

    Args:
        simulate: A function of a generator and the range of the number of lesions, which draws the
            image and the lesions of a case.
        prefix: The beginning of the case ids.
        n_cases: Number of cases.
        seed: Seed of the set.
        lesion_free_share: Share of the cases without a lesion. These cases are spread evenly.
        grid: The grid of all cases.
        n_lesions: Minimum and maximum number of lesions of a case with lesions.
        progress: Called after each case with its id, the number of finished cases and the number of
            all cases.
    """
    geometry = Geometry.from_spacing(tuple(grid.shape), tuple(grid.spacing_mm))
    n_lesion_free = 0
    for index in range(n_cases):
        n_free_before = n_lesion_free
        n_lesion_free = int((index + 1) * lesion_free_share + 1e-9)  # 0.29 · 100 is 28.999…
        case = f"{prefix}_{index:03d}"
        rng = default_rng([seed, index])
        # the case has no lesion if it increases the number of cases without a lesion
        image, lesions = simulate(rng, (0, 0) if n_lesion_free > n_free_before else n_lesions)
        yield SimulatedCase(case, image, lesions, geometry)
        if progress:
            progress(case, index + 1, n_cases)


def write_nnunet_raw(
    folder: Path,
    cases: Iterable[SimulatedCase],
    n_cases: int,
    n_test: int,
    name: str,
    channel: str,
    about: str,
) -> None:
    """Write simulated cases as an nnU-Net raw folder, the layout of an nnU-Net dataset.

    Images (`imagesTr`, `imagesTs`) are rounded and clipped to int16. In the masks (`labelsTr`,
    `labelsTs`), lesion voxels are 1. `Tr` means training, `Ts` test.

    Args:
        folder: The folder to write.
        cases: The cases, as `draw_cases` yields them.
        n_cases: Number of cases.
        n_test: The last `n_test` cases are test cases.
        name: Name of the dataset.
        channel: Name of its channel.
        about: Description of the dataset.

    Raises:
        ConfigError: If `n_test` is negative or larger than `n_cases`.
    """
    if not 0 <= n_test <= n_cases:
        raise ConfigError(
            f"{n_test=} is not a number from 0 to {n_cases=}. Set data.phantoms.n_test to such a "
            "number, or increase data.phantoms.n_cases."
        )
    for index, (case, image, lesions, geometry) in enumerate(cases):
        suffix = "Tr" if index < n_cases - n_test else "Ts"
        stored = np.clip(np.rint(image), -32768, 32767).astype(np.int16)
        write_array(folder / f"images{suffix}" / f"{case}_0000.nii.gz", stored, geometry)
        mask = (lesions > 0).astype(np.uint8)
        write_array(folder / f"labels{suffix}" / f"{case}.nii.gz", mask, geometry)
    write_dataset_json(
        folder,
        [channel],
        Labels.of({1: "lesion"}),
        ".nii.gz",
        name=name,
        description=about,
        licence="CC0-1.0",
        numTraining=n_cases - n_test,
        numTest=n_test,
    )


def write_array(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write an array `[*shape]` as an image file of one channel, in the format of the file's name.

    The folder is created if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array[None], geometry))


def _settings_of(write: Callable[..., None]) -> type[Settings]:
    """Create a class of settings from the parameters of a function that writes a dataset.

    The class checks the settings `data.phantoms.*` by the parameters' types and defaults. The
    parameters `folder` and `progress` are left out, because a user cannot set them.
    """
    fields: dict[str, Any] = {}
    for name, parameter in signature(write).parameters.items():
        if name not in ("folder", "progress"):  # these are not settings
            is_required = parameter.default is Parameter.empty
            # pydantic's default `...` means that the field is required
            fields[name] = (parameter.annotation, ... if is_required else parameter.default)
    return create_model(write.__name__, __base__=Settings, **fields)


def simulate_once(
    root: Path,
    phantoms: Mapping[str, Any],
    bar: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
) -> None:
    """Simulate a dataset at `root`, unless the folder exists already.

    An existing folder is never changed. It was simulated by an earlier run, or contains data of the
    user.

    Args:
        root: The folder of the dataset.
        phantoms: The `kind` (mri, ct, xray) and the arguments of `write_<kind>_phantoms`. They
            are stored in the folder.
        bar: Makes a context manager, such as a progress bar, that yields the argument `progress`
            of `write_<kind>_phantoms`.

    Raises:
        ConfigError: If an argument is unknown, wrong or missing, or `root` was simulated with
            another kind or other arguments.
        ReadError: If the stored arguments of `root` cannot be read.
        OutputError: If the folder cannot be written.
    """
    writers: Mapping[str, Callable[..., None]] = {
        "mri": write_mri_phantoms,
        "ct": write_ct_phantoms,
        "xray": write_xray_phantoms,
    }
    arguments = dict(phantoms)
    kind = str(arguments.pop("kind", None))
    require_one_of("data.phantoms.kind: the kind", kind, writers)
    write = writers[kind]
    try:
        settings = read(_settings_of(write), arguments)
    except ConfigError as error:
        raise ConfigError(f"data.phantoms: {error}") from None
    stored = {"kind": kind, **settings.to_plain()}
    if root.exists():
        path = root / SETTINGS
        # a folder without the file is data of the user, which is used as it is
        earlier = read_json(path) if path.is_file() else stored
        if isinstance(earlier, dict) and "kind" not in earlier:  # version 1.0 did not store it
            earlier = {"kind": kind, **earlier}
        if earlier != stored:
            raise ConfigError(
                f"{root} was simulated with other settings ({earlier}, not {stored}). Set "
                "data.root to another folder, or remove this one."
            )
        return
    log.info("Simulated scans are written to %s.", root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # an interrupted run must not leave an incomplete dataset at `root`
        with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            unfinished = Path(folder) / root.name
            with bar() as progress:
                write(unfinished, **dict(settings), progress=progress)
            write_json(unfinished / SETTINGS, stored)
            if not root.exists():  # another process may have been faster
                unfinished.replace(root)
    except OSError as error:
        raise OutputError(f"{root}: the simulated dataset cannot be written: {error}.") from error
