"""Maximum of each block of voxels: an array of lower resolution."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


def block_maxima(array: NDArray[T], block: Sequence[int]) -> NDArray[T]:
    """Return the maximum of each block of voxels, an array of lower resolution.

    The first axis is reduced in slabs, so that no temporary array is as large as the input.

    Args:
        array: `[*spatial]`, with at least one voxel.
        block: Size of a block along each axis. The last blocks may be smaller.

    Returns:
        One value per block, `[*coarse]`, in the dtype of `array`.

    >>> block_maxima(np.array([[1, 2, 0], [3, 0, 5]]), (2, 2)).tolist()
    [[3, 5]]
    """
    rows = range(0, len(array), block[0])
    highest: NDArray[T] = np.stack([array[row : row + block[0]].max(axis=0) for row in rows])
    for axis, width in enumerate(block[1:], start=1):
        # `reduceat` reduces from each start to the next one
        highest = np.maximum.reduceat(highest, np.arange(0, highest.shape[axis], width), axis=axis)
    return highest
