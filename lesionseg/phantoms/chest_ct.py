"""Simulated chest CT with lung nodules, whose reference is exact: false positives per scan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.errors import require
from lesionseg.ops.components import label_components
from lesionseg.phantoms.fields import Field, inside, is_lesion_free
from lesionseg.phantoms.lesion_shapes import Outline, RecordedOutlines, lesion_share, rippled
from lesionseg.phantoms.lungs import Chest, simulate_chest
from lesionseg.phantoms.scan_folder import describe, write_case

BLUR_MM = 0.6  # standard deviation of the scanner's point spread
GRAIN_MM = 0.5  # of its noise
TRIES = 60  # places tried for a nodule before it is given up
GAP = 2  # voxels left between two nodules
# where nodules grow: at the pleura, at a vessel, or anywhere
AT_PLEURA, AT_VESSEL = 0.3, 0.25
GROUND_GLASS = 0.2  # share of nodules that are not solid


@dataclass(frozen=True)
class CtSettings:
    """What the simulated scans look like.

    `contrast` multiplies the nodules' difference from lung; `noise_hu` is the standard deviation
    of the noise; `n_nodules` the least and most of a scan that has any; `diameter_mm` least,
    median and most of the log-normal equivalent diameter, `log_spread` its standard deviation in
    log mm. The standard lungs span 214 × 177 × 268 mm.
    """

    shape: tuple[int, ...] = (152, 128, 192)
    spacing_mm: tuple[float, ...] = (1.5, 1.5, 1.5)
    contrast: float = 1.0
    noise_hu: float = 40.0
    n_nodules: tuple[int, int] = (1, 6)
    diameter_mm: tuple[float, float, float] = (3.0, 6.0, 20.0)
    log_spread: float = 0.5

    def __post_init__(self) -> None:
        axes = (self.shape, self.spacing_mm)
        require(all(len(a) == 3 for a in axes), "A simulated chest has three axes.", seen=axes)
        least, most = self.n_nodules
        require(1 <= least <= most, "n_nodules must be (least, most).", seen=self.n_nodules)


def simulate_ct_case(
    case: str,
    rng: np.random.Generator,
    settings: CtSettings,
    *,
    lesion_free: bool = False,
    outline: Outline = rippled,
) -> Case:
    """Draw one chest: image `[1, Z, Y, X]` float32 in Hounsfield units and its reference.

    Chain: anatomy → nodules → point spread → correlated noise. A voxel is lesion when at least
    half of it is. Nodules never touch, so that the components of the mask are the nodules.
    """
    chest = simulate_chest(rng, settings.shape, settings.spacing_mm)
    labels = np.zeros(settings.shape, dtype=np.uint8)
    if not lesion_free:
        _add_nodules(rng, chest, settings, outline, labels)
    spread = [BLUR_MM / s for s in settings.spacing_mm]
    image = ndimage.gaussian_filter(chest.hounsfield, spread) + _noise(rng, settings)
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    return Case(case, Volume(image[None], geometry), Reference(geometry, labels), group=case)


def _noise(rng: np.random.Generator, settings: CtSettings) -> Field:
    """Noise as a soft kernel leaves it: correlated over a fraction of a millimetre."""
    white = rng.standard_normal(settings.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white, [GRAIN_MM / s for s in settings.spacing_mm])
    return np.asarray(grain * np.float32(settings.noise_hu / grain.std()), np.float32)


def _add_nodules(
    rng: np.random.Generator,
    chest: Chest,
    settings: CtSettings,
    outline: Outline,
    labels: NDArray[np.uint8],
) -> None:
    """Write nodules into the chest and `labels`, large ones first."""
    for diameter in _diameters(rng, settings):
        level = _level(rng)
        for _ in range(TRIES):
            placed = _place(rng, chest, settings, outline, diameter, labels)
            if placed is None:
                continue
            where, filled = placed
            around = chest.hounsfield[where]
            gain = np.maximum(np.float32(level) - around, 0)  # never darker than what is there
            chest.hounsfield[where] = around + filled * np.float32(settings.contrast) * gain
            labels[where][filled >= 0.5] = 1
            break


def _diameters(rng: np.random.Generator, settings: CtSettings) -> list[float]:
    """Equivalent diameters in mm, log-normal and clipped, in descending order."""
    least, median, most = settings.diameter_mm
    n = int(rng.integers(settings.n_nodules[0], settings.n_nodules[1] + 1))
    diameters = np.exp(rng.normal(np.log(median), settings.log_spread, size=n))
    return sorted(np.clip(diameters, least, most).tolist(), reverse=True)


def _level(rng: np.random.Generator) -> float:
    """Hounsfield units of a nodule: ground glass, or solid."""
    return float(rng.uniform(-650, -400) if rng.random() < GROUND_GLASS else rng.uniform(-60, 80))


def _centre(rng: np.random.Generator, chest: Chest, diameter_mm: float) -> NDArray[np.int64] | None:
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


def _place(
    rng: np.random.Generator,
    chest: Chest,
    settings: CtSettings,
    outline: Outline,
    diameter_mm: float,
    labels: NDArray[np.uint8],
) -> tuple[tuple[slice, ...], Field] | None:
    """A free place and the nodule's share of each voxel there; None when this try does not fit."""
    centre = _centre(rng, chest, diameter_mm)
    if centre is None:
        return None
    jitter = rng.uniform(-0.5, 0.5, size=3)
    filled = lesion_share(rng, diameter_mm, settings.spacing_mm, jitter, outline)
    half = np.array(filled.shape) // 2
    start, stop = centre - half, centre + half + 1
    if (start < GAP).any() or (stop > np.array(labels.shape) - GAP).any():
        return None
    where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    whole = filled.sum()
    filled = filled * inside(chest.lung_mm[where], float(np.mean(settings.spacing_mm)))
    wide = tuple(slice(a - GAP, b + GAP) for a, b in zip(start, stop, strict=True))
    mask = filled >= 0.5
    near = ndimage.maximum_filter(np.pad(mask, GAP), 2 * GAP + 1)
    free = not (labels[wide][near] > 0).any()
    fits = filled.sum() > 0.6 * whole and label_components(mask).max() == 1
    return (where, filled) if free and fits else None


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
    noise_hu: float = 40.0,
    n_nodules: tuple[int, int] = (1, 6),
    outlines: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write `n_cases` simulated chest CT scans as an nnU-Net raw folder (v2 `dataset.json`).

    Case i depends on `seed` and i alone, so a longer set begins with the shorter one. Raises
    `ConfigError` for impossible numbers.

    Args:
        folder: where the dataset is written.
        n_cases: how many scans.
        seed: of the random numbers.
        n_test: how many of the last cases go to `imagesTs` and `labelsTs`.
        lesion_free_share: the share of scans without a nodule, spread evenly; in LUNA16 a third.
        shape: voxels along z, y and x; this and the next four: see `CtSettings`.
        spacing_mm: the voxel's sides.
        contrast: multiplies the nodules' difference from lung.
        noise_hu: standard deviation of the noise.
        n_nodules: the least and most of a scan that has any.
        outlines: folder of recorded masks (NIfTI) whose outlines the nodules get; None: rippled
            ellipsoids.
        progress: called with case, number done and total after every case.
    """
    fits = 0 <= n_test <= n_cases and n_cases >= 1
    require(fits, "Cannot simulate these cases.", seen=f"{n_cases=}, {n_test=}")
    settings = CtSettings(shape, spacing_mm, contrast, noise_hu, n_nodules)
    outline = rippled if outlines is None else RecordedOutlines(outlines)
    for index in range(n_cases):
        free = is_lesion_free(index, lesion_free_share)
        rng = np.random.default_rng([seed, index])
        name = f"SIMC_{index:03d}"
        case = simulate_ct_case(name, rng, settings, lesion_free=free, outline=outline)
        write_case(folder, case, "Tr" if index < n_cases - n_test else "Ts")
        if progress:
            progress(name, index + 1, n_cases)
    about = (
        "SIMULATED chest CT with lung nodules; no patient. Analytic lungs with vessels, airways "
        f"and fissures, partial volume, point spread and noise; seed {seed}."
    )
    describe(folder, "simulated_chest_ct", about, "CT", n_cases - n_test, n_test)
