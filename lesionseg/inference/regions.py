"""Local peaks of a probability volume and the voxels that each of them claims (compiled)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lesionseg.errors import ContentError
from lesionseg.plan.plan import CandidateRule

Ints = NDArray[np.integer[Any]]
Function = TypeVar("Function", bound=Callable[..., Any])

_FREE, _NO_PEAK = 0, -1


@dataclass(frozen=True, eq=False)
class Region:
    """A peak's voxels: flat indices `[n]` ascending, and their probabilities `[n]`."""

    voxels: Ints
    probabilities: NDArray[np.float32]

    @property
    def score(self) -> float:
        """The highest probability of its voxels."""
        return float(self.probabilities.max())

    @property
    def peak(self) -> int:
        """Flat index of the first voxel that has the highest probability."""
        return int(self.voxels[self.probabilities.argmax()])

    def part(self, keep: NDArray[np.bool_]) -> "Region":
        """Only the voxels `[n]` marked in `keep`."""
        return Region(self.voxels[keep], self.probabilities[keep])


def grow_regions(probabilities: NDArray[np.float32], rule: CandidateRule) -> list[Region]:
    """The regions of one label's probabilities `[*spatial]`, by descending peak, ties by index.

    Each peak claims, highest first, the unclaimed voxels connected to it with p ≥ peak / ratio;
    regions that are shoulders or too small are left out, but what they claimed stays claimed.
    Raises `ContentError` for NaN.
    """
    p = np.ascontiguousarray(probabilities, dtype=np.float32).reshape(-1)
    index = np.int32 if p.size < 2**31 else np.int64  # half the memory wherever it fits
    above = np.flatnonzero(~(p < rule.floor)).astype(index)
    if np.isnan(p[above]).any():
        raise ContentError("The probabilities hold NaN.")
    shape = (1, *probabilities.shape)[-3:]  # 2-D is 3-D with one slice
    state = np.zeros(p.size, dtype=np.int32)
    peaks = _peaks(p, shape, above, state)
    peaks = peaks[np.argsort(-p[peaks], kind="stable")]
    limits = (rule.min_voxels, rule.max_candidates)
    voxels, ends = _claim(p, shape, peaks, state, rule.ratio, rule.prominence, limits)
    spans = [np.sort(span) for span in np.split(voxels, ends[:-1])] if len(ends) else []
    return [Region(span, p[span]) for span in spans]


def _compiled(function: Function) -> Function:
    """Compiled at the first call and, where a folder can be written, kept for the next process."""
    try:
        return cast(Function, njit(cache=True)(function))
    except RuntimeError:
        return cast(Function, njit(function))


@_compiled
def _peaks(p: Any, shape: Any, above: Any, state: Any) -> Any:
    """The voxels of `above` on plateaus that have no higher neighbour; `state` as it was."""
    n_z, n_y, n_x = shape
    stack = np.empty_like(above)
    n_stack = 0
    for v in above:
        z, y, x = v // (n_y * n_x), v // n_x % n_y, v % n_x
        for a in range(max(z - 1, 0), min(z + 2, n_z)):
            for b in range(max(y - 1, 0), min(y + 2, n_y)):
                for c in range(max(x - 1, 0), min(x + 2, n_x)):
                    if p[(a * n_y + b) * n_x + c] > p[v]:
                        state[v] = _NO_PEAK
        if state[v] == _NO_PEAK:
            stack[n_stack] = v
            n_stack += 1
    while n_stack:  # what is level with a voxel below a higher one is no peak either
        n_stack -= 1
        v = stack[n_stack]
        z, y, x = v // (n_y * n_x), v // n_x % n_y, v % n_x
        for a in range(max(z - 1, 0), min(z + 2, n_z)):
            for b in range(max(y - 1, 0), min(y + 2, n_y)):
                for c in range(max(x - 1, 0), min(x + 2, n_x)):
                    u = (a * n_y + b) * n_x + c
                    if p[u] == p[v] and state[u] == _FREE:
                        state[u] = _NO_PEAK
                        stack[n_stack] = u
                        n_stack += 1
    peaks = above[state[above] == _FREE]
    state[above] = _FREE
    return peaks


@_compiled
def _claim(
    p: Any, shape: Any, peaks: Any, state: Any, ratio: Any, prominence: Any, limits: Any
) -> Any:
    """Voxels of the kept regions one after the other, and where each region ends."""
    n_z, n_y, n_x = shape
    min_voxels, max_candidates = limits
    voxels = np.empty(1024, dtype=peaks.dtype)
    ends = np.empty(max_candidates, dtype=np.int64)
    begin = n_kept = number = 0
    for peak in peaks:
        if state[peak] != _FREE:
            continue
        if n_kept == max_candidates:
            break
        number += 1
        bar, contact = p[peak] / ratio, -1.0
        voxels[begin], state[peak] = peak, number
        here, end = begin, begin + 1
        while here < end:
            v = voxels[here]
            here += 1
            if end + 27 > len(voxels):
                voxels = np.concatenate((voxels, np.empty_like(voxels)))
            z, y, x = v // (n_y * n_x), v // n_x % n_y, v % n_x
            for a in range(max(z - 1, 0), min(z + 2, n_z)):
                for b in range(max(y - 1, 0), min(y + 2, n_y)):
                    for c in range(max(x - 1, 0), min(x + 2, n_x)):
                        u = (a * n_y + b) * n_x + c
                        if state[u] == _FREE and p[u] >= bar:
                            state[u] = number
                            voxels[end] = u
                            end += 1
                        elif state[u] != _FREE and state[u] != number:
                            contact = max(contact, p[v])
        shoulder = p[peak] < prominence * contact
        if end - begin >= min_voxels and not shoulder:
            ends[n_kept] = end
            n_kept += 1
            begin = end
    return voxels[:begin], ends[:n_kept]
