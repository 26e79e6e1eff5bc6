"""The rules that size the network: tile, stages and batch, each with its reason.

nnU-Net below is Isensee F et al., Nature Methods 2021;18:203, with its supplement.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from lesionseg.plan.device_budget import DeviceBudget
from lesionseg.plan.plan import Architecture, Stem
from lesionseg.plan.rules import Decision

NARROWEST = 4  # voxels an axis keeps at the coarsest stage
# Residual blocks of each encoder stage, the last for all further ones; the decoder has one
# convolution a stage (Isensee et al. 2024, nnU-Net's ResEnc M, L and XL alike)
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
ROUND_UP = 1.15  # by how much a tile may exceed the median volume to fit the total stride
# Lesions in a tile from which on small ones are taken: with 1 (nodules) large tiles were better,
# with 1.8 and more (MS, simulated heads) small ones
CROWDED = 1.5
SMALL_TILE = 32**3  # voxels: a small lesion and what surrounds it
MOST_SMALL_TILES = 16  # a step


def network_shape(
    tile_shape: Sequence[int],
    spacing_mm: Sequence[float],
    base_features: int,
    widest: int,
    *,
    name: str = "unet",
    exact: bool = False,
    stem: Stem = "full",
) -> Architecture:
    """Stages, strides, kernels and features for a tile (nnU-Net).

    An axis is halved while it keeps 4 voxels and is less than twice as coarse as the finest axis
    that can be halved; an axis over twice as coarse as the finest has kernels of 1, so that it is
    mixed only once the others have caught up. Features double from stage to stage.

    Args:
        tile_shape: voxels (z, y, x), in 2-D (y, x).
        spacing_mm: of these axes.
        base_features: of the first stage.
        widest: the most features of a stage.
        name: of the architecture.
        exact: only halvings that the tile's own numbers allow, for a tile somebody has chosen.
        stem: `space_to_depth` takes the place of the first stage.
    """
    size, spacing = list(map(float, tile_shape)), list(map(float, spacing_mm))
    strides, kernels = [(1,) * len(size)], [_kernel(size, spacing)]
    while any(stride := _stride(size, spacing, exact)):
        size = [n / 2 if halved else n for n, halved in zip(size, stride, strict=True)]
        spacing = [s * 2 if halved else s for s, halved in zip(spacing, stride, strict=True)]
        strides.append(tuple(2 if halved else 1 for halved in stride))
        kernels.append(_kernel(size, spacing))
    first = 1 if stem == "space_to_depth" and len(strides) > 1 else 0
    n, residual = len(strides) - first, name == "residual_unet"
    blocks = (*RESIDUAL_BLOCKS, *(RESIDUAL_BLOCKS[-1],) * n)[first : first + n]
    return Architecture(
        name=name,
        features=tuple(min(base_features * 2**i, widest) for i in range(n)),
        strides=tuple(strides[first:]),
        kernels=tuple(kernels[first:]),
        blocks=1 if residual else 2,
        n_supervised=min(max(n - 2, 1), 3),
        encoder_blocks=blocks if residual else (),
    )


def _stride(size: Sequence[float], spacing: Sequence[float], exact: bool) -> tuple[bool, ...]:
    """Which axes to halve next."""
    able = [n >= 2 * NARROWEST and (n % 2 == 0 or not exact) for n in size]
    finest = min((s for s, can in zip(spacing, able, strict=True) if can), default=0.0)
    return tuple(can and s < 2 * finest for s, can in zip(spacing, able, strict=True))


def _kernel(size: Sequence[float], spacing: Sequence[float]) -> tuple[int, ...]:
    finest = min(spacing)
    return tuple(1 if s > 2 * finest or n < 2 else 3 for n, s in zip(size, spacing, strict=True))


def total_stride(architecture: Architecture) -> tuple[int, ...]:
    """By how much each axis shrinks to the coarsest stage: a tile's sides are multiples of it.

    >>> total_stride(Architecture("unet", (8, 16, 32), ((1, 1), (2, 2), (1, 2)), ((3, 3),) * 3))
    (2, 4)
    """
    return tuple(prod(axis) for axis in zip(*architecture.strides, strict=True))


def tile_shape(
    median_shape: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget
) -> Decision[tuple[int, ...]]:
    """The largest tile whose training step at batch 2 the budget allows (nnU-Net).

    Grown 8 voxels at a time along the axis that covers the fewest millimetres, at most to the
    median volume, whose sides may be rounded up by 15 % to a multiple of the total stride. On a GPU
    what rounding down leaves goes to single axes, a total stride at a time.
    """
    volumes = len(median_shape) == 3
    longest = allowed.longest if volumes else allowed.longest_2d
    limit = [min(n, longest) for n in median_shape]
    tile = [min(n, allowed.start if volumes else allowed.start_2d) for n in limit]
    if not _affordable(tile, spacing_mm, allowed):
        tile = [min(n, 16) for n in limit]
    growing = {axis for axis, n in enumerate(tile) if n < limit[axis]}
    while growing:
        axis = min(growing, key=lambda a: (tile[a] * spacing_mm[a], a))
        larger = [*tile[:axis], min(tile[axis] + 8, limit[axis]), *tile[axis + 1 :]]
        if _affordable(larger, spacing_mm, allowed):
            tile = larger
        if tile != larger or tile[axis] == limit[axis]:
            growing.remove(axis)
    stride = total_stride(_shape(tile, spacing_mm, allowed))
    fitted = tuple(
        _multiple(n, s, n == m) for n, s, m in zip(tile, stride, median_shape, strict=True)
    )
    if allowed.wider:
        most = [min(int(ROUND_UP * m), longest) for m in median_shape]
        fitted = _filled(fitted, most, spacing_mm, allowed)
    whole = all(n >= m for n, m in zip(fitted, median_shape, strict=True))
    what = "the median volume fits" if whole else "the largest the device allows at batch 2"
    if allowed.most_voxels < inf:
        what = "small, as large ones would hold several lesions, all of one patient"
    return Decision(fitted, f"{' × '.join(map(str, fitted))}: {what}")


def for_small_tiles(
    allowed: DeviceBudget,
    median_shape: Sequence[int],
    spacing_mm: Sequence[float],
    n_voxels: float,
    lesion_voxels: Sequence[float] | NDArray[np.float64],
) -> DeviceBudget:
    """The same budget for small tiles, where the largest would hold several lesions.

    Several lesions of a tile are one patient's, those of as many small tiles are many patients', at
    the same cost. Not where one lesion of ten fills an eighth of a small tile or more (not
    measured), nor on a GPU, whose trainings are long enough to see them all (not measured).

    `n_voxels` and `lesion_voxels`: of the whole dataset and of each lesion, on the plan's grid.
    """
    if not allowed.small_tiles or len(median_shape) < 3:
        return allowed
    largest = min(prod(tile_shape(median_shape, spacing_mm, allowed).value), prod(median_shape))
    crowded = len(lesion_voxels) * largest >= CROWDED * n_voxels
    if largest <= SMALL_TILE or not crowded or np.percentile(lesion_voxels, 90) >= SMALL_TILE / 8:
        return allowed
    return replace(allowed, most_voxels=SMALL_TILE, batch=MOST_SMALL_TILES, capped=False)


def _filled(
    tile: tuple[int, ...], most: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget
) -> tuple[int, ...]:
    """The tile, longer by total strides along the axes that cover the fewest millimetres first."""
    growing = set(range(len(tile)))
    while growing:
        axis = min(growing, key=lambda a: (tile[a] * spacing_mm[a], a))
        stride = total_stride(_shape(tile, spacing_mm, allowed))
        larger = (*tile[:axis], tile[axis] + stride[axis], *tile[axis + 1 :])
        multiple = total_stride(_shape(larger, spacing_mm, allowed))
        divisible = all(n % s == 0 for n, s in zip(larger, multiple, strict=True))
        if larger[axis] <= most[axis] and divisible and _affordable(larger, spacing_mm, allowed):
            tile = larger
        else:
            growing.remove(axis)
    return tile


def widened(shape: Architecture, tile: Sequence[int], allowed: DeviceBudget) -> Architecture:
    """The network as wide as the budget allows at batch 2, once the tile is as large as it gets."""
    best = shape
    for times in allowed.wider:
        wider = replace(shape, features=tuple(int(times * f) for f in shape.features))
        if allowed.fits(wider, tile, 2):
            best = wider
    return best


def _affordable(tile: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget) -> bool:
    """Whether a training step of two such tiles keeps within the budget."""
    fits = allowed.fits(_shape(tile, spacing_mm, allowed), tile, 2)
    return fits and prod(tile) <= allowed.most_voxels


def _shape(tile: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget) -> Architecture:
    return network_shape(
        tile,
        spacing_mm,
        allowed.base_features,
        allowed.widest,
        name=allowed.architecture,
        stem=allowed.stem,
    )


def _multiple(n: int, stride: int, is_whole_axis: bool) -> int:
    up = -(-n // stride) * stride
    return up if is_whole_axis and up <= ROUND_UP * n else max(n // stride, 1) * stride


def batch_size(
    shape: Architecture, tile: Sequence[int], allowed: DeviceBudget, n_voxels: float
) -> Decision[int]:
    """Tiles a step: 2, or more where the budget allows; in 3-D up to 5 % of all voxels (nnU-Net).

    `n_voxels` is the number of voxels of the whole dataset on the plan's grid.
    """
    most = allowed.batch if len(tile) == 3 else allowed.batch_2d
    if len(tile) == 3 and allowed.capped:
        most = min(most, max(2, int(0.05 * n_voxels / prod(tile))))
    batch = 2
    while batch < most and allowed.fits(shape, tile, batch + 1):
        batch += 1
    why = "the most it makes sense to take" if batch == most else "more would break the budget"
    return Decision(batch, f"{batch} tiles a step: {why}")
