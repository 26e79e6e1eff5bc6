"""Anatomical chests: CT with lung nodules among vessels, bronchi and fissures.

The tables of docs/results.md on simulated chests use them, with outlines of recorded masks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.phantoms.heads import draw_diameters
from lesionseg.errors import ConfigError
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import label_components
from lesionseg.phantoms import (
    Field,
    Outline,
    Range,
    Simulated,
    each_case,
    ellipsoid_depth,
    inside,
    lesion_share,
    millimetre_axes,
    place_at,
    rippled,
    smooth_field,
    write_nnunet_raw,
)

Axes = Sequence[Field]
Points = NDArray[np.float64]
STEP_MM = 0.8  # between the points of a tube
BASE_MM, APEX_MM = -92.0, 122.0  # bottom and top of the lungs, the middle of the volume at 0
# Hounsfield units; water 0 and air -1000 by definition, the others as usual in unenhanced CT.
AIR, LUNG, SOFT, BLOOD, BONE = -1000.0, -860.0, 40.0, 45.0, 350.0
MIDDLE_MM = (15.0, -4.0, 0.0)  # of the volume: up, to the front, to the left
LUMEN = 0.65  # of a bronchus' radius
FISSURE_MM = 1.0
BLUR_MM = 0.6  # standard deviation of the scanner's point spread
GRAIN_MM = 0.5  # of its noise
TRIES = 60  # places tried for a nodule before it is given up
GAP = 2  # voxels left between two nodules
LEAST_INSIDE = 0.6  # of a nodule lies in the lung
AT_PLEURA, AT_VESSEL = 0.3, 0.25  # where nodules grow; the others anywhere
GROUND_GLASS = 0.2  # share of nodules that are not solid
FEWEST_VOXELS = 30  # of a recorded lesion whose outline is worth copying


@dataclass(frozen=True, eq=False)
class Tube:
    """Points `[n, 3]` (z up, y to the front, x; mm) along a tube's middle, `step_mm` apart."""

    points: Points
    radius_mm: float
    step_mm: float = STEP_MM


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


def polyline(corners_mm: Sequence[Sequence[float]], radius_mm: float) -> Tube:
    """A tube along straight pieces between corners (z, y, x)."""
    corners = np.asarray(corners_mm, dtype=np.float64)
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    at = np.arange(STEP_MM / 2, lengths[-1], STEP_MM)
    points = np.stack([np.interp(at, lengths, corners[:, k]) for k in range(3)], axis=1)
    return Tube(points, radius_mm)


def vessel_tree(rng: Generator, root_mm: Sequence[float], n_trunks: int, side: int) -> list[Tube]:
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


def chest_half_width(z: Field | float) -> Field:
    """Half the inner width of the rib cage in mm at height z: wide below, closed at the apex."""
    up = np.clip((np.asarray(z, dtype=np.float32) - BASE_MM) / (APEX_MM - BASE_MM), 0, 1)
    return np.asarray(134 * np.sqrt(1 - up**2.6) * (0.9 + 0.1 * (1 - up)), dtype=np.float32)


def lung_depth(z: Field, x: Field, y: Field | np.float32, build: Field) -> Field:
    """Signed depth in mm in either lung: inside the ribs, above the diaphragm, beside the middle.

    Height `z`, `x` to the left and `y` to the front broadcast; `build` `[8]` is how this person
    differs from the standard one, in standard deviations.
    """
    width = np.maximum(chest_half_width(z), 1)
    cage = (1 - np.hypot(x / width, (y + 4) / (0.66 * width))) * 0.66 * width
    is_left = x > 0
    dome = np.where(is_left, -92 + 3 * build[2], -80 + 3 * build[3])
    arch = 1 - ((np.abs(x) - 62) / 78) ** 2 - ((y - 15) / 85) ** 2
    above = z - dome - (34 + 3 * build[4]) * np.maximum(arch, -1.2)
    beside = (
        np.abs(x)
        - 5
        - 15 * np.exp(-(((y + 15) / 45) ** 2)) * (1 + np.exp(-(((z - 95) / 30) ** 2)) / 4)
    )
    depth = np.minimum(np.minimum(cage, above), beside)
    return np.asarray(np.minimum(depth, -mediastinum_depth(z, x, y, build)), dtype=np.float32)


