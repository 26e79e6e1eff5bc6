"""Simulated pairs of visits: a head whose lesions are new, gone, enlarged, shrunk or stable.

The benchmarks and tests of `follow` use them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.phantoms import (
    TRIES,
    Field,
    Grid,
    Placed,
    acquire_mri,
    draw_head,
    ellipsoid_depth,
    lesion_share,
    millimetre_axes,
    place_at,
    write_array,
)

Images = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class VisitSettings:
    """Settings of simulated pairs of visits.

    Attributes:
        shape: Voxels along z, y and x.
        spacing_mm: Size of a voxel along z, y and x.
        n_lesions: Number of new, gone, enlarged, shrunk and stable lesions.
        diameter_mm: Least and most; diameters are log-uniform between them.
        growth: Factor for the diameter of an enlarged lesion, divisor for that of a shrunk one.
    """

    shape: tuple[int, ...] = (48, 96, 96)
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    n_lesions: tuple[int, ...] = (2, 1, 1, 1, 8)
    diameter_mm: tuple[float, float] = (3.0, 12.0)
    growth: float = 1.5


def simulate_visits(rng: Generator, settings: VisitSettings) -> tuple[Images, Images]:
    """Draw a head with lesions at two visits. Each visit has its own noise and shading.

    Args:
        rng: Draws everything.
        settings: Grid, number, size and growth of lesions.

    Returns:
        Two dictionaries of arrays `[Z, Y, X]`: the scans (`before`, `after`) and the masks
        (`before`, `after`, `new`). The mask `new` has the lesions that only the later visit has.
    """
    shape = settings.shape
    spacing_mm = settings.spacing_mm
    growth = settings.growth
    # lesions are centred in this ellipsoid, which approximates the brain of `draw_head`
    radii = 0.375 * np.asarray(shape) * np.asarray(spacing_mm)
    within = ellipsoid_depth(millimetre_axes(shape, spacing_mm), (0, 0, 0), radii) > 0
    brain = np.asarray(within, dtype=np.float32)
    places = np.argwhere(within)
    shares = {name: np.zeros(shape, dtype=np.float32) for name in ("before", "after", "new")}
    # factors of the diameter in the masks before, after and new; a mask with 0 has no such lesion
    factors_of_change = [
        (0, 1, 1),  # new
        (1, 0, 0),  # gone
        (1, growth, 0),  # enlarged
        (1, 1 / growth, 0),  # shrunk
        (1, 1, 0),  # stable
    ]
    log_least, log_most = np.log(settings.diameter_mm)
    for factors, n in zip(factors_of_change, settings.n_lesions, strict=True):
        for diameter in np.exp(rng.uniform(log_least, log_most, size=n)).tolist():
            outline_seed = int(rng.integers(2**31))  # the same outline in all sizes
            jitter = rng.uniform(-0.5, 0.5, size=3)
            drawn: dict[str, Field] = {}
            for name, factor in zip(shares, factors, strict=True):
                if factor:
                    outline_rng = default_rng(outline_seed)
                    drawn[name] = lesion_share(outline_rng, diameter * factor, spacing_mm, jitter)
            centres = rng.permutation(places)[:TRIES]
            _add_to_masks(shares, drawn, centres, brain)
    tissue, _ = draw_head(rng, Grid(shape, spacing_mm))
    signals = {visit: tissue + np.float32(0.6) * shares[visit] for visit in ("before", "after")}
    scans = {visit: acquire_mri(rng, signal, spacing_mm) for visit, signal in signals.items()}
    return scans, {name: (share >= 0.5).astype(np.uint8) for name, share in shares.items()}


def _add_to_masks(
    shares: Mapping[str, Field],
    drawn: Mapping[str, Field],
    centres: NDArray[np.int64],
    brain: Field,
) -> None:
    """Add a lesion to the masks at the first centre at which it fits in all of them.

    Args:
        shares: Share 0..1 of lesion in each voxel, by the name of the mask. They are changed.
        drawn: The lesion as it is in each mask that has it, as `lesion_share` returns it.
        centres: The voxels to try, `[n, 3]`.
        brain: Share 0..1 of brain in each voxel.
    """
    is_taken = np.maximum(shares["before"], shares["after"]) >= 0.5
    for centre in centres:
        placed: dict[str, Placed] = {}
        for name, share in drawn.items():
            place = place_at(centre, share, brain, is_taken, gap=3)
            if place is not None:
                placed[name] = place
        if len(placed) == len(drawn):
            for name, (box, share) in placed.items():
                shares[name][box] = np.maximum(shares[name][box], share)
            return


def write_visit_phantoms(
    folder: Path, n: int, settings: VisitSettings | None = None, seed: int = 0
) -> Path:
    """Write `n` pairs of visits, and return `folder`.

    The masks are in its folders `before`, `after` and `new`, the scans in `before_images` and
    `after_images`.

    Args:
        folder: The folder to write.
        n: Number of pairs.
        settings: By default `VisitSettings()`.
        seed: Pair i depends only on the seed and on i.
    """
    settings = settings or VisitSettings()
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    for number in range(n):
        scans, masks = simulate_visits(default_rng((seed, number)), settings)
        name = f"simulated_{number:03d}.nii.gz"
        for kind, mask in masks.items():
            write_array(folder / kind / name, mask, geometry)
        for visit, scan in scans.items():
            write_array(folder / f"{visit}_images" / name, scan, geometry)
    return folder
