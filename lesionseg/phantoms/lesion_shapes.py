"""Sizes, outlines and places of lesions: rippled ellipsoids, or the outlines of recorded ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.errors import require
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import label_components
from lesionseg.phantoms.fields import Field

SUBSAMPLES = 3  # a lesion's share of a voxel is counted on 3³ points
FEWEST_VOXELS = 30  # of a recorded lesion whose outline is worth copying

Points = NDArray[np.float64]
Outline = Callable[[np.random.Generator, Points], NDArray[np.float64]]


def rippled(rng: np.random.Generator, points: Points) -> NDArray[np.float64]:
    """|A·x| of a random ellipsoid plus ripples, at `points` `[n, 3]` in units of the radius."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = np.exp(rng.normal(0, 0.2, size=3))
    radius = np.linalg.norm(points @ (turn * (stretch / stretch.prod() ** (1 / 3))), axis=1)
    waves, phases = rng.normal(0, 1.8, size=(3, 3)), rng.uniform(0, 2 * np.pi, size=3)
    return np.asarray(radius + 0.12 * np.cos(points @ waves + phases).sum(axis=1))


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
        require(len(self.distances) > 0, "No lesion has an outline to copy.", where=folder)

    def __call__(self, rng: np.random.Generator, points: Points) -> NDArray[np.float64]:
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


def lesion_share(
    rng: np.random.Generator,
    diameter_mm: float,
    spacing_mm: Sequence[float],
    jitter: NDArray[np.float64],
    outline: Outline = rippled,
) -> Field:
    """Share 0..1 of each voxel of an odd box that an irregular blob at its middle covers.

    `outline` grows outwards from the blob's middle; it is cut at the level where the volume is
    that of a sphere of `diameter_mm`. `jitter` `[3]` moves it off the middle, in voxels.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    half = np.ceil(0.95 * diameter_mm / spacing).astype(int) + 1
    fine = [
        ((np.arange((2 * h + 1) * SUBSAMPLES) + 0.5) / SUBSAMPLES - h - 0.5 - j) * s
        for h, s, j in zip(half, spacing, jitter, strict=True)
    ]
    points = np.stack([g.ravel() for g in np.meshgrid(*fine, indexing="ij")], axis=1)
    level = outline(rng, points / (diameter_mm / 2))
    n_inside = round(np.pi / 6 * diameter_mm**3 / (spacing.prod() / SUBSAMPLES**3))
    cut = np.partition(level, min(n_inside, level.size - 1))[min(n_inside, level.size - 1)]
    shape = [n for h in half for n in (2 * h + 1, SUBSAMPLES)]
    covered = (level < cut).reshape(shape).mean(axis=(1, 3, 5))
    return np.asarray(covered, dtype=np.float32)


def draw_diameters(
    rng: np.random.Generator,
    n_lesions: tuple[int, int],
    diameter_mm: tuple[float, float, float],
    log_spread: float,
) -> list[float]:
    """Equivalent diameters in mm of so many lesions (least, most), in descending order.

    Log-normal; `diameter_mm` is least, median and most.
    """
    least, median, most = diameter_mm
    n = int(rng.integers(n_lesions[0], n_lesions[1] + 1))
    diameters = np.exp(rng.normal(np.log(median), log_spread, size=n))
    return sorted(np.clip(diameters, least, most).tolist(), reverse=True)


def place_at(
    centre: NDArray[np.int64],
    filled: Field,
    tissue: Field,
    labels: NDArray[np.uint8],
    gap: int,
) -> tuple[tuple[slice, ...], Field] | None:
    """Where a lesion's box lies, and its share of each voxel there; None where it does not fit.

    `filled` is a lesion's share of its odd box, `tissue` `[*shape]` the share of each voxel in
    which it may grow. It fits where the box and `gap` voxels around it are inside, it is one piece,
    and no lesion of `labels` is within `gap` voxels.
    """
    half = np.array(filled.shape) // 2
    start, stop = centre - half, centre + half + 1
    if (start < gap).any() or (stop > np.array(labels.shape) - gap).any():
        return None
    where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    wide = tuple(slice(a - gap, b + gap) for a, b in zip(start, stop, strict=True))
    filled = filled * tissue[where]
    mask = filled >= 0.5
    near = ndimage.maximum_filter(np.pad(mask, gap), 2 * gap + 1)
    free = not (labels[wide][near] > 0).any()
    return (where, filled) if free and label_components(mask).max() == 1 else None
