"""A simulated chest, seen from the front: how much a ray is attenuated on its way through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lesionseg.phantoms.fields import (
    Field,
    Tube,
    ellipsoid_depth,
    inside,
    polyline,
    smooth_field,
    tube_thickness,
    vessel_tree,
)

# Linear attenuation per mm at 60 keV, about the effective energy of a chest tube at 120 kV:
# mass coefficient in cm²/g (NIST, Hubbell & Seltzer, NISTIR 5632, table 4) × density in g/cm³
# (ICRU Report 44; inflated lung 0.26).
PER_MM: Mapping[str, float] = {
    "soft": 0.2048 * 1.06 / 10,
    "lung": 0.2053 * 0.26 / 10,
    "blood": 0.2057 * 1.06 / 10,
    "bone": 0.3148 * 1.92 / 10,
}
SPONGY = 0.2  # share of mineral in a vertebra's inside, the rest counts as soft tissue
DEPTHS_MM = np.arange(-88.0, 89.0, 4.0)  # slabs in which the lungs are summed up
FIELD_MM = 296.0  # what the image shows of a standard person
BASE_MM, APEX_MM = -92.0, 122.0  # bottom and top of the lungs, the middle of the image at 0


@dataclass(frozen=True, eq=False)
class Thorax:
    """A chest's projection `[*shape]`: the exponent of Beer and Lambert, and lung in mm."""

    attenuation: Field
    lung_mm: Field


def simulate_thorax(rng: np.random.Generator, shape: Sequence[int], pixel_mm: float) -> Thorax:
    """Draw a chest of random size and anatomy and project it along parallel rays.

    The chest fills the image, whatever its size in mm: a small one shows a small person.
    """
    person = rng.uniform(0.94, 1.04) * min(n * pixel_mm for n in shape) / FIELD_MM
    mm = pixel_mm / person  # anatomy below is in millimetres of a standard person
    body, lung = _organs(rng, shape, mm)
    bone = _skeleton(rng, shape, mm)
    vessel = tube_thickness(vessels(rng), shape, mm) * inside(lung - 12, 12)
    aerated = PER_MM["lung"] * rng.uniform(0.85, 1.25) * (1 + 0.035 * _texture(rng, shape, mm))
    soft = np.maximum(body - lung - _airway(shape, mm), 0)
    total = PER_MM["soft"] * soft + aerated * lung
    total += (PER_MM["bone"] - PER_MM["soft"]) * bone
    total += (PER_MM["blood"] - PER_MM["lung"]) * np.minimum(vessel, lung)
    return Thorax(np.asarray(total * person, dtype=np.float32), lung * np.float32(person))


def _axes(shape: Sequence[int], mm: float) -> tuple[Field, Field]:
    """Height z (upwards) and x in mm of every pixel, as an open grid."""
    z = ((shape[0] - 1) / 2 - np.arange(shape[0])) * mm
    x = (np.arange(shape[1]) - (shape[1] - 1) / 2) * mm
    return z[:, None].astype(np.float32), x[None, :].astype(np.float32)


