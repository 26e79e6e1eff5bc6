"""Simulated scans with exact references, to try lesionseg without the data of patients.

A case is made in three steps: smooth tissue, lesions with irregular outlines, and the noise and
blur of a scanner. Case i of a set depends only on the seed and on i. The files of a set state that
it is simulated. Numbers measured on simulated scans are not claims about patients.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ConfigError, OutputError, suggest
from lesionseg.io.files import read_json, write_json
from lesionseg.io.volumes import write_volume
from lesionseg.ops.components import label_components

log = logging.getLogger(__name__)

__all__ = [
    "VisitSettings",
    "simulate_once",
    "simulate_visits",
    "write_ct_phantoms",
    "write_mri_phantoms",
    "write_visit_phantoms",
    "write_xray_phantoms",
]

Field = NDArray[np.floating[Any]]
Outline = Callable[[Generator, Field], Field]
Shape = Sequence[int]
Spacing = Sequence[float]
Grid = tuple[Shape, Spacing]  # shape in voxels, spacing in mm
Placed = tuple[tuple[slice, ...], Field]  # box of a lesion, and share 0..1 of each voxel in it
Range = tuple[int, int]  # least and most, inclusive
Simulated = tuple[Field, NDArray[Any]]  # image and lesions `[*shape]`
SimulatedCase = tuple[str, Field, NDArray[Any], Geometry]
Images = Mapping[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]
SUBSAMPLES = 3  # points along each axis of a voxel, to count the share that a lesion covers
SETTINGS = "simulation.json"
TRIES = 60  # places tried for a lesion before it is left out


def millimetre_axes(shape: Shape, spacing_mm: Spacing) -> list[Field]:
    """Return the coordinates of voxel centres in mm, one broadcastable array per axis.

    The centre of the volume has the coordinate 0.

    >>> [axis.ravel().tolist() for axis in millimetre_axes((2, 3), (1.0, 2.0))]
    [[-0.5, 0.5], [-2.0, 0.0, 2.0]]
    """
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    return [np.asarray(axis, dtype=np.float32) for axis in np.ix_(*axes)]


def smooth_field(rng: Generator, shape: Shape, spacing_mm: Spacing, wave_mm: float) -> Field:
    """Draw a random field `[*shape]` of mean 0, variance 1 and about the given wavelength.

    White noise on a coarse grid with 2.5 nodes per wavelength is upsampled by cubic B-splines. The
    time hardly depends on the wavelength, unlike that of a Gaussian filter.
    """
    node_mm = wave_mm / 2.5
    nodes = [int(np.ceil(n * s / node_mm)) + 3 for n, s in zip(shape, spacing_mm, strict=True)]
    field = ndimage.spline_filter(rng.standard_normal(nodes), order=3, output=np.float32)
    for axis, (n, s) in enumerate(zip(shape, spacing_mm, strict=True)):
        position = 1.0 + rng.random() * 0.5 + np.arange(n) * s / node_mm
        node = np.floor(position).astype(int)
        t = position - node
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        matrix = np.zeros((n, field.shape[axis]), dtype=np.float32)
        for offset, weight in enumerate(weights):
            column = np.clip(node - 1 + offset, 0, field.shape[axis] - 1)
            np.add.at(matrix, (np.arange(n), column), weight / 6)
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), dtype=np.float32)


def coverage(depth_mm: Field, width_mm: float) -> Field:
    """Return the share 0..1 of a voxel that is inside a surface.

    `depth_mm`: distance from the voxel's centre to the surface, positive inside. `width_mm`: the
    size of a voxel, over which the share increases linearly.
    """
    return np.asarray(np.clip(depth_mm / np.float32(width_mm) + np.float32(0.5), 0, 1))


def ellipsoid_depth(
    axes: Sequence[Field | np.floating[Any]], centre_mm: Sequence[float], radii_mm: Sequence[float]
) -> Field:
    """Return the approximate distance in mm to the surface of an ellipsoid, positive inside.

    The first-order formula is (1 − f) · f / |∇f| with f = |x / r|. It is exact for a sphere.
    """
    each = zip(axes, centre_mm, radii_mm, strict=True)
    scaled = [(a - np.float32(c)) / np.float32(r) for a, c, r in each]
    floor = np.float32(1e-3)  # makes the quotient at the centre finite: it equals the radius
    value = np.sqrt(sum(x * x for x in scaled)) + floor
    slope = np.sqrt(sum((x / np.float32(r)) ** 2 for x, r in zip(scaled, radii_mm, strict=True)))
    return np.asarray((1 - value) * value / (slope + floor / min(radii_mm)), dtype=np.float32)


def rippled_radius(rng: Generator, points: Field) -> Field:
    """Return |A·x| of a random ellipsoid plus ripples, at `points` `[n, d]` in units of the radius.

    A level set of this function is the irregular outline of a lesion.
    """
    dims = points.shape[1]
    turn, _ = np.linalg.qr(rng.standard_normal((dims, dims)))
    stretch = np.exp(rng.normal(0, 0.2, size=dims))
    radius = np.linalg.norm(points @ (turn * (stretch / stretch.prod() ** (1 / dims))), axis=1)
    waves = rng.normal(0, 1.8, size=(dims, 3))
    phases = rng.uniform(0, 2 * np.pi, size=3)
    return np.asarray(radius + 0.12 * np.cos(points @ waves + phases).sum(axis=1))


def lesion_share(
    rng: Generator,
    diameter: float,
    spacing_mm: Spacing,
    jitter: Field,
    outline: Outline = rippled_radius,
) -> Field:
    """Return the share 0..1 of each voxel that an irregular lesion covers, in a box around it.

    Args:
        rng: draws the outline.
        diameter: the lesion has the volume of a ball of this diameter in mm.
        spacing_mm: of the voxels.
        jitter: offset `[d]` of the lesion from the centre of the box, in voxels.
        outline: a function of points that increases outwards; a level set of it is the outline.

    Returns:
        An array with an odd number of voxels along each axis.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    dims = len(spacing_mm)
    half = np.ceil(0.95 * diameter / spacing).astype(int) + 1
    fine = [
        ((np.arange((2 * h + 1) * SUBSAMPLES) + 0.5) / SUBSAMPLES - h - 0.5 - j) * s
        for h, s, j in zip(half, spacing, jitter, strict=True)
    ]
    points = np.stack([g.ravel() for g in np.meshgrid(*fine, indexing="ij")], axis=1)
    level = outline(rng, points / (diameter / 2))
    ball = np.pi / (2 * dims) * diameter**dims
    n_inside = min(round(ball / (spacing.prod() / SUBSAMPLES**dims)), level.size - 1)
    covered = level < np.partition(level, n_inside)[n_inside]
    shape = [n for h in half for n in (2 * h + 1, SUBSAMPLES)]
    return np.asarray(covered.reshape(shape).mean(axis=tuple(range(1, 2 * dims, 2))), np.float32)


