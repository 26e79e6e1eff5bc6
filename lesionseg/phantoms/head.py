"""A simulated head: ellipsoids, folds of cortex and relaxation times become a FLAIR signal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesionseg.phantoms.fields import Field, ellipsoid_depth, inside, millimetre_axes, smooth_field


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms and proton density relative to cerebrospinal fluid."""

    t1_ms: float
    t2_ms: float
    density: float


# 1.5 T, as tabulated for the BrainWeb simulator: Kwan RKS, Evans AC, Pike GB, IEEE Trans Med
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
LAYERS_MM = {"fluid": 2.0, "skull": 8.0, "scalp": 13.0}  # outer depth below each boundary


def inversion_time_ms(t1_ms: float, repetition_ms: float = REPETITION_MS) -> float:
    """Inversion time in ms that nulls a tissue of the given T1.

    Solves 1 − 2·exp(−TI/T1) + exp(−TR/T1) = 0 (Hajnal JV et al., J Comput Assist Tomogr
    1992;16:841).

    >>> round(inversion_time_ms(2569.0))
    1705
    """
    return float(t1_ms * (np.log(2) - np.log1p(np.exp(-repetition_ms / t1_ms))))


def flair_signal(tissue: Tissue) -> float:
    """Magnitude of a FLAIR sequence that nulls fluid, relative to a density of 1.

    PD · |1 − 2·exp(−TI/T1) + exp(−TR/T1)| · exp(−TE/T2).

    >>> flair_signal(TISSUES["csf"]) < 1e-6
    True
    """
    inversion = inversion_time_ms(TISSUES["csf"].t1_ms)
    recovery = 1 - 2 * np.exp(-inversion / tissue.t1_ms) + np.exp(-REPETITION_MS / tissue.t1_ms)
    return float(tissue.density * abs(recovery) * np.exp(-ECHO_MS / tissue.t2_ms))


@dataclass(frozen=True, eq=False)
class Head:
    """The healthy head on a grid `[*shape]`: noise-free signal and where lesions may lie.

    `white` and `parenchyma` are shares 0..1 of white matter and of brain; `ventricle_mm` is the
    distance to the ventricles, `depth_mm` the depth under the brain's surface. `signals` are the
    case's own tissue signals.
    """

    signal: Field
    white: Field
    parenchyma: Field
    ventricle_mm: Field
    depth_mm: Field
    signals: Mapping[str, float]


def simulate_head(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]
) -> Head:
    """Draw a head of random size, shape, folding and tissue properties that fills the grid."""
    half_mm = np.asarray(shape) * np.asarray(spacing_mm) / 2
    outer = np.minimum(0.96 * half_mm, ADULT_MM) * rng.uniform(0.95, 1.0, size=3)
    scale = min(1.0, float(np.min(outer / ADULT_MM)) * 1.2)  # small grids get a small head
    axes = _deformed_axes(rng, shape, spacing_mm, scale)
    voxel = float(np.mean(spacing_mm))
    depth = ellipsoid_depth(axes, (0, 0, 0), tuple(outer - LAYERS_MM["scalp"] * scale))
    signals = _signals(rng)
    signal = _envelope(depth, voxel, scale, signals)
    surface = _surface_mm(rng, axes, depth, shape, spacing_mm, scale)
    brain, white = inside(surface - 0.7 * scale, voxel), inside(surface - 3.4 * scale, voxel)
    ventricle = _ventricle_depth(rng, axes, scale)
    grey_core, fluid = inside(_nuclei_depth(axes, scale), voxel), inside(ventricle, voxel)
    white = white * (1 - grey_core) * (1 - fluid)
    brain = brain * (1 - fluid)
    texture = 1 + 0.04 * smooth_field(rng, shape, spacing_mm, 14 * scale)
    tissue = white * signals["white"] + (brain - white) * signals["grey"] * texture
    signal = signal * inside(-depth, voxel) + tissue
    signal += (
        _flow_artefacts(rng, shape, spacing_mm, scale, signals) * inside(depth, voxel) * (1 - brain)
    )
    signal += _plexus(axes, ventricle, voxel, scale) * signals["lesion"] * 0.6
    signal += white * _caps(ventricle, scale) * rng.uniform(0.05, 0.2) * signals["lesion"]
    return Head(signal.astype(np.float32), white, brain, -ventricle, depth, signals)


