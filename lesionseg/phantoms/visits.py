"""Simulated pairs of scans with known change, and masks of them as a segmentation would err."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Volume
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms.fields import Field, ellipsoid_depth, inside, millimetre_axes, smooth_field

Fate = Literal["new", "gone", "enlarged", "shrunk", "stable"]
FATES: tuple[Fate, ...] = ("new", "gone", "enlarged", "shrunk", "stable")
_TRIES = 60  # places tried for a lesion before it is given up
_GAP_MM = 4.0  # between lesions, so that noise does not join them
_ABSENT = 0.0  # the radii of a lesion that a visit does not have


@dataclass(frozen=True)
class VisitSettings:
    """What the pairs look like.

    `n_lesions` of each fate, as in `FATES`; `diameter_mm`: least and most, log-uniform. `growth`
    multiplies the diameter of an enlarged lesion and divides that of a shrunk one. `shift_mm`: the
    most that the later anatomy is moved along each axis. Of the masks: `boundary_mm`, the standard
    deviation by which their surface errs, over `wavelength_mm`, and `n_false`, the mean number of
    spurious lesions of 2 to 4 mm per visit. Of the scans: `noise` and `bias`, standard deviations
    as a share of the signal.
    """

    shape: tuple[int, ...] = (48, 96, 96)
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    n_lesions: tuple[int, ...] = (2, 1, 1, 1, 8)
    diameter_mm: tuple[float, float] = (3.0, 12.0)
    growth: float = 1.5
    shift_mm: float = 0.5
    boundary_mm: float = 0.3
    wavelength_mm: float = 4.0
    n_false: float = 0.5
    noise: float = 0.05
    bias: float = 0.1


@dataclass(frozen=True, eq=False)
class SimulatedPair:
    """Scans `[1, Z, Y, X]` and masks `[Z, Y, X]` uint8 of two visits on one grid.

    `new` `[Z, Y, X]` uint8 holds the truly new lesions on the later visit, without any error.
    """

    before_scan: Volume
    after_scan: Volume
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    new: NDArray[np.uint8]


@dataclass(frozen=True)
class _Lesion:
    """A lesion's fate, place and radii in both visits; radii of 0 where it is absent."""

    fate: Fate
    centre_mm: tuple[float, ...]
    before_mm: tuple[float, ...]
    after_mm: tuple[float, ...]


def simulate_visits(rng: np.random.Generator, settings: VisitSettings) -> SimulatedPair:
    """Draw one pair: a head of smooth texture with ellipsoids, seen twice.

    Each visit has its own surface errors, spurious lesions, noise and shading.
    """
    lesions = _draw_lesions(rng, settings)
    shift = rng.uniform(-settings.shift_mm, settings.shift_mm, 3)
    texture = smooth_field(rng, settings.shape, settings.spacing_mm, 25.0)
    depths = [
        _depth(settings, [(x.centre_mm, x.before_mm) for x in lesions], np.zeros(3)),
        _depth(settings, [(x.centre_mm, x.after_mm) for x in lesions], shift),
    ]
    new = [(x.centre_mm, x.after_mm) for x in lesions if x.fate == "new"]
    return SimulatedPair(
        before_scan=_scan(rng, settings, texture, depths[0], np.zeros(3)),
        after_scan=_scan(rng, settings, texture, depths[1], shift),
        before=segment(rng, settings, depths[0]),
        after=segment(rng, settings, depths[1]),
        new=(_depth(settings, new, shift) > 0).astype(np.uint8),
    )


def segment(rng: np.random.Generator, settings: VisitSettings, depth: Field) -> NDArray[np.uint8]:
    """A mask `[Z, Y, X]` of lesions as a segmentation draws them: with errors, and false ones.

    `depth` `[Z, Y, X]`: signed distance in mm to the lesions' surface, positive inside.
    """
    errors = smooth_field(rng, settings.shape, settings.spacing_mm, settings.wavelength_mm)
    spurious = []
    for _ in range(rng.poisson(settings.n_false)):
        radii = np.full(3, rng.uniform(1.0, 2.0))
        spurious.append((_place(rng, settings), tuple(radii.tolist())))
    all_depths = np.maximum(depth, _depth(settings, spurious, np.zeros(3)))
    return np.asarray(all_depths + settings.boundary_mm * errors > 0, dtype=np.uint8)


def write_visit_phantoms(
    folder: Path, n: int, settings: VisitSettings | None = None, seed: int = 0
) -> Path:
    """Write `n` pairs into `before`, `after`, `before_images`, `after_images` and `new`."""
    settings = settings or VisitSettings()
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    for number in range(n):
        pair = simulate_visits(np.random.default_rng((seed, number)), settings)
        volumes = {
            **{k: Volume(getattr(pair, k)[None], geometry) for k in ("before", "after", "new")},
            "before_images": pair.before_scan,
            "after_images": pair.after_scan,
        }
        for name, volume in volumes.items():
            write_volume(folder / name / f"simulated_{number:03d}.nii.gz", volume)
    return folder


