"""Sets of a forest, and what belongs to which, in compiled loops."""

import numpy as np
from numpy.typing import NDArray

from lesionseg.ops.kernels.compiled_code import compiled


@compiled
def root_of(parent: NDArray[np.int64], i: int) -> int:
    """The one by which a set is known, of `parent` `[n]` in a forest; halves the way there."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


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
