"""Distances between two surfaces on one grid of voxel corners, exactly.

Where the other surface is near, its grid is looked at in the order of distance, so the first hit is
the nearest. What is farther is searched for block by block: the bounds that blocks give each other
leave few to look at. 2-D grids come as 3-D ones of one slice.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.ops.kernels.compiled_code import compiled


@compiled
def bounds(points: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lowest and highest coordinates `[dims]` of points `[n, dims]`, n > 0."""
    low, high = points[0].copy(), points[0].copy()
    for i in range(len(points)):
        for axis in range(points.shape[1]):
            low[axis] = min(low[axis], points[i, axis])
            high[axis] = max(high[axis], points[i, axis])
    return low, high


@compiled
def corners_of(
    voxels: NDArray[np.int64],
    low: NDArray[np.int64],
    shape: NDArray[np.int64],
    steps: NDArray[np.int64],
    codes: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The corners `[n, dims]` on the surface of a mask, in the order met, and their codes `[n]`.

    `steps[i]`: how far corner i of a voxel lies from its first one in `codes` `[prod(shape)]`,
    whose bits, all 0 before, say which of a corner's neighbours are inside; `low` is its origin.
    """
    dims = voxels.shape[1]
    touched = np.empty(len(voxels) * steps.size, dtype=np.int64)
    n = 0
    for i in range(len(voxels)):
        place = 0
        for axis in range(dims):
            place = place * shape[axis] + voxels[i, axis] - low[axis]
        for bit in range(steps.size):
            corner = place + steps[bit]
            if codes[corner] == 0:
                touched[n] = corner
                n += 1
            codes[corner] |= 1 << bit
    full = (1 << steps.size) - 1
    corners, corner_codes = np.empty((n, dims), dtype=np.int64), np.empty(n, dtype=np.uint8)
    n_surface = 0
    for corner in touched[:n]:
        if codes[corner] == full:
            continue
        rest = corner
        for axis in range(dims - 1, -1, -1):
            corners[n_surface, axis] = rest % shape[axis] + low[axis]
            rest //= shape[axis]
        corner_codes[n_surface] = codes[corner]
        n_surface += 1
    return corners[:n_surface].copy(), corner_codes[:n_surface].copy()


@compiled
def block_of(
    points: NDArray[np.int64], block: NDArray[np.int64], grid: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number `[n]` of the block of each point, of `grid` blocks along each axis."""
    numbers = np.empty(len(points), dtype=np.int64)
    for i in range(len(points)):
        number = 0
        for axis in range(3):
            number = number * grid[axis] + points[i, axis] // block[axis]
        numbers[i] = number
    return numbers


@compiled
def nearest(
    points: NDArray[np.int64],
    surface: NDArray[np.bool_],
    near: NDArray[np.int64],
    near_mm: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Distance `[n]` of each corner to the nearest one of `surface` `[z, y, x]`; −1 if not near.

    `near` `[k, 3]`: steps to look at, by ascending distance `near_mm` `[k]`.
    """
    n_z, n_y, n_x = surface.shape
    distances = np.full(len(points), -1.0)
    for i in range(len(points)):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        for k in range(len(near)):
            a, b, c = z + near[k, 0], y + near[k, 1], x + near[k, 2]
            if 0 <= a < n_z and 0 <= b < n_y and 0 <= c < n_x and surface[a, b, c]:
                distances[i] = near_mm[k]
                break
    return distances


@compiled
def _squared(a: NDArray[np.float64], b: NDArray[np.float64]) -> Any:
    dz, dy, dx = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return dz * dz + dy * dy + dx * dx


@compiled
def _least_squared(point: Any, box: Any) -> float:
    """Squared distance from a point to a box."""
    total = 0.0
    for axis in range(3):
        apart = max(box[0, axis] - point[axis], point[axis] - box[1, axis], 0.0)
        total += apart * apart
    return total


@compiled
def _choose(box: Any, boxes: Any, chosen: Any) -> int:
    """Fill in which boxes may hold the nearest to a point of `box`; how many they are."""
    bound = np.inf
    for k in range(len(boxes)):
        most = 0.0
        for axis in range(3):
            apart = max(boxes[k, 1, axis] - box[0, axis], box[1, axis] - boxes[k, 0, axis])
            most += apart * apart
        bound = min(bound, most)
    n = 0
    for k in range(len(boxes)):
        least = 0.0
        for axis in range(3):
            apart = max(boxes[k, 0, axis] - box[1, axis], box[0, axis] - boxes[k, 1, axis], 0.0)
            least += apart * apart
        if least <= bound:
            chosen[n] = k
            n += 1
    return n


@compiled
def nearest_by_block(
    points: NDArray[np.float64],
    of_points: NDArray[np.int64],
    point_boxes: NDArray[np.float64],
    others: NDArray[np.float64],
    of_others: NDArray[np.int64],
    other_boxes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Distance `[n]` of each of `points` `[n, 3]` to the nearest of `others` `[m, 3]`, m > 0.

    Both are sorted into blocks: block b has the points `of_points[b]:of_points[b + 1]` and the box
    `point_boxes[b]` (lowest, highest) around them. A block of others is looked at only if it may
    hold what is nearest to some point of the block. A point looks at it only if it is nearer than
    the best so far.
    """
    distances = np.empty(len(points))
    chosen = np.empty(len(other_boxes), dtype=np.int64)
    last = 0  # what was nearest to the point before is near this one
    for block in range(len(point_boxes)):
        n = _choose(point_boxes[block], other_boxes, chosen)
        for i in range(of_points[block], of_points[block + 1]):
            best = _squared(points[i], others[last])
            for k in chosen[:n]:
                if _least_squared(points[i], other_boxes[k]) >= best:
                    continue
                for j in range(of_others[k], of_others[k + 1]):
                    square = _squared(points[i], others[j])
                    if square < best:
                        best, last = square, j
            distances[i] = np.sqrt(best)
    return distances
