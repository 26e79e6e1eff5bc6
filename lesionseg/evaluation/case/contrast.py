"""How well a lesion stands out of the tissue around it: a robust contrast-to-noise ratio."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Lesions, Volume

RING_MM = (2.0, 5.0)
MIN_RING_VOXELS = 10
_TO_SIGMA = 1.4826  # the standard deviation of a normal variable over its MAD


def lesion_contrasts(
    image: Volume, lesions: Lesions, ignored: NDArray[np.bool_] | None = None
) -> list[float | None]:
    """Contrast of each lesion in the image's first channel, signed: brighter is positive.

    (median of the lesion − median of its ring) / (1.4826 · MAD of the ring); the ring is what lies
    over 2 and up to 5 mm from the lesion, over 2 mm from all other lesions, and is not ignored.
    MAD for the noise: Rousseeuw & Croux 1993. None for a bare box, fewer than 10 voxels of ring, or
    a ring without noise (such as air set to 0). The image is on the lesions' grid.
    """
    taken = np.zeros(lesions.geometry.shape, dtype=np.bool_)
    taken[tuple(lesions.voxels.T)] = True
    outside = np.zeros_like(taken) if ignored is None else ignored
    return [
        _contrast(image.array[0], lesions, row, taken, outside) if lesions.masked[row] else None
        for row in range(len(lesions))
    ]


def _contrast(
    image: NDArray[Any],
    lesions: Lesions,
    row: int,
    taken: NDArray[np.bool_],
    outside: NDArray[np.bool_],
) -> float | None:
    voxels, spacing = lesions.voxels_of(row), lesions.geometry.spacing_mm
    # far enough to see the others that come near the ring
    reach = np.ceil(sum(RING_MM) / np.asarray(spacing)).astype(np.int64)
    start = np.maximum(voxels.min(axis=0) - reach, 0)
    stop = np.minimum(voxels.max(axis=0) + reach + 1, taken.shape)
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    own = np.zeros(tuple(stop - start), dtype=np.bool_)
    own[tuple((voxels - start).T)] = True
    near = ndimage.distance_transform_edt(~own, sampling=spacing) <= RING_MM[1]
    clear = ndimage.distance_transform_edt(~taken[inside], sampling=spacing) > RING_MM[0]
    ring = image[inside][near & clear & ~outside[inside]].astype(np.float64)
    if len(ring) < MIN_RING_VOXELS:
        return None
    middle = float(np.median(ring))
    noise = _TO_SIGMA * float(np.median(np.abs(ring - middle)))
    apart = float(np.median(image[inside][own])) - middle
    return apart / noise if noise > 1e-9 * max(abs(middle), abs(apart)) else None
