"""Simulated chest CT with lung nodules, whose reference is exact: false positives per scan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.errors import require
from lesionseg.phantoms.fields import Field, inside
from lesionseg.phantoms.lesion_shapes import (
    Outline,
    RecordedOutlines,
    draw_diameters,
    lesion_share,
    place_at,
    rippled,
)
from lesionseg.phantoms.lungs import Chest, simulate_chest
from lesionseg.phantoms.scan_folder import describe, write_cases

BLUR_MM = 0.6  # standard deviation of the scanner's point spread
GRAIN_MM = 0.5  # of its noise
TRIES = 60  # places tried for a nodule before it is given up
GAP = 2  # voxels left between two nodules
LEAST_INSIDE = 0.6  # of a nodule lies in the lung
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
    lung = inside(chest.lung_mm, float(np.mean(settings.spacing_mm)))
    sizes = (settings.n_nodules, settings.diameter_mm, settings.log_spread)
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
    settings = CtSettings(shape, spacing_mm, contrast, noise_hu, n_nodules)
    outline = rippled if outlines is None else RecordedOutlines(outlines)

    def simulate(index: int, *, lesion_free: bool) -> Case:
        rng, name = np.random.default_rng([seed, index]), f"SIMC_{index:03d}"
        return simulate_ct_case(name, rng, settings, lesion_free=lesion_free, outline=outline)

    write_cases(folder, n_cases, n_test, lesion_free_share, simulate, progress)
    about = (
        "SIMULATED chest CT with lung nodules; no patient. Analytic lungs with vessels, airways "
        f"and fissures, partial volume, point spread and noise; seed {seed}."
    )
    describe(folder, "simulated_chest_ct", about, "CT", n_cases - n_test, n_test)