def place_at(
    centre: NDArray[np.int64], share: Field, tissue: Field, labels: NDArray[Any], gap: int
) -> Placed | None:
    """Place a lesion at a voxel, restricted to the tissue in which it may grow.

    Args:
        centre: the voxel.
        share: the lesion, as `lesion_share` returns it.
        tissue: share 0..1 of tissue in each voxel.
        labels: the lesions that were placed before, as positive values.
        gap: least number of voxels to other lesions and to the border of the volume.

    Returns:
        The box and the shares of its voxels. None if the lesion does not fit there, or if the
        tissue would divide it into several components.
    """
    half = np.array(share.shape) // 2
    start = centre - half
    stop = centre + half + 1
    if (start < gap).any() or (stop > np.array(labels.shape) - gap).any():
        return None
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    wide = tuple(slice(a - gap, b + gap) for a, b in zip(start, stop, strict=True))
    share = share * tissue[box]
    near = ndimage.maximum_filter(np.pad(share >= 0.5, gap), 2 * gap + 1)
    is_free = not (labels[wide][near] > 0).any()
    return (box, share) if is_free and label_components(share >= 0.5).max() == 1 else None


def _place_lesions(
    rng: Generator,
    tissue: Field,
    spacing_mm: Spacing,
    n_lesions: Range,
    diameter_mm: tuple[float, float, float],
    gap: int,
) -> tuple[list[tuple[*Placed, float]], NDArray[np.int32]]:
    """Place lesions in a tissue. Return box, shares and diameter of each, and instances 1..n.

    Their number is drawn from `n_lesions` (least, most), their log-normal diameters from
    `diameter_mm` (least, median, most). Large lesions are placed first. A voxel is lesion if at
    least half of it is covered. Lesions never touch. A lesion that fits nowhere is left out.
    """
    instances = np.zeros(tissue.shape, dtype=np.int32)
    lesions: list[tuple[*Placed, float]] = []
    places = np.flatnonzero(tissue > 0.5)
    n = int(rng.integers(n_lesions[0], n_lesions[1] + 1)) if len(places) else 0
    drawn = np.exp(rng.normal(np.log(diameter_mm[1]), 0.45, size=n))
    for diameter in np.sort(np.clip(drawn, diameter_mm[0], diameter_mm[2]))[::-1].tolist():
        whole = lesion_share(rng, diameter, spacing_mm, rng.uniform(-0.5, 0.5, tissue.ndim))
        for _ in range(TRIES):
            centre = np.array(np.unravel_index(int(rng.choice(places)), tissue.shape))
            placed = place_at(centre, whole, tissue, instances, gap)
            if placed is not None and placed[1].sum() > 0.6 * whole.sum():
                lesions.append((*placed, diameter))
                instances[placed[0]][placed[1] >= 0.5] = len(lesions)
                break
    return lesions, instances


