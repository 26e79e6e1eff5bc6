"""Local peaks of a probability volume and the voxels that belong to each of them (compiled).

Only voxels that can belong to a candidate are held, not the volume: memory grows with what the
network finds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ContentError
from lesionseg.ops.compiled import compiled
from lesionseg.plan.plan import CandidateRule

Ints = NDArray[np.integer[Any]]

TOP_VOXELS = 8  # whose mean is a candidate's score: two a side in 3-D
_FREE, _NO_PEAK = 0, -1


@dataclass(frozen=True, eq=False)
class SparseProbabilities:
    """The voxels of one label's volume that matter for candidates.

    `shape` is the volume's; `index` `[n]` flat indices ascending, `probabilities` `[n]` float32.
    """

    shape: tuple[int, ...]
    index: Ints
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PeakRegion:
    """A peak's voxels: flat indices `[n]` ascending, and their probabilities `[n]`."""

    voxels: Ints
    probabilities: NDArray[np.float32]

    @property
    def height(self) -> float:
        """The highest probability of its voxels."""
        return float(self.probabilities.max())

    @property
    def score(self) -> float:
        """The mean of its eight highest probabilities, of all if there are fewer."""
        p = self.probabilities
        p = np.partition(p, -TOP_VOXELS)[-TOP_VOXELS:] if len(p) > TOP_VOXELS else p
        return float(p.mean(dtype=np.float64))

    @property
    def peak(self) -> int:
        """Flat index of the first voxel that has the highest probability."""
        return int(self.voxels[self.probabilities.argmax()])


