"""A simulated chest in Hounsfield units, with all in its lungs that a nodule can be taken for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lesionseg.phantoms.fields import (
    Axes,
    Field,
    Tube,
    inside,
    millimetre_axes,
    polyline,
    smooth_field,
    tube_share,
    vessel_tree,
)
from lesionseg.phantoms.thorax import lung_depth, rib, vessels

# Hounsfield units; water 0 and air -1000 by definition, the others as usual in unenhanced CT.
AIR, LUNG, SOFT, BLOOD, BONE = -1000.0, -860.0, 40.0, 45.0, 350.0
MIDDLE_MM = (15.0, -4.0, 0.0)  # of the volume: up, to the front, to the left
LUMEN = 0.65  # of a bronchus' radius
FISSURE_MM = 1.0


@dataclass(frozen=True, eq=False)
class Chest:
    """A chest `[*shape]` (up, forward, right): Hounsfield units, and where nodules may grow.

    `lung_mm` is the depth in a lung in mm, negative outside; `vessel` the share of a voxel that
    vessels fill.
    """

    hounsfield: Field
    lung_mm: Field
    vessel: Field


def simulate_chest(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]
) -> Chest:
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


def _body(rng: np.random.Generator, axes: Axes, mm: Sequence[float], build: Field) -> Field:
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


def _parenchyma(
    rng: np.random.Generator, y: Field, shape: Sequence[int], mm: Sequence[float]
) -> Field:
    """Aerated lung: a little denser at the back of a lying person, and uneven."""
    level = LUNG + rng.normal(0, 20) - np.float32(0.4) * y
    fine, coarse = (smooth_field(rng, shape, mm, wave) for wave in (7.0, 25.0))
    return np.asarray(level + 12 * fine + 18 * coarse, np.float32)


def _fissures(
    rng: np.random.Generator, axes: Axes, shape: Sequence[int], mm: Sequence[float]
) -> Field:
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


def _add_airways(
    rng: np.random.Generator, hounsfield: Field, lung: Field, mm: Sequence[float]
) -> None:
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