def _head(rng: Generator, grid: Grid) -> tuple[Field, Field]:
    """Draw the FLAIR signal of a head, relative to white matter, and the share of white matter.

    The head fills the grid. It has skin, dark bone, folded cortex, white matter and dark
    ventricles.
    """
    half = np.asarray(grid[0]) * np.asarray(grid[1]) / 2
    draw_field = partial(smooth_field, rng, grid[0], grid[1])
    scale = float(half.min()) / 75  # an adult's head has a half-width of 75 mm
    voxel = float(np.mean(grid[1]))
    bend = np.float32(2.5 * scale)
    z, y, x = (axis + bend * draw_field(120 * scale) for axis in millimetre_axes(*grid))
    skin = ellipsoid_depth((z, y, x), (0, 0, 0), 0.95 * half * rng.uniform(0.95, 1, size=3))
    brain = skin - np.float32(12 * scale)
    wave = 26 * scale  # wavelength of the folds; the field is zero along the sulci
    folds = np.abs(draw_field(wave)) * np.float32(wave / (2 * np.pi))
    sulci = np.hypot(folds, np.maximum(brain - 14 * scale, 0))
    fissure = np.hypot(x, np.maximum(brain - 26 * scale, 0))
    surface = np.minimum(brain, np.minimum(sulci, fissure))
    wide = scale * rng.uniform(0.8, 1.4)
    bow = (y / (32 * scale)) ** 2 * np.float32(8 * scale)
    horns = (z - 10 * scale + bow, y, np.abs(x) - 8 * scale - bow)
    ventricle = coverage(
        ellipsoid_depth(horns, (0, 0, 0), (6 * wide, 32 * scale, 4.5 * wide)), voxel
    )
    tissue = coverage(surface - 0.7 * scale, voxel) * (1 - ventricle)
    white = coverage(surface - 3.6 * scale, voxel) * (1 - ventricle)
    texture = 1 + 0.04 * draw_field(14 * scale)
    scalp = coverage(skin, voxel) - coverage(skin - 5 * scale, voxel)
    signal = (
        0.9 * scalp + (0.12 * coverage(brain, voxel) + white + 1.12 * (tissue - white)) * texture
    )
    return np.asarray(signal, dtype=np.float32), white


def _acquire_mri(rng: Generator, signal: Field, spacing_mm: Spacing) -> Field:
    """Add coil shading, Rician noise and a random intensity scale to an MRI signal.

    Rician noise: Gudbjartsson & Patz, Magn Reson Med 1995;34:910.
    """
    coil = np.exp(np.float32(0.12) * smooth_field(rng, signal.shape, spacing_mm, 220.0))
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(0.05)
    scale = np.float32(300 * np.exp(rng.normal(0, 0.2)))
    return np.asarray(np.hypot(signal * coil + noise[0], noise[1]) * scale, dtype=np.float32)