def mediastinum_depth(z: Field, x: Field, y: Field | np.float32, build: Field) -> Field:
    """Signed depth in heart, great vessels and hila."""
    turn = np.deg2rad(38)
    along = (x - 26) * np.cos(turn) - (z + 48) * np.sin(turn)
    across = (x - 26) * np.sin(turn) + (z + 48) * np.cos(turn)
    size = 1 + 0.06 * build[5]
    depths = [
        ellipsoid_depth((across, y, along), (0, 18, 0), (46 * size, 48, 66 * size)),
        ellipsoid_depth((z, y, x), (57, -15, 21), (19, 34, 16)),  # arch of the aorta
        ellipsoid_depth((z, y, x), (-20, -62, 20), (95, 13, 12)),  # descending aorta
        ellipsoid_depth((z, y, x), (20, 12, -20), (75, 24, 14)),  # vena cava, ascending aorta
        ellipsoid_depth((z, y, np.abs(x)), (16, -5, 27), (22, 15, 14)),  # hila
        22 - np.hypot(x, y + 72) + 0 * z,  # spine and the muscles beside it
    ]
    return np.asarray(np.maximum.reduce(depths), dtype=np.float32)


def vessels(rng: Generator) -> list[Tube]:
    """The arteries of both lungs."""
    return [
        tube
        for side in (-1, 1)
        for tube in vessel_tree(rng, (14, -5, side * 24), int(rng.integers(7, 10)), side)
    ]


def rib(rng: Generator, k: int, side: int, offset: float) -> Tube:
    """The middle line of rib `k`: from the spine around the back and side, falling to the front."""
    angle = np.deg2rad(np.linspace(14, 118 + 1.5 * k, 60))
    level = 108 + offset - 20.5 * k
    width = float(chest_half_width(level - 22)) + 5
    fall = (34 + 4.5 * k + rng.normal(0, 1.5)) * (angle / angle[-1]) ** 1.4
    z = level + 5 * np.sin(2 * angle) - fall
    corners = np.stack([z, -0.66 * width * np.cos(angle), side * width * np.sin(angle)], axis=1)
    return polyline(corners.tolist(), 0.0)


@dataclass(frozen=True, eq=False)
class Chest:
    """A chest `[*shape]` (up, forward, right): Hounsfield units, and where nodules may grow.

    `lung_mm` is the depth in a lung in mm, negative outside; `vessel` the share of a voxel that
    vessels fill.
    """

    hounsfield: Field
    lung_mm: Field
    vessel: Field


