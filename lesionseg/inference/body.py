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
    """The blocks `[*coarse]` that hold the body, each `block` voxels wide, inside `bounds`."""

    blocks: NDArray[np.bool_]
    block: tuple[int, ...]
    bounds: tuple[slice, ...]

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The smallest box of voxels that holds the body."""
        coarse = foreground_slices(self.blocks) or tuple(slice(0, n) for n in self.blocks.shape)
        return tuple(
            slice(max(s.start * b, inner.start), min(s.stop * b, inner.stop))
            for s, b, inner in zip(coarse, self.block, self.bounds, strict=True)
        )

    def touches(self, slices: tuple[slice, ...]) -> bool:
        """Whether a box of voxels holds a part of the body."""
        near = []
        for s, b, inner in zip(slices, self.block, self.bounds, strict=True):
            start, stop = max(s.start, inner.start), min(s.stop, inner.stop)
            if start >= stop:
                return False
            near.append(slice(start // b, -(-stop // b)))
        return bool(self.blocks[tuple(near)].any())

    def mask(self, slices: tuple[slice, ...]) -> NDArray[np.bool_]:
        """Which voxels of a box are body."""
        mask = self.blocks
        for axis, (s, b, inner) in enumerate(zip(slices, self.block, self.bounds, strict=True)):
            index = np.arange(s.start, s.stop)
            mask = np.take(mask, index // b, axis=axis)
            outside = (index < inner.start) | (index >= inner.stop)
            mask[(*(slice(None),) * axis, outside)] = False
        return mask


def find_body(image: Volume, modality: Modality) -> Body | None:
    """The body in an image `[C, *spatial]` of raw intensities; None when there is no mask."""
    if modality == "xray":
        return None
    block = tuple(max(1, round(_BLOCK_MM / mm)) for mm in image.geometry.spacing_mm)
    tissue = np.logical_or.reduce(
        [_block_maxima(c, block) > _tissue_limit(c, modality) for c in image.array]
    )
    pieces = label_components(tissue)
    sizes = np.bincount(pieces.reshape(-1))
    sizes[0] = 0
    inside = (sizes >= max(1, _CRUMB * sizes.max()))[pieces]
    lines = inside.copy()
    for axis in range(inside.ndim):  # from the first to the last tissue along any axis
        before = np.logical_or.accumulate(inside, axis=axis)
        after = np.flip(np.logical_or.accumulate(np.flip(inside, axis), axis=axis), axis)
        lines |= before & after
    cube = np.ones((3,) * tissue.ndim, dtype=np.bool_)
    blocks = np.asarray(ndimage.binary_dilation(lines, cube, iterations=_MARGIN_BLOCKS))
    body = Body(blocks, block, _bounds(image.array))
    # a box that is smaller than the volume may be full
    share = blocks.mean() * prod(s.stop - s.start for s in body.box) / prod(image.geometry.shape)
    return body if _PLAUSIBLE[0] <= share <= _PLAUSIBLE[1] else None


def _tissue_limit(channel: NDArray[np.float32], modality: Modality) -> float:
    if modality == "ct":
        return _CT_TISSUE_HU
    sample = channel.reshape(-1)[:: max(1, channel.size // _SAMPLED)]
    air = min(0.0, float(sample.min()))
    return air + _MRI_TISSUE * (float(np.percentile(sample, 99.5)) - air)


def _bounds(array: NDArray[np.float32]) -> tuple[slice, ...]:
    """The box outside of which every channel has its lowest value; all of a constant channel."""
    lowest, bounds = [channel.min() for channel in array], []
    for axis in range(1, array.ndim):
        ends = []
        for channel, low in zip(array, lowest, strict=True):
            planes, n = np.moveaxis(channel, axis - 1, 0), array.shape[axis]
            first = next((i for i in range(n) if (planes[i] > low).any()), 0)
            last = next((i for i in reversed(range(n)) if (planes[i] > low).any()), n - 1)
            ends.append((first, last + 1))
        bounds.append(slice(min(first for first, _ in ends), max(last for _, last in ends)))
    return tuple(bounds)


def _block_maxima(channel: NDArray[np.float32], block: tuple[int, ...]) -> NDArray[np.float32]:
    rows = range(0, len(channel), block[0])
    highest = np.stack([channel[start : start + block[0]].max(axis=0) for start in rows])
    for axis, b in enumerate(block[1:], start=1):
        starts = np.arange(0, highest.shape[axis], b)
        highest = np.maximum.reduceat(highest, starts, axis=axis)
    return highest