def write_mri_phantoms(
    folder: Path,
    n_cases: int,
    *,
    seed: int,
    n_test: int = 0,
    lesion_free_share: float = 1 / 6,
    shape: tuple[int, ...] = (96, 112, 96),
    spacing_mm: tuple[float, ...] = (1.5, 1.5, 1.5),
    contrast: float = 1.0,
    n_lesions: Range = (10, 40),
    progress: Progress | None = None,
) -> None:
    """Write simulated FLAIR scans of heads with white-matter lesions as an nnU-Net raw folder.

    Lesions have diameters of 2 to 15 mm, median 7 mm.

    Args:
        folder: the folder to write.
        n_cases: number of cases.
        seed: seed of the set.
        n_test: the last `n_test` cases are test cases.
        lesion_free_share: share of the cases without a lesion, spread evenly.
        shape: voxels along z, y and x.
        spacing_mm: size of a voxel along z, y and x.
        contrast: factor for the difference between lesions and the tissue around them.
        n_lesions: least and most lesions of a case.
        progress: called with case, number done and total.

    Raises:
        ConfigError: if the numbers cannot be simulated, such as no case.
    """

    def simulate(rng: Generator, n: Range) -> Simulated:
        signal, white = _head(rng, (shape, spacing_mm))
        lesions, instances = _place_lesions(rng, white, spacing_mm, n, (2.0, 7.0, 15.0), gap=1)
        for box, share, diameter in lesions:  # small ones tend to be fainter
            excess = 0.62 * (diameter / 6) ** 0.25 * np.exp(rng.normal(0, 0.25))
            signal[box] += share * np.float32(contrast * np.clip(excess, 0.25, 1.2))
        return _acquire_mri(rng, signal, spacing_mm), instances

    about = f"SIMULATED FLAIR scans of heads with white-matter lesions; no patient. Seed {seed}."
    grid = (shape, spacing_mm)
    cases = draw_cases(simulate, "SIM", n_cases, seed, lesion_free_share, grid, n_lesions, progress)
    write_nnunet_raw(folder, cases, n_cases, n_test, "simulated_flair", "FLAIR", about)


def _vessel_share(rng: Generator, grid: Grid, wave_mm: float, radius_mm: Field) -> Field:
    """Draw winding vessels around the lines on which two random fields are 0.

    Return the share 0..1 of each voxel that a vessel covers.
    """
    first = smooth_field(rng, grid[0], grid[1], wave_mm)
    second = smooth_field(rng, grid[0], grid[1], wave_mm)
    distance = np.hypot(first, second)
    return coverage(
        radius_mm - distance * np.float32(wave_mm / (2 * np.pi)), float(np.mean(grid[1]))
    )


