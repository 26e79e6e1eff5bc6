"""Simulated FLAIR scans of heads with white-matter lesions, whose reference is exact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.errors import require
from lesionseg.phantoms.fields import Field, smooth_field
from lesionseg.phantoms.head import Head, simulate_head
from lesionseg.phantoms.lesion_shapes import draw_diameters, lesion_share, place_at
from lesionseg.phantoms.scan_folder import describe, write_cases

WHITE_LEVEL = 300.0  # stored value of white matter, before each case's own scale
TRIES = 40  # places tried for a lesion before it is given up


@dataclass(frozen=True)
class MriSettings:
    """What the simulated scans look like.

    `contrast` multiplies the lesions' difference from white matter; `noise` is the standard
    deviation of the receiver noise as a share of white matter's signal; `n_lesions` the least and
    most lesions of a case that has any. `lesion_fraction` caps the share of lesion voxels in the
    grid (None: no cap). `diameter_mm` is least, median and most of the log-normal equivalent
    diameter, `log_spread` its standard deviation in log mm. `bias` is the standard deviation of
    the log of the coil's shading.
    """

    shape: tuple[int, ...] = (96, 112, 96)
    spacing_mm: tuple[float, ...] = (1.5, 1.5, 1.5)
    contrast: float = 1.0
    noise: float = 0.05
    n_lesions: tuple[int, int] = (10, 40)
    lesion_fraction: float | None = None
    diameter_mm: tuple[float, float, float] = (2.0, 7.0, 15.0)
    log_spread: float = 0.4
    bias: float = 0.12

    def __post_init__(self) -> None:
        axes = (self.shape, self.spacing_mm)
        require(all(len(a) == 3 for a in axes), "A simulated head has three axes.", seen=axes)
        least, most = self.n_lesions
        require(1 <= least <= most, "n_lesions must be (least, most).", seen=self.n_lesions)


def simulate_mri_case(
    case: str, rng: np.random.Generator, settings: MriSettings, *, lesion_free: bool = False
) -> Case:
    """Draw one head: image `[1, Z, Y, X]` float32 in scanner units and its reference.

    Chain: anatomy → FLAIR signal → lesions → coil shading → Rician noise (Gudbjartsson & Patz,
    Magn Reson Med 1995;34:910). A voxel is lesion when at least half of it is. Voxels of different
    lesions never touch, so that the components of the mask are the lesions.
    """
    head = simulate_head(rng, settings.shape, settings.spacing_mm)
    signal, labels = head.signal.copy(), np.zeros(settings.shape, dtype=np.uint8)
    if not lesion_free:
        _add_lesions(rng, head, settings, signal, labels)
    image = _acquire(rng, signal, head.signals["white"], settings)
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    return Case(case, Volume(image[None], geometry), Reference(geometry, labels), group=case)


def _acquire(rng: np.random.Generator, signal: Field, white: float, settings: MriSettings) -> Field:
    """Coil shading, Rician noise and an arbitrary scale: what the scanner would store."""
    shading = smooth_field(rng, settings.shape, settings.spacing_mm, 220.0)
    shaded = signal / np.float32(white) * np.exp(np.float32(settings.bias) * shading)
    noise = rng.standard_normal((2, *settings.shape), dtype=np.float32) * settings.noise
    scale = WHITE_LEVEL * np.exp(rng.normal(0, 0.2))
    return np.asarray(np.hypot(shaded + noise[0], noise[1]) * scale, dtype=np.float32)


def _add_lesions(
    rng: np.random.Generator,
    head: Head,
    settings: MriSettings,
    signal: Field,
    labels: NDArray[np.uint8],
) -> None:
    """Write lesions into `signal` and `labels`, large ones first, while the budget lasts."""
    zones = _zones(head)
    share = np.inf if settings.lesion_fraction is None else settings.lesion_fraction
    budget = share * labels.size
    sizes = (settings.n_lesions, settings.diameter_mm, settings.log_spread)
    for diameter in draw_diameters(rng, *sizes):
        excess = _severity(rng, diameter) * head.signals["lesion"] - head.signals["white"]
        for _ in range(TRIES):
            placed = _place(rng, head, settings, zones, diameter, labels)
            if placed is not None:
                break
        else:
            continue
        where, filled = placed
        voxels = int((filled >= 0.5).sum())
        if voxels > budget:
            continue
        budget -= voxels
        signal[where] += filled * np.float32(settings.contrast * max(excess, 0.0))
        labels[where][filled >= 0.5] = 1


def _severity(rng: np.random.Generator, diameter_mm: float) -> float:
    """Signal relative to a fully demyelinated plaque: small lesions tend to be fainter."""
    typical = 0.72 * (diameter_mm / 6.0) ** 0.1
    return float(np.clip(typical * np.exp(rng.normal(0, 0.15)), 0.55, 1.0))


def _zones(head: Head) -> list[tuple[float, NDArray[np.int64]]]:
    """Where lesions start, as (probability, flat voxel indices), as multiple sclerosis has them.

    Around the ventricles, in deep white matter, and under the cortex (Filippi M et al., Brain
    2019;142:1858).
    """
    near = (head.ventricle_mm > 0.5) & (head.ventricle_mm < 8) & (head.white > 0.5)
    deep = (head.ventricle_mm >= 8) & (head.white > 0.98)
    rim = (head.white > 0.4) & (head.white < 0.9) & (head.ventricle_mm >= 8)
    zones = [(0.4, near), (0.4, deep), (0.2, rim)]
    return [(p, np.flatnonzero(zone)) for p, zone in zones if zone.any()]


def _place(
    rng: np.random.Generator,
    head: Head,
    settings: MriSettings,
    zones: Sequence[tuple[float, NDArray[np.int64]]],
    diameter_mm: float,
    labels: NDArray[np.uint8],
) -> tuple[tuple[slice, ...], Field] | None:
    """A free place and the lesion's share of each voxel there; None when this try does not fit."""
    weight = np.array([p for p, _ in zones])
    voxels = zones[int(rng.choice(len(zones), p=weight / weight.sum()))][1]
    centre = np.array(np.unravel_index(int(rng.choice(voxels)), settings.shape))
    jitter = rng.uniform(-0.5, 0.5, size=3) * min(1.0, diameter_mm / 5)
    filled = lesion_share(rng, diameter_mm, settings.spacing_mm, jitter)
    return place_at(centre, filled, head.parenchyma, labels, gap=1)


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
    noise: float = 0.05,
    n_lesions: tuple[int, int] = (10, 40),
    lesion_fraction: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write `n_cases` simulated FLAIR scans as an nnU-Net raw folder (v2 `dataset.json`).

    Case i depends on `seed` and i alone, so a longer set begins with the shorter one. Raises
    `ConfigError` for impossible numbers.

    Args:
        folder: where the dataset is written.
        n_cases: how many scans.
        seed: of the random numbers.
        n_test: how many of the last cases go to `imagesTs` and `labelsTs`.
        lesion_free_share: the share of cases without a lesion, spread evenly.
        shape: voxels along z, y and x; this and the next five: see `MriSettings`.
        spacing_mm: the voxel's sides.
        contrast: multiplies the lesions' difference from white matter.
        noise: standard deviation as a share of white matter's signal.
        n_lesions: the least and most of a case that has any.
        lesion_fraction: caps the share of lesion voxels; None: no cap.
        progress: called with case, number done and total after every case.
    """
    settings = MriSettings(shape, spacing_mm, contrast, noise, n_lesions, lesion_fraction)

    def simulate(index: int, *, lesion_free: bool) -> Case:
        rng = np.random.default_rng([seed, index])
        return simulate_mri_case(f"SIM_{index:03d}", rng, settings, lesion_free=lesion_free)

    write_cases(folder, n_cases, n_test, lesion_free_share, simulate, progress)
    about = (
        "SIMULATED FLAIR scans of heads with white-matter lesions; no patient. "
        f"Signal equation, partial volume, coil shading and Rician noise; seed {seed}."
    )
    describe(folder, "simulated_flair", about, "FLAIR", n_cases - n_test, n_test)
