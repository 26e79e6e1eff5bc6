"""Where the patient is: outside, everything is background and no tile need be computed.

The mask is coarse (blocks of about 4 mm) and generous: it may hold air, but must not cut off
tissue. From the image before normalisation, one small array whatever the volume's size:

1. a block is tissue where one voxel is: CT above −500 HU (air −1000, lung −850 with its vessels,
   fat −100); MRI above 5 % of the way from air (0, or the lowest value where that is negative) to
   the 99.5th percentile, in any channel;
2. crumbs (noise, a cable) under a hundredth of the largest connected piece are left out;
3. what lies between two pieces of tissue along any axis counts as inside: lungs, sinuses, the
   space between arms and chest;
4. two blocks of margin;
5. rows and columns at the volume's ends that hold nothing but its lowest value (a stripped skull,
   padding) are outside whatever the margin.

Radiographs, and images where this finds next to nothing or nearly everything, have no mask.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Volume
from lesionseg.ops.components import foreground_slices, label_components
from lesionseg.plan.plan import Modality

_BLOCK_MM = 4.0
_CT_TISSUE_HU = -500.0
_MRI_TISSUE = 0.05
_CRUMB = 0.01
_MARGIN_BLOCKS = 2
_PLAUSIBLE = (0.02, 0.95)
# percentiles are taken from so many evenly spaced voxels
_SAMPLED = 1 << 20


@dataclass(frozen=True, eq=False)
class Body:
    """The blocks `[*coarse]` that hold the body, each `block` voxels wide, of a volume `shape`.

    What lies outside `bounds`, where there are any, is no body though its block may be.
    """

    blocks: NDArray[np.bool_]
    block: tuple[int, ...]
    shape: tuple[int, ...]
    bounds: tuple[slice, ...] | None = None

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The smallest box of voxels that holds the body."""
        coarse = foreground_slices(self.blocks) or tuple(slice(0, n) for n in self.blocks.shape)
        bounds = self.bounds or tuple(slice(0, n) for n in self.shape)
        return tuple(
            slice(max(s.start * b, inner.start), min(s.stop * b, inner.stop))
            for s, b, inner in zip(coarse, self.block, bounds, strict=True)
        )

    def touches(self, slices: tuple[slice, ...]) -> bool:
        """Whether a box of voxels holds a part of the body."""
        slices = tuple(
            slice(max(s.start, inner.start), min(s.stop, inner.stop))
            for s, inner in zip(slices, self.bounds or slices, strict=True)
        )
        if any(s.start >= s.stop for s in slices):
            return False
        coarse = tuple(
            slice(s.start // b, -(-s.stop // b)) for s, b in zip(slices, self.block, strict=True)
        )
        return bool(self.blocks[coarse].any())

    def rows(self, start: int, stop: int) -> NDArray[np.bool_]:
        """The mask `[stop - start, *shape[1:]]` of some rows along the first axis."""
        mask = self.blocks[np.arange(start, stop) // self.block[0]]
        for axis, (b, n) in enumerate(zip(self.block[1:], self.shape[1:], strict=True), start=1):
            mask = np.take(mask, np.arange(n) // b, axis=axis)
        if self.bounds is not None:
            first, *rest = self.bounds
            inner = (slice(max(first.start - start, 0), max(first.stop - start, 0)), *rest)
            outside = np.ones(mask.shape, dtype=np.bool_)
            outside[inner] = False
            mask[outside] = False
        return mask


def find_body(image: Volume, modality: Modality) -> Body | None:
    """The body in an image `[C, *spatial]` of raw intensities; None when there is no mask."""
    if modality == "xray":
        return None
    block = tuple(max(1, round(_BLOCK_MM / mm)) for mm in image.geometry.spacing_mm)
    highest = [_block_maxima(channel, block) for channel in image.array]
    limits = [_tissue_limit(channel, modality) for channel in image.array]
    tissue = np.logical_or.reduce([h > t for h, t in zip(highest, limits, strict=True)])
    cube = np.ones((3,) * tissue.ndim, dtype=np.bool_)
    inside = _enclosed(_without_crumbs(tissue))
    blocks = np.asarray(ndimage.binary_dilation(inside, cube, iterations=_MARGIN_BLOCKS))
    body = Body(blocks, block, image.geometry.shape, _bounds(image.array))
    # a box that is smaller than the volume may be full
    share = blocks.mean() * prod(s.stop - s.start for s in body.box) / prod(body.shape)
    if not _PLAUSIBLE[0] <= share <= _PLAUSIBLE[1]:
        return None
    return body


def _tissue_limit(channel: NDArray[np.float32], modality: Modality) -> float:
    if modality == "ct":
        return _CT_TISSUE_HU
    sample = channel.reshape(-1)[:: max(1, channel.size // _SAMPLED)]
    air = min(0.0, float(sample.min()))
    return air + _MRI_TISSUE * (float(np.percentile(sample, 99.5)) - air)


def _bounds(array: NDArray[np.float32]) -> tuple[slice, ...] | None:
    """The box outside of which every channel has its lowest value; None when all have."""
    ends = [[_ends(c, axis, c.min()) for axis in range(c.ndim)] for c in array]
    bounds = tuple(
        slice(min(s.start for s in axis), max(s.stop for s in axis))
        for axis in zip(*ends, strict=True)
    )
    return None if any(s.start >= s.stop for s in bounds) or not bounds else bounds


def _ends(channel: NDArray[np.float32], axis: int, lowest: np.float32) -> slice:
    """From the first to the last plane across an axis that holds more than the lowest value."""
    planes = np.moveaxis(channel, axis, 0)
    first, last = 0, len(planes)
    while first < last and not (planes[first] > lowest).any():
        first += 1
    while last > first and not (planes[last - 1] > lowest).any():
        last -= 1
    return slice(first, last)


def _block_maxima(channel: NDArray[np.float32], block: tuple[int, ...]) -> NDArray[np.float32]:
    """The highest voxel of each block, the last ones cut off at the volume's end."""
    rows = range(0, len(channel), block[0])
    highest = np.stack([channel[start : start + block[0]].max(axis=0) for start in rows])
    for axis, b in enumerate(block[1:], start=1):
        starts = np.arange(0, highest.shape[axis], b)
        highest = np.maximum.reduceat(highest, starts, axis=axis)
    return highest


def _without_crumbs(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces = label_components(tissue)
    sizes = np.bincount(pieces.reshape(-1))
    sizes[0] = 0
    large = np.asarray(sizes >= max(1, _CRUMB * sizes.max()), dtype=np.bool_)
    return np.asarray(large[pieces])


def _enclosed(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tissue, and what lies between the first and the last of it along any axis."""
    filled = tissue.copy()
    for axis in range(tissue.ndim):
        before = np.logical_or.accumulate(tissue, axis=axis)
        after = np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis=axis), axis)
        filled |= before & after
    return filled