def _chest(rng: Generator, grid: Grid) -> tuple[Field, Field]:
    """Draw the Hounsfield units of a chest that fills the grid, and the share of lung."""
    half = np.asarray(grid[0]) * np.asarray(grid[1]) / 2
    up, front, side = half
    voxel = float(np.mean(grid[1]))
    draw_field = partial(smooth_field, rng, grid[0], grid[1])
    bend = np.float32(0.02 * half.min())
    z, y, x = (axis + bend * draw_field(90) for axis in millimetre_axes(*grid))
    size = rng.uniform(0.92, 1.0, size=3)
    torso = ellipsoid_depth((0 * z, y, x), (0, 0, 0), (1, 0.96 * front, 0.98 * side) * size)
    narrow = 1 + 0.35 * np.clip(z / up, 0, 1) ** 2  # the lungs are narrower at their tops
    both = (z, y * narrow, (np.abs(x) - 0.44 * side) * narrow)
    lungs = ellipsoid_depth(both, (0, 0, 0), (0.92 * up, 0.72 * front, 0.36 * side) * size)
    heart = ellipsoid_depth((z, y, x), (-0.3 * up, 0.15 * front, 0.12 * side), 0.4 * half)
    lung = coverage(np.minimum(lungs, -heart), voxel)
    hilum = np.sqrt(z**2 + y**2 + (np.abs(x) - 0.2 * side) ** 2) / np.float32(half.min())
    large = _vessel_share(rng, grid, 55, 4.5 * np.exp(-1.5 * hilum))
    small = _vessel_share(rng, grid, 24, 1.4 * np.exp(-0.7 * hilum))
    fine = draw_field(7.0)
    coarse = draw_field(25.0)
    air = rng.normal(-860, 20) - np.float32(0.4) * y + 12 * fine + 18 * coarse
    rib = coverage(4 - np.abs(torso - 10), voxel) * (np.cos((z + 0.5 * y) * 2 * np.pi / 24) > 0.2)
    spine = coverage(15 - np.hypot(x, y + 0.7 * front), voxel)
    hounsfield = np.full(grid[0], -1000, dtype=np.float32)
    filled = ((coverage(torso, voxel), 40), (rib, 350), (spine, 180), (lung, air))
    for share, value in (*filled, (lung * np.maximum(large, small), 45)):
        hounsfield += share * (value - hounsfield)
    return hounsfield, lung


def write_ct_phantoms(
    folder: Path,
    n_cases: int,
    *,
    seed: int,
    n_test: int = 0,
    lesion_free_share: float = 1 / 3,
    shape: tuple[int, ...] = (152, 128, 192),
    spacing_mm: tuple[float, ...] = (1.5, 1.5, 1.5),
    contrast: float = 1.0,
    n_nodules: Range = (1, 6),
    progress: Progress | None = None,
) -> None:
    """Write simulated chest CT scans with nodules of 3 to 15 mm as an nnU-Net raw folder.

    A third of the scans has no nodule, as in LUNA16.

    Args:
        folder: the folder to write.
        n_cases: number of cases.
        seed: seed of the set.
        n_test: the last `n_test` cases are test cases.
        lesion_free_share: share of the cases without a nodule, spread evenly.
        shape: voxels along z, y and x.
        spacing_mm: size of a voxel along z, y and x.
        contrast: factor for the difference between nodules and lung.
        n_nodules: least and most nodules of a case.
        progress: called with case, number done and total.

    Raises:
        ConfigError: if the numbers cannot be simulated, such as no case.
    """

    def simulate(rng: Generator, n: Range) -> Simulated:
        hounsfield, lung = _chest(rng, (shape, spacing_mm))
        lesions, instances = _place_lesions(rng, lung, spacing_mm, n, (3.0, 6.0, 15.0), gap=2)
        for box, share, _ in lesions:
            is_solid = rng.random() > 0.2  # the remaining ones are ground glass
            level = rng.uniform(-60, 80) if is_solid else rng.uniform(-650, -400)
            excess = np.maximum(np.float32(level) - hounsfield[box], 0)
            hounsfield[box] += share * np.float32(contrast) * excess
        white = rng.standard_normal(shape, dtype=np.float32)
        grain = ndimage.gaussian_filter(white, [0.5 / s for s in spacing_mm])  # σ = 0.5 mm
        blurred = ndimage.gaussian_filter(hounsfield, [0.6 / s for s in spacing_mm])
        return blurred + np.float32(40 / grain.std()) * grain, instances

    about = f"SIMULATED chest CT with lung nodules; no patient. Seed {seed}."
    grid = (shape, spacing_mm)
    cases = draw_cases(
        simulate, "SIMC", n_cases, seed, lesion_free_share, grid, n_nodules, progress
    )
    write_nnunet_raw(folder, cases, n_cases, n_test, "simulated_chest_ct", "CT", about)