def _organs(rng: np.random.Generator, shape: Sequence[int], mm: float) -> tuple[Field, Field]:
    """Millimetres of body and of lung under each pixel, summed in slabs at half the resolution."""
    coarse = [-(-n // 2) for n in shape]
    z, x = _axes(coarse, 2 * mm)
    bent_z = z + np.float32(2.5) * smooth_field(rng, coarse, (2 * mm,) * 2, 90)
    bent_x = x + np.float32(2.5) * smooth_field(rng, coarse, (2 * mm,) * 2, 90)
    build = rng.normal(0, 1, size=8)
    body, lung = _torso_mm(z, x, build), np.zeros(coarse, np.float32)
    step = np.float32(DEPTHS_MM[1] - DEPTHS_MM[0])
    for y in DEPTHS_MM.astype(np.float32):
        lung += step * inside(lung_depth(bent_z, bent_x, y, build), 2 * mm)
    body, lung = (ndimage.zoom(a, 2, order=1, grid_mode=True, mode="nearest") for a in (body, lung))
    return body[: shape[0], : shape[1]], lung[: shape[0], : shape[1]]


def _torso_mm(z: Field, x: Field, build: Field) -> Field:
    """Millimetres of a flattened cylinder that widens to the shoulders, in closed form."""
    width = 158 + 5 * build[0] + 45 / (1 + np.exp(-(z - 120) / 16))
    front = 106 + 5 * build[1] - 28 / (1 + np.exp(-(z - 105) / 14))
    rest = np.maximum(1 - np.abs(x / width) ** 2.6, 0)
    return np.asarray(2 * front * rest ** (1 / 2.6), dtype=np.float32)


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


def _airway(shape: Sequence[int], mm: float) -> Field:
    """Millimetres of air in windpipe and main bronchi."""
    trachea = polyline([(170, 0, 0), (45, -20, -3)], 8.0)
    right = polyline([(45, -20, -3), (22, -20, -32)], 5.5)
    left = polyline([(45, -20, -3), (20, -20, 38)], 5.5)
    return tube_thickness([trachea, right, left], shape, mm) * np.float32(0.9)


def _texture(rng: np.random.Generator, shape: Sequence[int], mm: float) -> Field:
    """What vessels and airways too fine to draw leave in the lung."""
    return 0.6 * smooth_field(rng, shape, (mm,) * 2, 7) + 0.8 * smooth_field(
        rng, shape, (mm,) * 2, 25
    )


def vessels(rng: np.random.Generator) -> list[Tube]:
    """The arteries of both lungs."""
    return [
        tube
        for side in (-1, 1)
        for tube in vessel_tree(rng, (14, -5, side * 24), int(rng.integers(7, 10)), side)
    ]


def _skeleton(rng: np.random.Generator, shape: Sequence[int], mm: float) -> Field:
    """Millimetres of mineral: ribs and collar bones as shells, vertebrae, shoulder blades."""
    offset = rng.uniform(-4, 4)
    ribs = [rib(rng, k, side, offset) for k in range(10) for side in (-1, 1)]
    collar = [
        polyline([(84, 60, s * 14), (90, 60, s * 55), (104, 30, s * 105), (110, 0, s * 165)], 0.0)
        for s in (-1, 1)
    ]
    bone = _shell(ribs, 6.2, 1.6, shape, mm) * np.float32(0.5)  # ribs are flat along the beam
    bone += _shell(collar, 6.0, 2.0, shape, mm)
    return bone + _spine(rng, shape, mm, offset) + _blades(shape, mm)


def _shell(
    lines: Sequence[Tube], radius_mm: float, wall_mm: float, shape: Sequence[int], mm: float
) -> Field:
    """Mineral in hollow tubes: the wall whole, the inside `SPONGY`."""
    outer = tube_thickness([Tube(t.points, radius_mm, t.step_mm) for t in lines], shape, mm)
    inner = [Tube(t.points, radius_mm - wall_mm, t.step_mm) for t in lines]
    return outer - np.float32(1 - SPONGY) * tube_thickness(inner, shape, mm)


def rib(rng: np.random.Generator, k: int, side: int, offset: float) -> Tube:
    """The middle line of rib `k`: from the spine around the back and side, falling to the front."""
    angle = np.deg2rad(np.linspace(14, 118 + 1.5 * k, 60))
    level = 108 + offset - 20.5 * k
    width = float(chest_half_width(level - 22)) + 5
    fall = (34 + 4.5 * k + rng.normal(0, 1.5)) * (angle / angle[-1]) ** 1.4
    z = level + 5 * np.sin(2 * angle) - fall
    corners = np.stack([z, -0.66 * width * np.cos(angle), side * width * np.sin(angle)], axis=1)
    return polyline(corners.tolist(), 0.0)


def _spine(rng: np.random.Generator, shape: Sequence[int], mm: float, offset: float) -> Field:
    """Millimetres of mineral in the column of vertebrae and their spinous processes."""
    z, x = _axes(shape, mm)
    x = x - np.float32(rng.normal(0, 2)) * np.sin(z / 60)
    within = np.mod(z - offset + 10.25, 20.5) - 10.25
    wide = 13 + 3 * np.clip((80 - z) / 160, 0, 1)
    body = inside(np.minimum(wide - np.abs(x), 8 - np.abs(within)), 2.0)
    rim = body - inside(np.minimum(wide - 1.2 - np.abs(x), 6.8 - np.abs(within)), 2.0)
    pedicle = inside(3.2 - np.hypot(np.abs(x) - 10, within - 3), 1.5)
    spinous = inside(1 - np.hypot(x / 3, (within + 4) / 6), 0.4)
    return np.asarray(22 * SPONGY * body + 3 * rim + 4 * pedicle + 5 * spinous, dtype=np.float32)


def _blades(shape: Sequence[int], mm: float) -> Field:
    """The shoulder blades: thin plates with a thicker rim beside the upper lungs."""
    z, x = _axes(shape, mm)
    across, up = (np.abs(x) - 128) + 0.25 * (z - 60), z - 58
    plate = (1 - np.sqrt((across / 30) ** 2 + (up / 62) ** 2)) * 30
    return np.asarray(1.6 * inside(plate, 2.0) + 1.2 * inside(2.5 - np.abs(plate - 2), 2.0))
