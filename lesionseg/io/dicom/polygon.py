"""The pixels inside a polygon."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def fill_polygon(corners: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Pixels `[y, x]` whose centre lies inside the closed polygon `corners` `[n, 2]` (y, x).

    Inside is where a ray to the left crosses the outline an odd number of times. A polygon that
    holds no centre keeps the pixel nearest to its middle, so that no lesion is lost; one outside
    the image gives nothing. No corners: nothing.

    >>> fill_polygon(np.array([[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5]]), (2, 3))
    array([[ True,  True, False],
           [False, False, False]])
    """
    inside = np.zeros(tuple(shape), dtype=bool)
    if len(corners) == 0:
        return inside
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, shape)
    y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
    crossed = np.zeros(y.shape, dtype=bool)
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        between = (y0 <= y) != (y1 <= y)
        crossed ^= between & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x)
    inside[low[0] : high[0], low[1] : high[1]] = crossed
    if not inside.any():
        middle = np.rint(corners.mean(axis=0)).astype(int)
        if (middle >= 0).all() and (middle < shape).all():
            inside[tuple(middle)] = True
    return inside