def _radiograph(rng: Generator, attenuation: Field) -> Field:
    """Return the pixel values 0..4095 of a radiograph: scatter, Poisson noise, film density.

    Bright pixels are those where the chest absorbs most of the radiation.
    """
    wide = 0.09 * min(attenuation.shape)  # σ of the scatter in pixels
    light = np.exp(-attenuation)
    light = light + 0.3 * ndimage.gaussian_filter(light, wide, truncate=2.0)
    photons = 4e5  # that a pixel receives without a patient
    counts = rng.poisson(ndimage.gaussian_filter(light, 0.6) * photons)
    density = -np.log(np.maximum(counts, 1) / photons)
    density -= 0.5 * ndimage.gaussian_filter(density, wide, mode="nearest", truncate=2.0)
    lower, upper = np.percentile(density, (0.02, 99.7))
    return np.asarray(np.rint(np.clip((density - lower) / (upper - lower), 0, 1) * 4095))


def write_xray_phantoms(
    folder: Path,
    n_cases: int,
    *,
    seed: int,
    lesion_free_share: float = 1 / 4,
    shape: tuple[int, int] = (512, 512),
    pixel_mm: float = 0.7,
    contrast: float = 1.0,
    n_nodules: Range = (1, 4),
    progress: Progress | None = None,
) -> None:
    """Write simulated radiographs with nodules of 5 to 30 mm as a COCO folder with instance masks.

    A chest like those of `write_ct_phantoms` is projected along parallel rays. `images/` contains
    12-bit values in 16-bit PNG, `masks/` contains nodule ids in 8-bit PNG.

    Args:
        folder: the folder to write.
        n_cases: number of cases.
        seed: seed of the set.
        lesion_free_share: share of the cases without a nodule, spread evenly.
        shape: rows and columns.
        pixel_mm: size of a pixel.
        contrast: factor for the difference between nodules and lung.
        n_nodules: least and most nodules of a case.
        progress: called with case, number done and total.

    Raises:
        ConfigError: if the numbers cannot be simulated, such as no case.
    """
    depth_mm = 0.66 * min(shape) * pixel_mm / 48
    # the chest is simulated at half the resolution of the radiograph
    volume_shape = (-(-shape[0] // 2), 48, -(-shape[1] // 2))
    volume = (volume_shape, (2 * pixel_mm, depth_mm, 2 * pixel_mm))
    grid = (shape, (pixel_mm, pixel_mm))

    def simulate(rng: Generator, n: Range) -> Simulated:
        hounsfield, lung = _chest(rng, volume)
        per_mm = 0.0205 * np.maximum(1 + hounsfield / 1000, 0)  # of water at 60 keV (NISTIR 5632)
        rays = (a.sum(axis=1)[::-1] * depth_mm for a in (per_mm, lung))
        attenuation, lung_mm = (ndimage.zoom(a, 2, order=1)[: shape[0], : shape[1]] for a in rays)
        deep = np.asarray(lung_mm > 0.4 * lung_mm.max(), dtype=np.float32)
        lesions, instances = _place_lesions(rng, deep, grid[1], n, (5.0, 15.0, 30.0), gap=3)
        for box, share, diameter in lesions:
            depth = ndimage.distance_transform_edt(np.pad(share >= 0.5, 1))[1:-1, 1:-1]
            thickness = diameter * np.sqrt(depth / depth.max() * (2 - depth / depth.max()))
            density = 0.0164 * rng.uniform(0.9, 2.0)  # tissue replaces lung
            attenuation[box] += np.float32(contrast * density) * share * thickness
        return _radiograph(rng, attenuation), instances

    size = {"width": shape[1], "height": shape[0], "pixel_mm": pixel_mm}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    cases = draw_cases(
        simulate, "SIMX", n_cases, seed, lesion_free_share, grid, n_nodules, progress
    )
    for index, (case, levels, instances, geometry) in enumerate(cases, start=1):
        png = f"{case}.png"
        _write(folder / "images" / png, levels.astype(np.uint16), geometry)
        _write(folder / "masks" / png, instances.astype(np.uint8), geometry)
        images.append({"id": index, "file_name": png, "mask_file": png, "patient": case, **size})
        for label, (rows, columns) in enumerate(ndimage.find_objects(instances), start=1):
            box = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
            extent = {"bbox": [float(v) for v in box], "area": int((instances == label).sum())}
            ids = {"id": len(annotations) + 1, "image_id": index, "category_id": 1}
            annotations.append({**ids, **extent, "iscrowd": 0, "mask_label": label})
    about = f"SIMULATED chest radiographs with nodules; no patient. Seed {seed}."
    info = {"info": {"description": about, "license": "CC0-1.0"}}
    categories = {"categories": [{"id": 1, "name": "nodule", "supercategory": "lesion"}]}
    document = {**info, **categories, "images": images, "annotations": annotations}
    write_json(folder / "annotations.json", document)


@dataclass(frozen=True)
class VisitSettings:
    """Settings of simulated pairs of visits.

    Attributes:
        shape: voxels along z, y and x.
        spacing_mm: size of a voxel along z, y and x.
        n_lesions: number of new, gone, enlarged, shrunk and stable lesions.
        diameter_mm: least and most; diameters are log-uniform between them.
        growth: factor for the diameter of an enlarged lesion, divisor for that of a shrunk one.
    """

    shape: tuple[int, ...] = (48, 96, 96)
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    n_lesions: tuple[int, ...] = (2, 1, 1, 1, 8)
    diameter_mm: tuple[float, float] = (3.0, 12.0)
    growth: float = 1.5


def simulate_visits(rng: Generator, settings: VisitSettings) -> tuple[Images, Images]:
    """Draw a head with lesions at two visits. Each visit has its own noise and shading.

    Args:
        rng: draws everything.
        settings: grid, number, size and growth of lesions.

    Returns:
        Two dictionaries of arrays `[Z, Y, X]`: the scans (`before`, `after`) and the masks
        (`before`, `after`, `new`). The mask `new` has the lesions that only the later visit has.
    """
    shape = settings.shape
    spacing_mm = settings.spacing_mm
    growth = settings.growth
    radii = 0.375 * np.asarray(shape) * np.asarray(spacing_mm)
    within = ellipsoid_depth(millimetre_axes(shape, spacing_mm), (0, 0, 0), radii) > 0
    brain = np.asarray(within, dtype=np.float32)
    places = np.argwhere(within)
    shares = {name: np.zeros(shape, dtype=np.float32) for name in ("before", "after", "new")}
    # factors of the diameter in the masks before, after and new; 0: the mask lacks the lesion
    fates = [(0, 1, 1), (1, 0, 0), (1, growth, 0), (1, 1 / growth, 0), (1, 1, 0)]
    log_least, log_most = np.log(settings.diameter_mm)
    for factors, n in zip(fates, settings.n_lesions, strict=True):
        for diameter in np.exp(rng.uniform(log_least, log_most, size=n)).tolist():
            outline = int(rng.integers(2**31))  # the seed of one outline for all sizes
            jitter = rng.uniform(-0.5, 0.5, size=3)
            drawn: dict[str, Field] = {}
            for name, factor in zip(shares, factors, strict=True):
                if factor:
                    of_outline = default_rng(outline)
                    size = diameter * factor
                    drawn[name] = lesion_share(of_outline, size, spacing_mm, jitter)
            taken = np.maximum(shares["before"], shares["after"]) >= 0.5
            for centre in rng.permutation(places)[:TRIES]:
                fits = {k: place_at(centre, share, brain, taken, 3) for k, share in drawn.items()}
                placed = {name: place for name, place in fits.items() if place}
                if len(placed) == len(drawn):
                    for name, (box, share) in placed.items():
                        shares[name][box] = np.maximum(shares[name][box], share)
                    break
    tissue, _ = _head(rng, (shape, spacing_mm))
    signals = {visit: tissue + np.float32(0.6) * shares[visit] for visit in ("before", "after")}
    scans = {visit: _acquire_mri(rng, signal, spacing_mm) for visit, signal in signals.items()}
    return scans, {name: (share >= 0.5).astype(np.uint8) for name, share in shares.items()}


def write_visit_phantoms(
    folder: Path, n: int, settings: VisitSettings | None = None, seed: int = 0
) -> Path:
    """Write `n` pairs of visits, and return `folder`.

    The masks are in its folders `before`, `after` and `new`, the scans in `before_images` and
    `after_images`.

    Args:
        folder: the folder to write.
        n: number of pairs.
        settings: by default `VisitSettings()`.
        seed: pair i depends only on the seed and on i.
    """
    settings = settings or VisitSettings()
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    for number in range(n):
        scans, masks = simulate_visits(default_rng((seed, number)), settings)
        for place, array in {**masks, **{f"{v}_images": scan for v, scan in scans.items()}}.items():
            _write(folder / place / f"simulated_{number:03d}.nii.gz", array, geometry)
    return folder


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
    """Yield each simulated case. Lesion-free cases are spread evenly.

    `simulate(rng, n_lesions)` draws the image and the lesions of a case.
    """
    shape, spacing_mm = grid
    if n_cases < 1 or len(shape) != len(spacing_mm) or not 1 <= n_lesions[0] <= n_lesions[1]:
        raise ConfigError(f"Cannot simulate {n_cases=}, {shape=}, {spacing_mm=}, {n_lesions=}.")
    geometry = Geometry.from_spacing(tuple(shape), tuple(spacing_mm))
    for index in range(n_cases):
        n_free = [int(i * lesion_free_share + 1e-9) for i in (index, index + 1)]
        n = (0, 0) if n_free[1] > n_free[0] else n_lesions
        case = f"{prefix}_{index:03d}"
        yield case, *simulate(default_rng([seed, index]), n), geometry
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
    """Write cases as an nnU-Net raw folder, with images as int16.

    `name`, `channel` and `about` are the dataset's name, the name of its channel and its
    description. The last `n_test` cases are test cases.
    """
    if not 0 <= n_test <= n_cases:
        raise ConfigError(f"n_test must be 0 to n_cases, not {n_test=} of {n_cases=}.")
    for index, (case, image, lesions, geometry) in enumerate(cases):
        part = "Tr" if index < n_cases - n_test else "Ts"
        stored = np.clip(np.rint(image), -32768, 32767).astype(np.int16)
        _write(folder / f"images{part}" / f"{case}_0000.nii.gz", stored, geometry)
        mask = (lesions > 0).astype(np.uint8)
        _write(folder / f"labels{part}" / f"{case}.nii.gz", mask, geometry)
    about_set = {"name": name, "description": about, "licence": "CC0-1.0", "file_ending": ".nii.gz"}
    labels = {"channel_names": {"0": channel}, "labels": {"background": 0, "lesion": 1}}
    numbers = {"numTraining": n_cases - n_test, "numTest": n_test}
    write_json(folder / "dataset.json", {**about_set, **labels, **numbers})


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array[None], geometry))


