"""Voxels as sorted lists: what a mask of few lesions holds, its components, and which is whose.

The cost follows the voxels that are set; the empty rest of a volume is only skimmed, eight bytes
at a time. 2-D arrays come as 3-D ones of one slice.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.ops.kernels.compiled_code import compiled


@compiled
def nonzero(
    items: NDArray[np.integer[Any]], words: NDArray[np.uint64], per_word: int
) -> NDArray[np.int64]:
    """Indices of the items that are not 0, ascending; `words` are the same bytes, by eight.

    The items that fill no whole word stand at the end.
    """
    found = np.empty(1024, dtype=np.int64)
    n = 0
    for word in range(words.size + 1):
        begin = word * per_word
        end = items.size if word == words.size else begin + per_word
        if word < words.size and words[word] == 0:
            continue
        if n + per_word > found.size:
            found = np.concatenate((found, np.empty_like(found)))
        for i in range(begin, end):
            if items[i] != 0:
                found[n] = i
                n += 1
    return found[:n].copy()


@compiled
def root_of(parent: NDArray[np.int64], i: int) -> int:
    """The one by which a set is known, of `parent` `[n]` in a forest; halves the way there."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled
def _join(parent: NDArray[np.int64], a: int, b: int) -> None:
    a, b = root_of(parent, a), root_of(parent, b)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b


@compiled
def _runs(
    index: NDArray[np.int64], values: NDArray[np.integer[Any]], n_x: int
) -> NDArray[np.int64]:
    """The run `[v]` of each voxel: neighbours along a line that have the same value."""
    run_of = np.empty(index.size, dtype=np.int64)
    run = -1
    for i in range(index.size):
        same = i > 0 and index[i] == index[i - 1] + 1 and values[i] == values[i - 1]
        if not same or index[i] % n_x == 0:
            run += 1
        run_of[i] = run
    return run_of


@compiled
def _numbered(
    parent: NDArray[np.int64], run_of: NDArray[np.int64], low: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the roots, each the first run of its component, and hand the numbers to the voxels."""
    number = np.empty(parent.size, dtype=np.int64)
    first = np.empty(parent.size, dtype=np.int64)
    n = 0
    for run in range(parent.size):
        root = root_of(parent, run)
        if root == run:
            number[run] = n
            first[n] = low[run]
            n += 1
        else:
            number[run] = number[root]
    return number[run_of], first[:n].copy()


@compiled
def components(
    index: NDArray[np.int64], values: NDArray[np.integer[Any]], shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The component `[v]` of each voxel, from 0 in the order of first voxels, and these voxels.

    `index` `[v]`: flat indices, ascending; voxels of equal `values` that share a face, an edge or a
    corner belong together. Runs along the last axis are joined by union and find with those of the
    four lines that come before; each such line has a pointer that only moves forward.
    """
    n_y, n_x = shape[1], shape[2]
    run_of = _runs(index, values, n_x)
    n_runs = run_of[-1] + 1 if run_of.size else 0
    low, high = np.empty(n_runs, dtype=np.int64), np.empty(n_runs, dtype=np.int64)
    for i in range(index.size - 1, -1, -1):
        low[run_of[i]] = i
    for i in range(index.size):
        high[run_of[i]] = i
    parent = np.arange(n_runs)
    above = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
    pointers = np.zeros(4, dtype=np.int64)
    for run in range(n_runs):
        line = index[low[run]] // n_x
        start, stop = index[low[run]] - line * n_x, index[high[run]] - line * n_x
        y = line % n_y
        for k in range(4):
            dz, dy = above[k]
            other = line + dz * n_y + dy
            if other < 0 or y + dy < 0 or y + dy >= n_y:
                continue
            first, last = other * n_x + max(start - 1, 0), other * n_x + min(stop + 1, n_x - 1)
            j = pointers[k]
            while index[high[j]] < first:
                j += 1
            pointers[k] = j
            while index[low[j]] <= last:
                if values[low[j]] == values[low[run]]:
                    _join(parent, j, run)
                j += 1
    return _numbered(parent, run_of, low)


@compiled
def boxes(
    index: NDArray[np.int64], ids: NDArray[np.int64], shape: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """Boxes `[n, 2·dims]` (starts, stops) around the voxels of the ids 1..n; zeros for none."""
    dims = shape.size
    found = np.zeros((n, 2 * dims), dtype=np.int64)
    for i in range(index.size):
        if ids[i] < 1 or ids[i] > n:
            continue
        box, rest = found[ids[i] - 1], index[i]
        fresh = box[dims] == 0  # stops of a box that holds a voxel are over 0
        for axis in range(dims - 1, -1, -1):
            place = rest % shape[axis]
            rest //= shape[axis]
            box[axis] = place if fresh else min(box[axis], place)
            box[dims + axis] = max(box[dims + axis], place + 1)
    return found


@compiled
def grouped(owner: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order `[v]` that puts owners 0..n−1 together, as it was within, and n + 1 bounds."""
    bounds = np.zeros(n + 1, dtype=np.int64)
    for i in range(owner.size):
        bounds[owner[i] + 1] += 1
    for k in range(n):
        bounds[k + 1] += bounds[k]
    place = bounds[:-1].copy()
    order = np.empty(owner.size, dtype=np.int64)
    for i in range(owner.size):
        order[place[owner[i]]] = i
        place[owner[i]] += 1
    return order, bounds