def simulate_chest(rng: Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Chest:
    """Draw a chest of random size and anatomy.

    Lungs with arteries and bronchi that branch, a fissure or two a lung, ribs, spine and
    mediastinum. Anatomy is in millimetres of a standard person.
    """
    person = rng.uniform(0.94, 1.04)
    mm = [s / person for s in spacing_mm]
    z, y, x = _axes(shape, mm)
    build = rng.normal(0, 1, size=8)
    bent_z = z + np.float32(2.5) * smooth_field(rng, shape, mm, 90)
    depth = lung_depth(bent_z, x, y, build)
    lung = inside(depth, float(np.mean(mm)))
    hounsfield = _body(rng, (z, y, x), mm, build)
    hounsfield += lung * (_parenchyma(rng, y, shape, mm) - hounsfield)
    vessel = _tubes(vessels(rng) + vessels(rng), shape, mm) * lung  # arteries and veins
    _fill(hounsfield, lung * _fissures(rng, (z, y, x), shape, mm), SOFT)
    _fill(hounsfield, vessel, BLOOD)
    _add_airways(rng, hounsfield, lung, mm)
    return Chest(hounsfield, np.asarray(depth * person, np.float32), vessel)


def _axes(shape: Sequence[int], mm: Sequence[float]) -> list[Field]:
    """Height, depth and x in mm, the last one growing to the left."""
    z, y, x = (
        a + np.float32(m) for a, m in zip(millimetre_axes(shape, mm), MIDDLE_MM, strict=True)
    )
    return [z, y, -x]


def _tubes(tubes: Sequence[Tube], shape: Sequence[int], mm: Sequence[float]) -> Field:
    """Share of each voxel in tubes, whose x grows to the left."""
    mirrored = [replace(t, points=t.points * (1, 1, -1)) for t in tubes]
    return tube_share(mirrored, shape, mm, MIDDLE_MM)


def _fill(hounsfield: Field, share: Field, value: float) -> None:
    """Fill a share of each voxel with one material."""
    hounsfield += share * (np.float32(value) - hounsfield)


def _body(rng: Generator, axes: Axes, mm: Sequence[float], build: Field) -> Field:
    """Soft tissue with ribs and spine, in air."""
    z, y, x = axes
    front, width = 106 + 5 * build[1], 158 + 5 * build[0]
    torso = 1 - np.abs(x / width) ** 2.6 - np.abs(y / front) ** 2.6 + 0 * z
    shape, side = torso.shape, float(np.mean(mm))
    hounsfield = np.full(shape, AIR, np.float32)
    _fill(hounsfield, inside(np.asarray(torso * front / 2.6, np.float32), side), SOFT)
    offset = rng.uniform(-4, 4)
    ribs = [replace(rib(rng, k, s, offset), radius_mm=5.0) for k in range(10) for s in (-1, 1)]
    _fill(hounsfield, _tubes(ribs, shape, mm), BONE)
    spine = 15 - np.hypot(x, y + 76) + 0 * z
    _fill(hounsfield, inside(np.asarray(spine, np.float32), side), BONE / 2)
    return hounsfield


def _parenchyma(rng: Generator, y: Field, shape: Sequence[int], mm: Sequence[float]) -> Field:
    """Aerated lung: a little denser at the back of a lying person, and uneven."""
    level = LUNG + rng.normal(0, 20) - np.float32(0.4) * y
    fine, coarse = (smooth_field(rng, shape, mm, wave) for wave in (7.0, 25.0))
    return np.asarray(level + 12 * fine + 18 * coarse, np.float32)


def _fissures(rng: Generator, axes: Axes, shape: Sequence[int], mm: Sequence[float]) -> Field:
    """Share of the pleura between lobes: oblique on either side, horizontal on the right."""
    z, y, x = axes
    side = float(np.mean(mm))
    wave = np.float32(3) * smooth_field(rng, shape, mm, 70)
    oblique = 0.78 * (z - 10 - rng.normal(0, 5)) + 0.62 * (y + 5) + wave
    level = z - 22 - rng.normal(0, 5) + wave
    horizontal = np.where((x < 0) & (oblique > 0), np.abs(level), np.inf)
    nearest = np.minimum(np.abs(oblique), horizontal)
    thin = np.float32(min(1.0, FISSURE_MM / side))
    return inside(np.asarray(FISSURE_MM / 2 - nearest, np.float32), side) * thin


def _add_airways(rng: Generator, hounsfield: Field, lung: Field, mm: Sequence[float]) -> None:
    """Windpipe, main bronchi and their branches beside the arteries: walls, and air inside."""
    main = [
        polyline([(170, 0, 0), (45, -20, -3)], 9.5),
        polyline([(45, -20, -3), (20, -14, -26)], 7.0),
        polyline([(45, -20, -3), (18, -14, 28)], 7.0),
    ]
    trees = [vessel_tree(rng, (18, -12, s * 27), 5, s) for s in (-1, 1)]
    branches = [tube for tree in trees for tube in tree if tube.radius_mm > 0.8]
    for tubes, within in ((branches, lung), (main, np.float32(1))):
        for share_of_radius, value in ((1.0, SOFT), (LUMEN, AIR)):
            thick = [replace(t, radius_mm=share_of_radius * t.radius_mm) for t in tubes]
            _fill(hounsfield, within * _tubes(thick, hounsfield.shape, mm), value)


class RecordedOutlines:
    """Outlines of the largest lesion of every mask of a folder, turned at random.

    Masks are NIfTI files; any value but 0 is lesion. Lesions of fewer than 30 voxels are left out.
    Raises `ConfigError` where none is left.
    """

    def __init__(self, folder: Path) -> None:
        self.distances = [
            distance
            for path in sorted(folder.glob("*.nii.gz"))
            if (distance := _distance_to_largest(path)) is not None
        ]
        if not self.distances:
            raise ConfigError(f"{folder}: no lesion has an outline to copy.")

    def __call__(self, rng: Generator, points: Points) -> NDArray[np.float64]:
        """Minus the signed distance to one outline at `points` `[n, 3]`, in units of the radius."""
        distance, middle, radius_vox = self.distances[int(rng.integers(len(self.distances)))]
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        at = points @ turn * radius_vox + middle
        return np.asarray(-ndimage.map_coordinates(distance, at.T, order=1, mode="nearest"))


def _distance_to_largest(path: Path) -> tuple[Field, Points, NDArray[np.float64]] | None:
    """Signed distance to the largest lesion in its radii; its middle and radius in voxels."""
    volume = read_volume(path)
    spacing = np.asarray(volume.geometry.spacing_mm)
    instances = label_components(volume.array[0] > 0)
    sizes = np.bincount(instances.ravel())[1:]
    if sizes.max(initial=0) < FEWEST_VOXELS:
        return None
    largest = int(sizes.argmax())
    mask = np.pad(instances[ndimage.find_objects(instances)[largest]] == largest + 1, 4)
    radius_mm = (3 * sizes.max() * spacing.prod() / (4 * np.pi)) ** (1 / 3)
    outer, inner = (ndimage.distance_transform_edt(m, spacing) for m in (~mask, mask))
    middle = np.argwhere(mask).mean(axis=0)
    return np.asarray((inner - outer) / radius_mm, np.float32), middle, radius_mm / spacing


@dataclass(frozen=True)
class CtSettings:
    """What the simulated scans look like.

    `contrast` multiplies the nodules' difference from lung. The standard lungs span 214 × 177 ×
    268 mm.
    """

    shape: tuple[int, ...] = (152, 128, 192)
    spacing_mm: tuple[float, ...] = (1.5, 1.5, 1.5)
    contrast: float = 1.0
    noise_hu: float = 40.0
    n_nodules: tuple[int, int] = (1, 6)
    diameter_mm: tuple[float, float, float] = (3.0, 6.0, 20.0)  # least, median, most
    log_std: float = 0.5  # of the diameters, in log mm


def simulate_ct_case(
    rng: Generator, settings: CtSettings, n_nodules: Range, outline: Outline = rippled
) -> Simulated:
    """Draw one chest: anatomy, nodules, point spread, correlated noise.

    A voxel is lesion when at least half of it is. Nodules never touch.
    """
    chest = simulate_chest(rng, settings.shape, settings.spacing_mm)
    labels = np.zeros(settings.shape, dtype=np.uint8)
    if n_nodules[1]:
        _add_nodules(rng, chest, settings, outline, labels)
    blur = [BLUR_MM / s for s in settings.spacing_mm]
    blurred = ndimage.gaussian_filter(chest.hounsfield, blur)
    white = rng.standard_normal(settings.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white, [GRAIN_MM / s for s in settings.spacing_mm])
    return blurred + np.asarray(grain * np.float32(settings.noise_hu / grain.std())), labels


def _add_nodules(
    rng: Generator,
    chest: Chest,
    settings: CtSettings,
    outline: Outline,
    labels: NDArray[np.uint8],
) -> None:
    """Write nodules into the chest and `labels`, large ones first."""
    lung = inside(chest.lung_mm, float(np.mean(settings.spacing_mm)))
    sizes = (settings.n_nodules, settings.diameter_mm, settings.log_std)
    for diameter in draw_diameters(rng, *sizes):
        level = _level(rng)
        for _ in range(TRIES):
            centre = _centre(rng, chest, diameter)
            if centre is None:
                continue
            jitter = rng.uniform(-0.5, 0.5, size=3)
            whole = lesion_share(rng, diameter, settings.spacing_mm, jitter, outline)
            placed = place_at(centre, whole, lung, labels, GAP)
            if placed is None or placed[1].sum() <= LEAST_INSIDE * whole.sum():
                continue
            where, filled = placed
            around = chest.hounsfield[where]
            gain = np.maximum(np.float32(level) - around, 0)  # never darker than what is there
            chest.hounsfield[where] = around + filled * np.float32(settings.contrast) * gain
            labels[where][filled >= 0.5] = 1
            break


def _level(rng: Generator) -> float:
    """Hounsfield units of a nodule: ground glass, or solid."""
    return float(rng.uniform(-650, -400) if rng.random() < GROUND_GLASS else rng.uniform(-60, 80))


def _centre(rng: Generator, chest: Chest, diameter_mm: float) -> NDArray[np.int64] | None:
    """Where a nodule's middle may lie: at the pleura, at a vessel or anywhere deep enough."""
    kind, depth, radius = rng.random(), chest.lung_mm, diameter_mm / 2
    if kind < AT_PLEURA:
        fits = (depth > 0.3 * radius) & (depth < 0.9 * radius)
    else:
        fits = depth > 1.2 * radius
        if kind < AT_PLEURA + AT_VESSEL:
            fits &= (chest.vessel > 0.2) & (chest.vessel < 0.8)
    places = np.flatnonzero(fits)
    if len(places) == 0:
        return None
    return np.array(np.unravel_index(int(rng.choice(places)), depth.shape))


def write_ct_phantoms(
    folder: Path,
    n_cases: int,
    *,
    seed: int,
    n_test: int = 0,
    lesion_free_share: float = 1 / 3,
    outlines: Path | None = None,
    **chosen: Any,
) -> None:
    """Write simulated chest CT scans as an nnU-Net raw folder; `chosen`: of `CtSettings`.

    `outlines`: a folder of recorded masks (NIfTI) whose outlines the nodules get; None: rippled
    ellipsoids.
    """
    settings = CtSettings(**chosen)
    outline = rippled if outlines is None else RecordedOutlines(outlines)

    def simulate(rng: Generator, n_nodules: Range) -> Simulated:
        return simulate_ct_case(rng, settings, n_nodules, outline)

    about = f"SIMULATED chest CT with lung nodules; no patient. Seed {seed}."
    grid, n = (settings.shape, settings.spacing_mm), settings.n_nodules
    cases = each_case(simulate, "SIMC", n_cases, seed, lesion_free_share, grid, n, None)
    write_nnunet_raw(folder, cases, n_cases, n_test, "simulated_chest_ct", "CT", about)