def simulate_once(
    root: Path,
    phantoms: Mapping[str, Any],
    bar: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
) -> None:
    """Simulate a dataset at `root`, unless it exists already.

    Args:
        root: the folder of the dataset.
        phantoms: the `kind` (mri, ct, xray) and the arguments of `write_<kind>_phantoms`. They are
            stored in the folder.
        bar: a context manager around the work; it yields the function `progress`.

    Raises:
        ConfigError: if an argument is unknown, or `root` was simulated with other arguments.
        OutputError: if the folder cannot be written.
    """
    settings = {key: value for key, value in phantoms.items() if key != "kind"}
    kind = phantoms.get("kind")
    write = globals().get(f"write_{kind}_phantoms")
    if write is None or kind == "visit":
        raise ConfigError(f"data.phantoms.kind={kind}: choose mri, ct or xray.")
    takes = signature(write).parameters
    for name in settings.keys() - takes.keys():
        raise ConfigError(f"data.phantoms does not take {name!r}.{suggest(name, takes)}")
    if root.exists():
        path = root / SETTINGS
        before = read_json(path) if path.is_file() else settings
        if before != settings:
            raise ConfigError(
                f"{root} was simulated with other settings ({before}, not {settings}). Name "
                "another folder, data.root=, or remove this one."
            )
        return
    log.info("Simulated scans are written to %s.", root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            made = Path(folder) / root.name
            with bar() as progress:
                write(made, **settings, progress=progress)
            write_json(made / SETTINGS, settings)
            if not root.exists():  # another process may have been faster
                made.replace(root)
    except OSError as error:
        raise OutputError(f"{root}: the simulated dataset cannot be written: {error}.") from error