def collect_sparse(
    slabs: Iterable[NDArray[np.floating[Any]]], shape: tuple[int, ...], rule: CandidateRule
) -> SparseProbabilities:
    """The voxels that a candidate of `rule` may hold, from slabs `[rows, *shape[1:]]` in order.

    A candidate ends at floor / ratio, or at the rule's extent, at the lowest. Holds one slab and
    what was found. Raises `ContentError` for NaN.
    """
    # half the memory wherever 32 bits suffice
    kind = np.int32 if int(np.prod(shape, dtype=np.int64)) < 2**31 else np.int64
    limit = np.float32(min(rule.floor / max(rule.ratio, 1.0), rule.extent) * (1 - 1e-6))
    indices, values, row = [], [], 0
    for slab in slabs:
        flat = np.ascontiguousarray(slab).reshape(-1)
        index = np.flatnonzero(~(flat < limit))  # NaN is found too
        values.append(flat[index].astype(np.float32))
        offset = row * (flat.size // max(len(slab), 1))
        indices.append((index + offset).astype(kind))
        row += len(slab)
    p = np.concatenate(values)
    if np.isnan(p).any():
        raise ContentError("The probabilities hold NaN.")
    return SparseProbabilities(shape, np.concatenate(indices), p)


def grow_regions(sparse: SparseProbabilities, rule: CandidateRule) -> list[PeakRegion]:
    """The regions of one label, by descending peak, ties by index.

    Each peak takes, highest first, the free voxels connected to it with p ≥ peak / ratio or
    p ≥ extent. Regions that are shoulders are left out, but what they took stays taken. Of those
    under `min_voxels` there are at most `max_candidates` as well.
    """
    p = sparse.probabilities
    shape = (1, *sparse.shape)[-3:]  # 2-D is 3-D with one slice
    starts = row_starts(sparse.index, shape)
    state = np.zeros(len(p), dtype=np.int32)
    peaks = _peaks(p, sparse.index, starts, shape, np.float32(rule.floor), state)
    peaks = peaks[np.argsort(-p[peaks], kind="stable")]
    ends_at = (rule.ratio, np.float32(rule.extent))
    limits = (*ends_at, rule.prominence, rule.min_voxels, rule.max_candidates)
    taken, ends = _grow(p, sparse.index, starts, shape, peaks, state, limits)
    spans = [np.sort(span) for span in np.split(taken, ends[:-1])] if len(ends) else []
    return [PeakRegion(sparse.index[span], p[span]) for span in spans]


def row_starts(index: Ints, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Where in `index` each row of a volume of three axes begins, and its end."""
    n_rows, n_x = shape[0] * shape[1], shape[2]
    return np.searchsorted(index, np.arange(n_rows + 1, dtype=np.int64) * n_x)


@compiled
def neighbours(index: Any, starts: Any, shape: Any, v: Any, places: Any) -> Any:
    """How many held voxels touch the one at position `v`, itself included; `places` is filled."""
    n_z, n_y, n_x = shape
    flat = index[v]
    z, y, x = flat // (n_y * n_x), flat // n_x % n_y, flat % n_x
    n = 0
    for a in range(max(z - 1, 0), min(z + 2, n_z)):
        for b in range(max(y - 1, 0), min(y + 2, n_y)):
            row = a * n_y + b
            first, last = row * n_x + max(x - 1, 0), row * n_x + min(x + 1, n_x - 1)
            low, high = starts[row], starts[row + 1]
            end = high
            while low < high:
                middle = (low + high) // 2
                if index[middle] < first:
                    low = middle + 1
                else:
                    high = middle
            while low < end and index[low] <= last:
                places[n] = low
                n += 1
                low += 1
    return n


@compiled
def _peaks(p: Any, index: Any, starts: Any, shape: Any, floor: Any, state: Any) -> Any:
    """Positions from the floor up on plateaus without a higher neighbour; `state` as it was."""
    stack = np.empty(len(p), dtype=np.int32)
    places = np.empty(27, dtype=np.int64)
    n_stack = 0
    for v in range(len(p)):
        if p[v] < floor:
            state[v] = _NO_PEAK
            continue
        for k in range(neighbours(index, starts, shape, v, places)):
            if p[places[k]] > p[v]:
                state[v] = _NO_PEAK
        if state[v] == _NO_PEAK:
            stack[n_stack] = v
            n_stack += 1
    while n_stack:  # what is level with a voxel below a higher one is no peak either
        n_stack -= 1
        v = stack[n_stack]
        for k in range(neighbours(index, starts, shape, v, places)):
            u = places[k]
            if p[u] == p[v] and state[u] == _FREE:
                state[u] = _NO_PEAK
                stack[n_stack] = u
                n_stack += 1
    peaks = np.flatnonzero(state == _FREE)
    state[:] = _FREE
    return peaks


@compiled
def _grow(p: Any, index: Any, starts: Any, shape: Any, peaks: Any, state: Any, limits: Any) -> Any:
    """Positions of the kept regions one after the other, and where each region ends."""
    ratio, extent, prominence, min_voxels, max_candidates = limits
    taken = np.empty(1024, dtype=np.int64)
    ends = np.empty(2 * max_candidates, dtype=np.int64)
    places = np.empty(27, dtype=np.int64)
    begin = n_kept = n_small = number = 0
    for peak in peaks:
        if state[peak] != _FREE:
            continue
        if n_kept - n_small == max_candidates:
            break
        number += 1
        bar, saddle = min(p[peak] / ratio, extent), -1.0
        taken[begin], state[peak] = peak, number
        here, end = begin, begin + 1
        while here < end:
            v = taken[here]
            here += 1
            if end + 27 > len(taken):
                taken = np.concatenate((taken, np.empty_like(taken)))
            for k in range(neighbours(index, starts, shape, v, places)):
                u = places[k]
                if state[u] == _FREE and p[u] >= bar:
                    state[u] = number
                    taken[end] = u
                    end += 1
                elif state[u] != _FREE and state[u] != number:
                    saddle = max(saddle, p[v])
        shoulder = p[peak] < prominence * saddle
        small = end - begin < min_voxels
        if not shoulder and not (small and n_small == max_candidates):
            n_small += small
            ends[n_kept] = end
            n_kept += 1
            begin = end
    return taken[:begin], ends[:n_kept]
