"""Anatomical heads: FLAIR scans with white-matter lesions for the tables in docs/.

    python benchmarks/phantoms/heads.py FOLDER --cases 16 --test 4 --seed 1

Ellipsoids, folds of cortex and relaxation times give a FLAIR signal.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.phantoms import (
    Field,
    Grid,
    Placed,
    Range,
    Simulated,
    coverage,
    draw_cases,
    ellipsoid_depth,
    lesion_share,
    millimetre_axes,
    place_at,
    smooth_field,
    write_nnunet_raw,
)

TRIES = 40  # a lesion is left out after so many tried places


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms and proton density relative to cerebrospinal fluid."""

    t1_ms: float
    t2_ms: float
    density: float


# 1.5 T, from the tables of the BrainWeb simulator: Kwan RKS, Evans AC, Pike GB, IEEE Trans Med
# Imaging 1999;18:1085; Cocosco CA et al., NeuroImage 1997;5:S425.
TISSUES: Mapping[str, Tissue] = {
    "csf": Tissue(2569, 329, 1.0),
    "grey": Tissue(833, 83, 0.86),
    "white": Tissue(500, 70, 0.77),
    "fat": Tissue(350, 70, 1.0),
    "muscle": Tissue(900, 47, 1.0),
    "lesion": Tissue(752, 237, 0.76),
}
REPETITION_MS, ECHO_MS = 9000.0, 100.0
ADULT_MM = (78.0, 95.0, 76.0)  # half axes of a large head, scalp included: up, forward, sideways
# as in nnU-Net's issue 3048: 0.007 % of the voxels are lesions, on slices of 6 mm
NEEDLE: Mapping[str, Any] = {
    "shape": (26, 176, 144),
    "spacing_mm": (6.0, 1.0, 1.0),
    "n_lesions": (1, 4),
    "lesion_fraction": 7e-5,
    "diameter_mm": (4.0, 6.0, 10.0),
}
LAYERS_MM = {"fluid": 2.0, "skull": 8.0, "scalp": 13.0}  # outer depth below each boundary


def inversion_time_ms(t1_ms: float, repetition_ms: float = REPETITION_MS) -> float:
    """Return the inversion time in ms that nulls a tissue of the given T1.

    Solves 1 − 2·exp(−TI/T1) + exp(−TR/T1) = 0 (Hajnal JV et al., J Comput Assist Tomogr
    1992;16:841).

    >>> round(inversion_time_ms(2569.0))
    1705
    """
    return float(t1_ms * (np.log(2) - np.log1p(np.exp(-repetition_ms / t1_ms))))


def flair_signal(tissue: Tissue) -> float:
    """Return the magnitude of a FLAIR sequence that nulls fluid, relative to a density of 1.

    PD · |1 − 2·exp(−TI/T1) + exp(−TR/T1)| · exp(−TE/T2).

    >>> flair_signal(TISSUES["csf"]) < 1e-6
    True
    """
    inversion = inversion_time_ms(TISSUES["csf"].t1_ms)
    recovery = 1 - 2 * np.exp(-inversion / tissue.t1_ms) + np.exp(-REPETITION_MS / tissue.t1_ms)
    return float(tissue.density * abs(recovery) * np.exp(-ECHO_MS / tissue.t2_ms))


@dataclass(frozen=True, eq=False)
class Head:
    """A healthy head on a grid `[*shape]`: noise-free signal and possible places of lesions.

    `white` and `parenchyma` are shares 0..1 of white matter and of brain. `ventricle_mm` is the
    distance to the ventricles, `depth_mm` the depth below the brain's surface. `signals` contains
    the tissue signals of the case.
    """

    signal: Field
    white: Field
    parenchyma: Field
    ventricle_mm: Field
    depth_mm: Field
    signals: Mapping[str, float]