def stable_only(settings: VisitSettings, n_lesions: int = 10) -> VisitSettings:
    """The same pairs in which nothing changes."""
    return replace(settings, n_lesions=(0, 0, 0, 0, n_lesions))


def _draw_lesions(rng: np.random.Generator, settings: VisitSettings) -> list[_Lesion]:
    fates = [f for f, n in zip(FATES, settings.n_lesions, strict=True) for _ in range(n)]
    lesions: list[_Lesion] = []
    for fate in fates:
        lesion = _sized(rng, fate, settings)
        for _ in range(_TRIES):
            lesion = replace(lesion, centre_mm=_place(rng, settings))
            if all(_apart(lesion, other) for other in lesions):
                lesions.append(lesion)
                break
    return lesions


def _sized(rng: np.random.Generator, fate: Fate, settings: VisitSettings) -> _Lesion:
    low, high = np.log(settings.diameter_mm)
    shape = np.exp(rng.normal(0, 0.15, 3))
    radii = np.exp(rng.uniform(low, high)) / 2 * shape / np.cbrt(shape.prod())
    factors = {
        "new": (_ABSENT, 1.0),
        "gone": (1.0, _ABSENT),
        "enlarged": (1.0, settings.growth),
        "shrunk": (1.0, 1 / settings.growth),
        "stable": (1.0, 1.0),
    }[fate]
    before, after = (tuple((radii * factor).tolist()) for factor in factors)
    return _Lesion(fate, (), before, after)


def _place(rng: np.random.Generator, settings: VisitSettings) -> tuple[float, ...]:
    """A place in mm well within the head, the volume's middle at 0; uniform in an ellipsoid."""
    half = np.array(settings.shape) * settings.spacing_mm / 2
    way = rng.standard_normal(3)
    place = 0.75 * np.cbrt(rng.random()) * way / np.linalg.norm(way) * half
    return tuple(place.tolist())


def _apart(one: _Lesion, other: _Lesion) -> bool:
    reach = max(*one.before_mm, *one.after_mm) + max(*other.before_mm, *other.after_mm)
    return bool(np.linalg.norm(np.subtract(one.centre_mm, other.centre_mm)) > reach + _GAP_MM)


def _depth(
    settings: VisitSettings,
    ellipsoids: Sequence[tuple[tuple[float, ...], tuple[float, ...]]],
    shift_mm: NDArray[np.float64],
) -> Field:
    """Signed distance `[Z, Y, X]` to the nearest surface of ellipsoids (centre, radii), all moved.

    Ellipsoids of radius 0 are left out; without any it is far below 0.
    """
    axes = millimetre_axes(settings.shape, settings.spacing_mm)
    depth = np.full(settings.shape, -50.0, dtype=np.float32)
    for centre, radii in ellipsoids:
        if max(radii) == _ABSENT:
            continue
        place = np.asarray(centre) + shift_mm
        near = tuple(
            slice(*np.searchsorted(a.ravel(), (c - r - _GAP_MM, c + r + _GAP_MM)))
            for a, c, r in zip(axes, place, radii, strict=True)
        )
        local = np.ix_(*(a.ravel()[at] for a, at in zip(axes, near, strict=True)))
        depth[near] = np.maximum(depth[near], ellipsoid_depth(local, place.tolist(), radii))
    return depth


def _scan(
    rng: np.random.Generator,
    settings: VisitSettings,
    texture: Field,
    depth: Field,
    shift_mm: NDArray[np.float64],
) -> Volume:
    """A scan: textured head, brighter lesions with partial volume, shading and noise."""
    axes = millimetre_axes(settings.shape, settings.spacing_mm)
    half = np.array(settings.shape) * settings.spacing_mm / 2
    width = min(settings.spacing_mm)
    head = inside(ellipsoid_depth(axes, shift_mm.tolist(), (0.9 * half).tolist()), width)
    moved = ndimage.shift(texture, shift_mm / settings.spacing_mm, order=1, mode="nearest")
    signal = head * (1 + 0.15 * moved) + 0.5 * inside(depth, width)
    shading = smooth_field(rng, settings.shape, settings.spacing_mm, 200.0)
    noise = rng.standard_normal(settings.shape, dtype=np.float32) * np.float32(settings.noise)
    image = 300 * np.abs(signal * np.exp(np.float32(settings.bias) * shading) + noise)
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    return Volume(np.asarray(image, dtype=np.float32)[None], geometry)