def _signals(rng: np.random.Generator) -> dict[str, float]:
    """Tissue signals with the T2 of each tissue 4 % apart between people."""
    return {
        name: flair_signal(Tissue(t.t1_ms, t.t2_ms * rng.normal(1, 0.04), t.density))
        for name, t in TISSUES.items()
    }


def _deformed_axes(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float], scale: float
) -> list[Field]:
    """Coordinates in mm, bent by about 2 mm, so that no head is a perfect ellipsoid."""
    return [
        axis + np.float32(2.5 * scale) * smooth_field(rng, shape, spacing_mm, 120 * scale)
        for axis in millimetre_axes(shape, spacing_mm)
    ]


def _envelope(depth: Field, voxel: float, scale: float, signals: Mapping[str, float]) -> Field:
    """Skin, subcutaneous fat, dark bone with a line of marrow, and dark fluid, by depth."""
    skin = inside(depth + 13 * scale, voxel)
    fat = inside(depth + 11.5 * scale, voxel)
    bone = inside(depth + 8 * scale, voxel)
    marrow = inside(depth + 6 * scale, voxel) - inside(depth + 4.5 * scale, voxel)
    return np.asarray(
        (skin - fat) * signals["muscle"] + (fat - bone + 0.4 * marrow) * signals["fat"],
        dtype=np.float32,
    )


def _surface_mm(
    rng: np.random.Generator,
    axes: Sequence[Field],
    depth: Field,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    scale: float,
) -> Field:
    """Distance in mm to the nearest fluid-covered surface: outside, fissure or a sulcus.

    Sulci are the zero sheets of a random field: |field| / |gradient| is the distance to them.
    """
    wavelength = 24.0 * scale
    folds = smooth_field(rng, shape, spacing_mm, wavelength)
    sheet = np.abs(folds) * np.float32(wavelength / (2 * np.pi))
    sulci = np.hypot(sheet, np.maximum(depth - 13 * scale, 0))
    fissure = np.hypot(axes[2], np.maximum(depth - 26 * scale, 0))
    return np.asarray(np.minimum(depth, np.minimum(sulci, fissure)), dtype=np.float32)


def _ventricle_depth(rng: np.random.Generator, axes: Sequence[Field], scale: float) -> Field:
    """Signed depth in mm inside the lateral ventricles (two arcs) and the third one."""
    z, y, x = (a / np.float32(scale) for a in axes)
    wide = rng.uniform(0.8, 1.5)
    bow = (y / 32) ** 2
    lateral = ellipsoid_depth(
        (z - 12 + 7 * bow, y, np.abs(x) - 7 - 8 * bow), (0, 0, 0), (5.5 * wide, 32, 4.5 * wide)
    )
    third = ellipsoid_depth((z, y, x), (-3, -4, 0), (10, 12, 1.6 * wide))
    return np.asarray(np.maximum(lateral, third) * np.float32(scale), dtype=np.float32)


def _nuclei_depth(axes: Sequence[Field], scale: float) -> Field:
    """Signed depth in mm inside thalamus and striatum, left and right."""
    z, y, x = (a / np.float32(scale) for a in axes)
    thalamus = ellipsoid_depth((z, y, np.abs(x)), (0, -9, 12), (8, 13, 8))
    striatum = ellipsoid_depth((z, y, np.abs(x)), (0, 8, 26), (10, 17, 5))
    return np.asarray(np.maximum(thalamus, striatum) * np.float32(scale), dtype=np.float32)


def _flow_artefacts(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    scale: float,
    signals: Mapping[str, float],
) -> Field:
    """Fluid that moves escapes the inversion: bright spots in sulci and ventricles."""
    field = smooth_field(rng, shape, spacing_mm, 16 * scale)
    return np.asarray(
        np.clip(field - 1.4, 0, 1) * signals["lesion"] + 0.15 * signals["white"], dtype=np.float32
    )


def _plexus(axes: Sequence[Field], ventricle: Field, voxel: float, scale: float) -> Field:
    """Choroid plexus: bright, lesion-like tissue inside the back of the lateral ventricles."""
    z, y, x = (a / np.float32(scale) for a in axes)
    depth = ellipsoid_depth((z, y, np.abs(x)), (9, -17, 10), (4, 9, 3)) * np.float32(scale)
    return inside(depth, voxel) * inside(ventricle, voxel)


def _caps(ventricle: Field, scale: float) -> Field:
    """The thin bright lining that healthy ventricles have, fading within about 2 mm."""
    return np.exp(np.minimum(ventricle, 0) / np.float32(2 * scale))
