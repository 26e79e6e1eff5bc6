"""From probabilities to candidates: regions of peaks, joined where a high saddle connects them.

A large lesion of which the network is sure here and less sure there has many peaks. Cut apart, each
piece but one would be a false positive, and none would show how large the lesion is. Only voxels
that can belong to a candidate are held, not the volume: memory grows with what the network finds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction, equivalent_diameter_mm
from lesionseg.errors import ContentError, GeometryError
from lesionseg.ops.compiled import compiled, root_of
from lesionseg.plan.plan import CandidateRule

Ints = NDArray[np.integer[Any]]

TOP_VOXELS = 8  # whose mean is a candidate's score: two a side in 3-D
PROMINENCE = 1.5  # a peak below this times its contact with a higher region is a shoulder
_FREE, _NO_PEAK = 0, -1
_UNSEEN, _NO_REGION = -1, -1


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
    limits = (*ends_at, PROMINENCE, rule.min_voxels, rule.max_candidates)
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


def join_regions(
    regions: Sequence[PeakRegion],
    sparse: SparseProbabilities,
    rule: CandidateRule,
    voxel_size: float = 1.0,
) -> list[PeakRegion]:
    """The regions of one label, by descending peak, those joined that one lesion may well hold.

    The saddle of a peak is the highest level from which a path leads to a higher peak and nowhere
    falls below it (topographic prominence; ties go to the earlier region). A region whose peak is
    less than `rule.join` times its saddle belongs to that higher peak's region, and so on up, if
    the larger of both is `rule.join_mm` in equivalent diameter: small lesions side by side stay
    apart. Voxels of the path belong to neither. Paths through voxels that `sparse` does not hold
    are not seen. `voxel_size`: in mm³, of a slice in mm². `rule.join` of 1 or less joins nothing.

    >>> p = np.array([[0.9, 0.3, 0.8, 0.05, 0.6]], np.float32)
    >>> sparse = SparseProbabilities((1, 5), np.arange(5), p[0])
    >>> apart = [PeakRegion(np.array([i]), p[0, [i]]) for i in (0, 2, 4)]
    >>> joined = join_regions(apart, sparse, CandidateRule(join=10, join_mm=1))
    >>> [r.voxels.tolist() for r in joined]
    [[0, 2], [4]]
    """
    if rule.join <= 1 or len(regions) < 2:
        return list(regions)
    p, shape = sparse.probabilities, (1, *sparse.shape)[-3:]  # 2-D is 3-D with one slice
    region_at = np.full(len(p), _NO_REGION, dtype=np.int64)
    region_at[np.searchsorted(sparse.index, [r.peak for r in regions])] = np.arange(len(regions))
    order = np.argsort(-p, kind="stable")
    # no lower saddle can join even the lowest peak
    lowest = min(r.height for r in regions) / rule.join
    order = order[: np.searchsorted(-p[order], -lowest, "right")]
    starts = row_starts(sparse.index, shape)
    higher, saddles = _flood(p, sparse.index, starts, shape, order, region_at)
    dims, members = len(sparse.shape), [[region] for region in regions]

    def is_large(part: Sequence[PeakRegion]) -> bool:
        volume = voxel_size * sum(len(r.voxels) for r in part)
        return bool(equivalent_diameter_mm(volume, dims) >= rule.join_mm)

    for i, region in enumerate(regions):  # a higher one has found its place already
        near = higher[i] != _NO_REGION and region.height < rule.join * saddles[i]
        if near and (is_large(members[higher[i]]) or is_large([region])):
            members[higher[i]].append(region)
            members[i] = members[higher[i]]  # the same list: what joins one joins all
    joined = []
    for region, part in zip(regions, members, strict=True):
        if part[0] is region:
            voxels = np.concatenate([r.voxels for r in part])
            order = np.argsort(voxels)
            values = np.concatenate([r.probabilities for r in part])
            joined.append(PeakRegion(voxels[order], values[order]))
    return joined


@compiled
def _flood(p: Any, index: Any, starts: Any, shape: Any, order: Any, region_at: Any) -> Any:
    """Lower the water voxel by voxel: where two islands meet is the saddle of the lower one's peak.

    `region_at` has the region whose peak a voxel is, and of an island's root its highest region.
    """
    n_regions = region_at.max() + 1
    higher = np.full(n_regions, _NO_REGION, dtype=np.int64)
    saddles = np.zeros(n_regions, dtype=np.float32)
    root = np.full(len(p), _UNSEEN, dtype=np.int64)
    places = np.empty(27, dtype=np.int64)
    for v in order:
        root[v] = v
        for k in range(neighbours(index, starts, shape, v, places)):
            if root[places[k]] == _UNSEEN:
                continue
            a, b = root_of(root, v), root_of(root, places[k])
            if a == b:
                continue
            low, high = max(region_at[a], region_at[b]), min(region_at[a], region_at[b])
            if high != _NO_REGION:  # both islands have a region; later ones are lower
                higher[low], saddles[low] = high, p[v]
                low = high
            root[a], region_at[b] = b, low
    return higher, saddles


def find_candidates(
    probabilities: Iterable[NDArray[np.float32] | SparseProbabilities],
    geometry: Geometry,
    rule: CandidateRule,
    label_values: Sequence[int],
    case: str = "",
) -> Prediction:
    """Find candidates in the probabilities `[K, *spatial]` of K labels, by `CandidateRule`.

    The channels may come one by one from a generator, whole or as the voxels that matter
    (`collect_sparse`). Voxels that share a face, an edge or a corner touch. A plateau is one peak;
    ties go to the lower index. A voxel taken for two labels belongs to the higher probability. A
    candidate's score is the mean of its eight highest probabilities; which are kept goes by the
    highest voxel. Nothing above the floor gives no candidates. The cost grows with the voxels above
    the floor. Raises `GeometryError` for a channel that does not fit, `ContentError` for NaN.

    >>> rule = CandidateRule(min_voxels=1)
    >>> p = np.array([[[0.9, 0.5, 0.1, 0.6, 0.3]]], dtype=np.float32)
    >>> found = find_candidates(p, Geometry.from_spacing((1, 5), (1, 1)), rule, (7,))
    >>> found.instances.tolist(), [c.label for c in found.candidates]
    ([[1, 1, 0, 2, 0]], [7, 7])
    """
    regions: list[PeakRegion] = []
    labels: list[int] = []
    for label, channel in zip(label_values, probabilities, strict=True):
        if channel.shape != geometry.shape:
            raise GeometryError(
                f"Probabilities {channel.shape} do not fit the grid {geometry.shape}."
            )
        if not isinstance(channel, SparseProbabilities):
            channel = collect_sparse([channel], geometry.shape, rule)
        grown = grow_regions(channel, rule)
        joined = join_regions(grown, channel, rule, geometry.voxel_size)
        regions += joined
        labels += [label] * len(joined)
    sizes = np.array([len(r.voxels) for r in regions])
    large = sizes >= rule.min_voxels
    if len({label for label, is_large in zip(labels, large, strict=True) if is_large}) > 1:
        _divide(regions, np.flatnonzero(large), prod(geometry.shape))

    def best(least: int, are_large: bool) -> list[Candidate]:
        """Candidates of the highest regions, by descending score, then by height."""
        some = [
            i
            for i, r in enumerate(regions)
            if large[i] == are_large and len(r.voxels) >= least and r.height >= rule.floor
        ]
        some.sort(key=lambda i: (-regions[i].height, regions[i].peak, i))
        some = sorted(some[: rule.max_candidates], key=lambda i: -regions[i].score)
        candidates = []
        for number, i in enumerate(some, start=1):
            if are_large:
                instances.flat[regions[i].voxels] = number
            voxels = np.stack(np.unravel_index(regions[i].voxels, geometry.shape), axis=-1)
            candidates.append(
                Candidate.from_voxels(number, labels[i], regions[i].score, voxels, geometry)
            )
        return candidates

    instances = np.zeros(geometry.shape, dtype=np.int32)
    candidates = tuple(best(rule.min_voxels, True))
    removed = tuple(replace(c, has_mask=False, accepted=False) for c in best(1, False))
    return Prediction(case, geometry, candidates, instances, removed=removed)


def _divide(regions: list[PeakRegion], large: NDArray[np.intp], n_voxels: int) -> None:
    """Give each voxel of several large regions to the highest probability, ties to the first."""
    some = [regions[i] for i in large]
    voxels = np.concatenate([r.voxels for r in some])
    number = np.repeat(large, [len(r.voxels) for r in some])
    order = np.lexsort((-number, np.concatenate([r.probabilities for r in some])))
    owner = np.zeros(n_voxels, dtype=np.int32)
    owner[voxels[order]] = number[order]  # of those of one voxel the last stays
    for i, region in zip(large, some, strict=True):
        won = owner[region.voxels] == i
        regions[i] = PeakRegion(region.voxels[won], region.probabilities[won])
