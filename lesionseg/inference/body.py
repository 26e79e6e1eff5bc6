"""Body mask: tissue limits in CT and MRI, block size, margin; no tiles outside of the body.

The mask is coarse (blocks of about 4 mm) and generous: it may contain air, but must not exclude
tissue. It is computed from the image before normalisation:

1. A block is tissue if one of its voxels is, in any channel. In CT, tissue is above −500 HU (air
   has −1000, lung −850 with its vessels, fat −100). In MRI, tissue is above 5 % of the range from
   air (0, or the lowest value if it is negative) to the 99.5th percentile.
2. Connected components of noise in MRI are removed: those that are smaller than a hundredth of the
   largest one and nowhere above 15 % of the range. If noise reached 15 %, so many blocks would be
   above 5 % that they were one large component. In CT, noise in air does not reach −500 HU, so all
   components are kept: a nodule in the lung may be the only tissue around it in a cropped scan.
3. Blocks between two blocks of tissue along any axis are inside: lungs, sinuses, the space between
   arms and chest.
4. A margin of two blocks is added.
5. Rows and columns at the ends of the volume that contain only its lowest value (a stripped skull,
   padding) are outside.

Radiographs have no mask. An image has no mask either if less than 2 % or more than 95 % of it is
inside.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Volume
from lesionseg.core.arrays import Flags
from lesionseg.ops.blocks import block_maxima
from lesionseg.ops.components import foreground_slices, label_components
from lesionseg.plan.plan import Modality

_BLOCK_MM = 4.0
_CT_TISSUE_HU = -500.0
_MRI_TISSUE = 0.05  # of the range from air to the 99.5th percentile
_MRI_NO_NOISE = 0.15  # of the same range
_SMALLEST_PIECE = 0.01  # share of the largest component; smaller ones may be noise
_MARGIN_BLOCKS = 2
_PLAUSIBLE_SHARE = (0.02, 0.95)  # of the image
# number of evenly spaced voxels from which percentiles are computed
_SAMPLED = 1 << 20


@dataclass(frozen=True, eq=False)
class Body:
    """A mask of the body in blocks of voxels.

    `blocks` `[*coarse]` is True for blocks of the body. Each block has `block` voxels along each
    axis. Voxels outside `bounds` are not body.
    """

    blocks: Flags
    block: tuple[int, ...]
    bounds: tuple[slice, ...]

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The bounding box of the body in voxels, clipped to `bounds`.

        If no block is body, the box is `bounds` itself.
        """
        block_slices = foreground_slices(self.blocks) or tuple(
            slice(0, n) for n in self.blocks.shape
        )
        box = [  # from blocks to voxels
            slice(max(span.start * width, bound.start), min(span.stop * width, bound.stop))
            for span, width, bound in zip(block_slices, self.block, self.bounds, strict=True)
        ]
        return tuple(box)

    def touches(self, slices: tuple[slice, ...]) -> bool:
        """Return True if a box of voxels overlaps a block of the body inside `bounds`.

        Used to skip tiles that contain only background.

        Args:
            slices: The box, one slice of voxel indices per axis.
        """
        block_slices = []
        for span, width, bound in zip(slices, self.block, self.bounds, strict=True):
            start = max(span.start, bound.start)
            stop = min(span.stop, bound.stop)
            if start >= stop:
                return False
            block_slices.append(slice(start // width, ceil(stop / width)))  # partial blocks too
        return bool(self.blocks[tuple(block_slices)].any())

    def mask(self, slices: tuple[slice, ...]) -> Flags:
        """Return a mask of a box that is True for the voxels of the body.

        Args:
            slices: The box, one slice of voxel indices per axis.

        Returns:
            A boolean array with the shape of the box.
        """
        mask = self.blocks
        for axis, span in enumerate(slices):
            index = np.arange(span.start, span.stop)
            # repeat each block for its voxels along this axis; `take` copies
            mask = np.take(mask, index // self.block[axis], axis=axis)
            bound = self.bounds[axis]
            # moveaxis returns a view of `mask`
            np.moveaxis(mask, axis, 0)[(index < bound.start) | (index >= bound.stop)] = False
        return mask


def find_body(image: Volume, modality: Modality) -> Body | None:
    """Find the patient's body in an image `[C, *spatial]`, so that tiles of background are skipped.

    The intensities must not be normalised yet. The docstring of this module lists the five steps.
    Return None if the entire image shall count as body: if the image is 2-D, or if less than 2 % or
    more than 95 % of it would be body.
    """
    if image.geometry.dims == 2:  # radiographs and pictures
        return None
    # edge lengths of a block in voxels, about 4 mm along each axis
    block = tuple(max(1, round(_BLOCK_MM / mm)) for mm in image.geometry.spacing_mm)
    tissue = _find_tissue(image.array, modality, block)
    # steps 1 and 2, then step 3: fill the blocks between two blocks of tissue along any axis
    filled = tissue.copy()
    for axis in range(tissue.ndim):
        # blocks with tissue at or before them, and at or after them
        before = np.logical_or.accumulate(tissue, axis=axis)
        after = np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis=axis), axis)
        filled |= before & after
    # steps 4 and 5: the margin, and the ends of the volume that contain only its lowest value
    # (`bounds`)
    cube = np.ones((3,) * tissue.ndim, bool)
    blocks = np.asarray(ndimage.binary_dilation(filled, cube, iterations=_MARGIN_BLOCKS))
    body = Body(blocks=blocks, block=block, bounds=_find_bounds(image.array))
    # A cautious, low estimate of the share of the image: the share of blocks, multiplied by that of
    # the bounding box, because padding outside `bounds` is not body.
    n_in_box = prod(s.stop - s.start for s in body.box)
    share = blocks.mean() * n_in_box / prod(image.geometry.shape)
    minimum, maximum = _PLAUSIBLE_SHARE
    return body if minimum <= share <= maximum else None


def _find_tissue(array: NDArray[np.float32], modality: Modality, block: tuple[int, ...]) -> Flags:
    """Find the blocks that contain tissue in at least one channel, without components of noise.

    The function does steps 1 and 2 in the docstring of this module.

    Args:
        array: The image `[C, *spatial]`, not normalised.
        modality: Modality of the image, which decides the intensity limits of tissue.
        block: Edge lengths of a block in voxels.

    Returns:
        A boolean array `[*coarse]` with one element per block.
    """
    maxima = [block_maxima(channel, block) for channel in array]
    tissue = np.zeros(maxima[0].shape, bool)
    exceeds_noise = np.zeros_like(tissue)
    for channel, block_maximum in zip(array, maxima, strict=True):
        tissue_limit, noise_limit = _tissue_limits(channel, modality)
        tissue |= block_maximum > tissue_limit
        exceeds_noise |= block_maximum > noise_limit
    # a connected component is noise if it is small and nowhere above the limit of noise
    components = label_components(tissue)
    sizes = np.bincount(components.reshape(-1))
    sizes[0] = 0  # component 0 is the background
    is_tissue = sizes >= _SMALLEST_PIECE * sizes.max()
    is_tissue[components[exceeds_noise]] = True
    is_tissue[0] = False
    result: Flags = is_tissue[components]
    return result


def _tissue_limits(channel: NDArray[np.float32], modality: Modality) -> tuple[float, float]:
    """Return two intensities of a channel: the lower limit of tissue, and the upper limit of noise.

    In CT, both limits are −500 HU. In MRI and PET, they are 5 % and 15 % of the range from air to
    the 99.5th percentile. So are they in a channel of a CT scan without a voxel below −500 HU.
    """
    # A PET channel of a PET/CT has no such low values. A CT channel without them shows no air.
    if modality == "ct" and float(channel.min()) < _CT_TISSUE_HU:
        return _CT_TISSUE_HU, _CT_TISSUE_HU
    sample = channel.reshape(-1)[:: max(1, channel.size // _SAMPLED)]
    air = min(0.0, float(sample.min()))
    intensity_range = float(np.percentile(sample, 99.5)) - air
    return air + _MRI_TISSUE * intensity_range, air + _MRI_NO_NOISE * intensity_range


def _find_bounds(array: NDArray[np.float32]) -> tuple[slice, ...]:
    """Return the smallest box that contains every voxel above the minimum of its channel.

    The box excludes the padding around a stripped skull or a resampled image. If a channel is
    constant, the box is the entire image.

    Args:
        array: The image `[C, *spatial]`.

    Returns:
        One slice of voxel indices per spatial axis.
    """
    lowest = [channel.min() for channel in array]
    bounds = []
    for axis in range(1, array.ndim):  # axis 0 is the channel
        n = array.shape[axis]
        starts = []
        stops = []
        for channel, low in zip(array, lowest, strict=True):
            planes = np.moveaxis(channel, axis - 1, 0)
            # Lazy, because most images need only a few planes at both ends. A constant channel has
            # no such plane, so the defaults give the entire axis.
            first = next((i for i in range(n) if (planes[i] > low).any()), 0)
            last = next((i for i in reversed(range(n)) if (planes[i] > low).any()), n - 1)
            starts.append(first)
            stops.append(last + 1)
        bounds.append(slice(min(starts), max(stops)))
    return tuple(bounds)