def simulate_head(rng: Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Head:
    """Draw a head of random size, shape, folding and tissue properties that fills the grid."""
    half_mm = np.asarray(shape) * np.asarray(spacing_mm) / 2
    outer = np.minimum(0.96 * half_mm, ADULT_MM) * rng.uniform(0.95, 1.0, size=3)
    scale = min(1.0, float(np.min(outer / ADULT_MM)) * 1.2)  # small grids get a small head
    axes = _draw_axes(rng, shape, spacing_mm, scale)
    voxel = float(np.mean(spacing_mm))
    depth = ellipsoid_depth(axes, (0, 0, 0), tuple(outer - LAYERS_MM["scalp"] * scale))
    signals = _draw_signals(rng)
    signal = _envelope_signal(depth, voxel, scale, signals)
    surface = _surface_mm(rng, axes, depth, shape, spacing_mm, scale)
    brain = coverage(surface - 0.7 * scale, voxel)
    white = coverage(surface - 3.4 * scale, voxel)
    ventricle = _ventricle_depth(rng, axes, scale)
    grey_core = coverage(_nuclei_depth(axes, scale), voxel)
    fluid = coverage(ventricle, voxel)
    white = white * (1 - grey_core) * (1 - fluid)
    brain = brain * (1 - fluid)
    texture = 1 + 0.04 * smooth_field(rng, shape, spacing_mm, 14 * scale)
    tissue = white * signals["white"] + (brain - white) * signals["grey"] * texture
    signal = signal * coverage(-depth, voxel) + tissue
    signal += (
        _flow_artefacts(rng, shape, spacing_mm, scale, signals)
        * coverage(depth, voxel)
        * (1 - brain)
    )
    signal += _plexus(axes, ventricle, voxel, scale) * signals["lesion"] * 0.6
    signal += white * _caps(ventricle, scale) * rng.uniform(0.05, 0.2) * signals["lesion"]
    return Head(signal.astype(np.float32), white, brain, -ventricle, depth, signals)


def _draw_signals(rng: Generator) -> dict[str, float]:
    """Return the tissue signals. The T2 of each tissue varies by 4 % between people."""
    signals = {}
    for name, tissue in TISSUES.items():
        t2_ms = tissue.t2_ms * rng.normal(1, 0.04)
        signals[name] = flair_signal(Tissue(tissue.t1_ms, t2_ms, tissue.density))
    return signals


def _draw_axes(
    rng: Generator, shape: Sequence[int], spacing_mm: Sequence[float], scale: float
) -> list[Field]:
    """Return coordinates in mm, deformed by about 2 mm, so that no head is an exact ellipsoid."""
    return [
        axis + np.float32(2.5 * scale) * smooth_field(rng, shape, spacing_mm, 120 * scale)
        for axis in millimetre_axes(shape, spacing_mm)
    ]


def _envelope_signal(
    depth: Field, voxel: float, scale: float, signals: Mapping[str, float]
) -> Field:
    """Return the signal of skin, fat, dark bone with marrow, and dark fluid, by depth."""
    skin = coverage(depth + 13 * scale, voxel)
    fat = coverage(depth + 11.5 * scale, voxel)
    bone = coverage(depth + 8 * scale, voxel)
    marrow = coverage(depth + 6 * scale, voxel) - coverage(depth + 4.5 * scale, voxel)
    return np.asarray(
        (skin - fat) * signals["muscle"] + (fat - bone + 0.4 * marrow) * signals["fat"],
        dtype=np.float32,
    )


def _surface_mm(
    rng: Generator,
    axes: Sequence[Field],
    depth: Field,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    scale: float,
) -> Field:
    """Return the distance in mm to the nearest surface next to fluid: outside, fissure or sulcus.

    Sulci are the zero sheets of a random field. Their distance is |field| / |gradient|.
    """
    wavelength = 24.0 * scale
    folds = smooth_field(rng, shape, spacing_mm, wavelength)
    sheet = np.abs(folds) * np.float32(wavelength / (2 * np.pi))
    sulci = np.hypot(sheet, np.maximum(depth - 13 * scale, 0))
    fissure = np.hypot(axes[2], np.maximum(depth - 26 * scale, 0))
    return np.asarray(np.minimum(depth, np.minimum(sulci, fissure)), dtype=np.float32)


def _ventricle_depth(rng: Generator, axes: Sequence[Field], scale: float) -> Field:
    """Return the signed depth in mm inside the lateral ventricles (two arcs) and the third."""
    z, y, x = (a / np.float32(scale) for a in axes)
    width = rng.uniform(0.8, 1.5)
    bow = (y / 32) ** 2
    lateral = ellipsoid_depth(
        (z - 12 + 7 * bow, y, np.abs(x) - 7 - 8 * bow), (0, 0, 0), (5.5 * width, 32, 4.5 * width)
    )
    third = ellipsoid_depth((z, y, x), (-3, -4, 0), (10, 12, 1.6 * width))
    return np.asarray(np.maximum(lateral, third) * np.float32(scale), dtype=np.float32)


def _nuclei_depth(axes: Sequence[Field], scale: float) -> Field:
    """Return the signed depth in mm inside thalamus and striatum of both sides."""
    z, y, x = (a / np.float32(scale) for a in axes)
    thalamus = ellipsoid_depth((z, y, np.abs(x)), (0, -9, 12), (8, 13, 8))
    striatum = ellipsoid_depth((z, y, np.abs(x)), (0, 8, 26), (10, 17, 5))
    return np.asarray(np.maximum(thalamus, striatum) * np.float32(scale), dtype=np.float32)


def _flow_artefacts(
    rng: Generator,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    scale: float,
    signals: Mapping[str, float],
) -> Field:
    """Return bright spots in sulci and ventricles, where moving fluid is not nulled."""
    field = smooth_field(rng, shape, spacing_mm, 16 * scale)
    return np.asarray(
        np.clip(field - 1.4, 0, 1) * signals["lesion"] + 0.15 * signals["white"], dtype=np.float32
    )


def _plexus(axes: Sequence[Field], ventricle: Field, voxel: float, scale: float) -> Field:
    """Return the choroid plexus: bright tissue in the posterior part of the lateral ventricles."""
    z, y, x = (a / np.float32(scale) for a in axes)
    depth = ellipsoid_depth((z, y, np.abs(x)), (9, -17, 10), (4, 9, 3)) * np.float32(scale)
    return coverage(depth, voxel) * coverage(ventricle, voxel)


def _caps(ventricle: Field, scale: float) -> Field:
    """Return the thin bright lining of healthy ventricles, which fades within about 2 mm."""
    return np.exp(np.minimum(ventricle, 0) / np.float32(2 * scale))


@dataclass(frozen=True)
class MriSettings:
    """Settings of the simulated scans.

    `contrast` multiplies the difference of lesions from white matter. `noise` is the standard
    deviation of the receiver's noise as a share of white matter's signal, `bias` that of the log of
    the coil's shading. `lesion_fraction` limits the share of lesion voxels in the grid.
    """

    shape: tuple[int, ...] = (96, 112, 96)
    spacing_mm: tuple[float, ...] = (1.5, 1.5, 1.5)
    contrast: float = 1.0
    noise: float = 0.05
    n_lesions: tuple[int, int] = (10, 40)
    lesion_fraction: float | None = None
    diameter_mm: tuple[float, float, float] = (2.0, 7.0, 15.0)  # least, median, most
    log_std: float = 0.4  # of the diameters, in log mm
    bias: float = 0.12


def simulate_mri_case(rng: Generator, settings: MriSettings, n_lesions: Range) -> Simulated:
    """Draw one head: anatomy, FLAIR signal, lesions, coil shading, Rician noise.

    A voxel is lesion if at least half of its volume is lesion. Different lesions never touch.
    """
    head = simulate_head(rng, settings.shape, settings.spacing_mm)
    signal = head.signal.copy()
    labels = np.zeros(settings.shape, dtype=np.uint8)
    if n_lesions[1]:
        _add_lesions(rng, head, settings, signal, labels)
    shading = smooth_field(rng, settings.shape, settings.spacing_mm, 220.0)
    shaded = (
        signal / np.float32(head.signals["white"]) * np.exp(np.float32(settings.bias) * shading)
    )
    noise = rng.standard_normal((2, *settings.shape), dtype=np.float32) * settings.noise
    scale = 300.0 * np.exp(rng.normal(0, 0.2))
    return np.asarray(np.hypot(shaded + noise[0], noise[1]) * scale, dtype=np.float32), labels


def draw_diameters(
    rng: Generator,
    n_lesions: tuple[int, int],
    diameter_mm: tuple[float, float, float],
    log_std: float,
) -> list[float]:
    """Draw log-normal diameters (least, median, most) of n lesions (least, most), descending."""
    least, median, most = diameter_mm
    n = int(rng.integers(n_lesions[0], n_lesions[1] + 1))
    diameters = np.exp(rng.normal(np.log(median), log_std, size=n))
    return sorted(np.clip(diameters, least, most).tolist(), reverse=True)


def _add_lesions(
    rng: Generator,
    head: Head,
    settings: MriSettings,
    signal: Field,
    labels: NDArray[np.uint8],
) -> None:
    """Write lesions into `signal` and `labels`, large ones first, while the budget lasts."""
    zones = _zones(head)
    share = np.inf if settings.lesion_fraction is None else settings.lesion_fraction
    budget = share * labels.size
    diameters = draw_diameters(rng, settings.n_lesions, settings.diameter_mm, settings.log_std)
    for diameter in diameters:
        excess = _draw_severity(rng, diameter) * head.signals["lesion"] - head.signals["white"]
        for _ in range(TRIES):
            placed = _try_place(rng, head, settings, zones, diameter, labels)
            if placed is not None:
                break
        else:
            continue
        place, filled = placed
        voxels = int((filled >= 0.5).sum())
        if voxels > budget:
            continue
        budget -= voxels
        signal[place] += filled * np.float32(settings.contrast * max(excess, 0.0))
        labels[place][filled >= 0.5] = 1


def _draw_severity(rng: Generator, diameter_mm: float) -> float:
    """Draw the signal relative to a fully demyelinated plaque. Small lesions are fainter."""
    typical = 0.72 * (diameter_mm / 6.0) ** 0.1
    return float(np.clip(typical * np.exp(rng.normal(0, 0.15)), 0.55, 1.0))


def _zones(head: Head) -> list[tuple[float, NDArray[np.int64]]]:
    """Return probability and flat voxel indices of the zones of lesions in multiple sclerosis.

    The zones are around the ventricles, in deep white matter, and below the cortex (Filippi M et
    al., Brain 2019;142:1858).
    """
    near = (head.ventricle_mm > 0.5) & (head.ventricle_mm < 8) & (head.white > 0.5)
    deep = (head.ventricle_mm >= 8) & (head.white > 0.98)
    rim = (head.white > 0.4) & (head.white < 0.9) & (head.ventricle_mm >= 8)
    zones = [(0.4, near), (0.4, deep), (0.2, rim)]
    return [(p, np.flatnonzero(zone)) for p, zone in zones if zone.any()]


def _try_place(
    rng: Generator,
    head: Head,
    settings: MriSettings,
    zones: Sequence[tuple[float, NDArray[np.int64]]],
    diameter_mm: float,
    labels: NDArray[np.uint8],
) -> Placed | None:
    """Try a random place. Return it with the lesion's share of each voxel, or None if not free."""
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
    **chosen: Any,
) -> None:
    """Write simulated FLAIR scans as an nnU-Net raw folder. `chosen` are `MriSettings`."""
    settings = MriSettings(**chosen)

    def simulate(rng: Generator, n_lesions: Range) -> Simulated:
        return simulate_mri_case(rng, settings, n_lesions)

    about = f"SIMULATED FLAIR scans of heads with white-matter lesions; no patient. Seed {seed}."
    grid = Grid(settings.shape, settings.spacing_mm)
    cases = draw_cases(
        simulate, "SIM", n_cases, seed, lesion_free_share, grid, settings.n_lesions, None
    )
    write_nnunet_raw(folder, cases, n_cases, n_test, "simulated_flair", "FLAIR", about)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--test", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--needle", action="store_true", help="thick slices, few lesion voxels")
    options = parser.parse_args()
    write_mri_phantoms(
        options.folder,
        options.cases,
        seed=options.seed,
        n_test=options.test,
        **(NEEDLE if options.needle else {}),
    )
