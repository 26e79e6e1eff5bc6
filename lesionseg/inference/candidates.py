"""Candidates from voxel probabilities: peaks, grown regions, prominence, score, labels.

A candidate is the connected region around a peak.

Only the voxels that can belong to a candidate are kept in memory. The memory therefore depends on
the number of these voxels, not on the size of the volume.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.core.arrays import Integers
from lesionseg.errors import ContentError, GeometryError
from lesionseg.ops.compiled import compile_loops, root_of
from lesionseg.ops.components import label_components
from lesionseg.plan.plan import CandidateRule

TOP_VOXELS = 8  # the score is the mean of this many voxels, a cube of 2 × 2 × 2 in 3-D
# a peak is the shoulder of a higher region if it is lower than this times the highest probability
# at which both regions touch
PROMINENCE = 1.5
_FREE = 0
_NO_PEAK = -1
_NO_REGION = -1


@dataclass(frozen=True, eq=False)
class SparseProbabilities:
    """The voxels of a volume that can belong to candidates of one label.

    `shape` is the shape of the volume, `index` `[n]` their flat indices in ascending order, and
    `probabilities` `[n]` float32 their values.
    """

    shape: tuple[int, ...]
    index: NDArray[np.integer[Any]]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PeakRegion:
    """The voxels around a peak: flat indices `[n]` in ascending order, and probabilities `[n]`.

    `label` is the mask value of its label; 1 until `find_candidates` sets it.
    """

    voxels: NDArray[np.integer[Any]]
    probabilities: NDArray[np.float32]
    label: int = 1

    @property
    def height(self) -> float:
        """The highest probability of the region's voxels."""
        return float(self.probabilities.max())

    @property
    def score(self) -> float:
        """The mean of the region's eight highest probabilities, or of all if there are fewer."""
        highest = self.probabilities
        if len(highest) > TOP_VOXELS:
            highest = np.partition(highest, -TOP_VOXELS)[-TOP_VOXELS:]
        return float(highest.mean(dtype=float))

    @property
    def peak(self) -> int:
        """The flat index, in the volume, of the first voxel that has the highest probability."""
        return int(self.voxels[self.probabilities.argmax()])


def collect_sparse(
    slabs: Iterable[NDArray[np.floating[Any]]], shape: tuple[int, ...], rule: CandidateRule
) -> SparseProbabilities:
    """Collect the voxels of a volume that can belong to a candidate, slab by slab to save memory.

    A voxel can belong to a candidate if its probability is at least the smaller of two numbers:
    `rule.floor / rule.ratio` (a ratio below 1 counts as 1) and `rule.extent`.

    Args:
        slabs: Slabs `[rows, *shape[1:]]` of the volume in order. One slab is in memory at a time.
        shape: Shape of the volume.
        rule: The plan's rule for candidates.

    Raises:
        ContentError: If a probability is NaN.
    """
    # 32 bits need half the memory
    index_type = np.int32 if prod(shape) < 2**31 else np.int64
    # the region of the lowest peak (at the floor) grows down to this probability; the factor keeps
    # rounding to float32 from excluding a voxel of that region
    lowest = min(rule.floor / max(rule.ratio, 1.0), rule.extent)
    threshold = np.float32(lowest * (1 - 1e-6))
    indices = []
    values = []
    n_before = 0  # voxels in the slabs before this one
    for slab in slabs:
        flat = np.ascontiguousarray(slab).reshape(-1)
        index = np.flatnonzero(~(flat < threshold))  # includes NaN
        values.append(flat[index].astype(np.float32))
        indices.append((index + n_before).astype(index_type))
        n_before += flat.size
    probabilities = np.concatenate(values)
    if np.isnan(probabilities).any():
        raise ContentError("The probabilities contain NaN. Try inference.precision=fp32.")
    return SparseProbabilities(shape, np.concatenate(indices), probabilities)


def as_sparse(
    channel: NDArray[np.float32] | SparseProbabilities, geometry: Geometry, rule: CandidateRule
) -> SparseProbabilities:
    """Return a channel of probabilities as `SparseProbabilities`.

    An array is converted by `collect_sparse`; a channel that is already sparse is returned. Raise
    `GeometryError` if the channel and the grid have different shapes, and `ContentError` if a
    probability is NaN.
    """
    if channel.shape != geometry.shape:
        raise GeometryError(f"Probabilities {channel.shape} do not fit the grid {geometry.shape}.")
    if isinstance(channel, SparseProbabilities):
        return channel
    return collect_sparse([channel], geometry.shape, rule)


def grow_regions(sparse: SparseProbabilities, rule: CandidateRule) -> list[PeakRegion]:
    """Grow a region around each peak of one label.

    A peak is a voxel that has no neighbour of a higher probability, and a probability (its height)
    of at least `rule.floor`. Peaks are processed by descending height:

    1. The region of a peak contains all connected voxels with p ≥ height / `rule.ratio` or
       p ≥ `rule.extent` that no earlier region contains.
    2. A region that touches a higher region and rises little above the contact (`PROMINENCE`) is a
       shoulder of the higher region. It is left out, and later regions do not get its voxels.

    Args:
        sparse: The voxels of one label.
        rule: The plan's rule for candidates.

    Returns:
        The regions by descending height, equal heights by index. Each region is connected.
    """
    p = sparse.probabilities
    shape = (1, *sparse.shape)[-3:]  # 2-D is 3-D with one slice
    starts = row_starts(sparse.index, shape)
    state = np.zeros(len(p), np.int32)
    peaks = _find_peaks(p, sparse.index, starts, shape, np.float32(rule.floor), state)
    peaks = peaks[np.argsort(-p[peaks], kind="stable")]  # by descending height
    # float32 as the probabilities, so that equal numbers compare as equal
    thresholds = (rule.ratio, np.float32(rule.extent), PROMINENCE)
    grown, ends = _grow_regions(p, sparse.index, starts, shape, peaks, state, thresholds)
    if len(ends) == 0:
        return []
    regions = []
    for positions in np.split(grown, ends[:-1]):  # the last end is the end of `grown`
        ascending = np.sort(positions)
        regions.append(PeakRegion(sparse.index[ascending], p[ascending]))
    return regions


def row_starts(index: NDArray[np.integer[Any]], shape: tuple[int, ...]) -> Integers:
    """Return the position in `index` at which each row along x of a 3-D volume begins.

    `find_neighbours` uses the positions to search a neighbour only in one row.

    Args:
        index: Ascending flat indices of some voxels of the volume.
        shape: Shape of the volume in the order z, y, x.

    Returns:
        Positions `[n_z · n_y + 1]`. The last one is the length of `index`.
    """
    # the flat indices at which the rows begin, and the end of the last row
    return np.searchsorted(index, np.arange(shape[0] * shape[1] + 1, dtype=np.int64) * shape[2])


@compile_loops
def find_neighbours(index: Any, starts: Any, shape: Any, v: Any, places: Any) -> Any:
    """Find the stored voxels among the 3 × 3 × 3 voxels around a voxel, itself included.

    Args:
        index: Ascending flat indices of the stored voxels of a volume.
        starts: The result of `row_starts`.
        shape: Shape of the volume in the order z, y, x.
        v: Position in `index` of the voxel.
        places: Array of at least 27 integers, to which the positions in `index` of the found voxels
            are written.

    Returns:
        The number of positions that were written.
    """
    n_z, n_y, n_x = shape
    flat = index[v]
    z = flat // (n_y * n_x)
    y = flat // n_x % n_y
    x = flat % n_x
    n = 0
    for near_z in range(max(z - 1, 0), min(z + 2, n_z)):
        for near_y in range(max(y - 1, 0), min(y + 2, n_y)):
            row = near_z * n_y + near_y
            # the flat indices of the up to three neighbours in this row
            first = row * n_x + max(x - 1, 0)
            last = row * n_x + min(x + 1, n_x - 1)
            low = starts[row]
            high = starts[row + 1]
            end = high
            while low < high:  # bisection for the first position whose index is at least `first`
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


@compile_loops
def _find_peaks(p: Any, index: Any, starts: Any, shape: Any, floor: Any, state: Any) -> Any:
    """Find the voxels that are local maxima of the probability, at or above a floor.

    A plateau is a connected set of voxels of equal probability. All its voxels are local maxima if
    none of them has a neighbour of a higher probability; otherwise none of them is.

    Args:
        p: Probabilities `[n]` of the stored voxels.
        index: Ascending flat indices of the stored voxels.
        starts: The position in `index` of each row along x (`row_starts`).
        shape: Shape of the volume in the order z, y, x.
        floor: Lowest probability of a local maximum.
        state: Working memory `[n]`, all `_FREE` before and after the call.

    Returns:
        Positions in `p` of the local maxima, ascending.
    """
    stack = np.empty(len(p), np.int32)  # non-maxima whose plateau is not yet excluded
    places = np.empty(27, np.int64)
    n_stack = 0
    for v in range(len(p)):
        if p[v] < floor:
            state[v] = _NO_PEAK
            continue
        for k in range(find_neighbours(index, starts, shape, v, places)):
            if p[places[k]] > p[v]:
                state[v] = _NO_PEAK
        if state[v] == _NO_PEAK:
            stack[n_stack] = v
            n_stack += 1
    while n_stack:  # neighbours of equal height on the same plateau are not peaks either
        n_stack -= 1
        v = stack[n_stack]
        for k in range(find_neighbours(index, starts, shape, v, places)):
            u = places[k]
            if p[u] == p[v] and state[u] == _FREE:
                state[u] = _NO_PEAK
                stack[n_stack] = u
                n_stack += 1
    peaks = np.flatnonzero(state == _FREE)
    state[:] = _FREE
    return peaks


@compile_loops
def _grow_regions(
    p: Any, index: Any, starts: Any, shape: Any, peaks: Any, state: Any, thresholds: Any
) -> Any:
    """Grow a region around each peak by breadth-first search, by the rule of `grow_regions`.

    Args:
        p: Probabilities `[n]` of the stored voxels.
        index: Ascending flat indices of the stored voxels.
        starts: The position in `index` of each row along x (`row_starts`).
        shape: Shape of the volume in the order z, y, x.
        peaks: Positions in `p` of the peaks, by descending probability.
        state: Filled with the number of each voxel's region; `_FREE` before the call. The voxels of
            a shoulder keep its number, so that later regions do not get them.
        thresholds: The rule's ratio, the rule's extent and `PROMINENCE`.

    Returns:
        Positions in `p` of the voxels of all regions except shoulders, region after region, and
        for each region the position in this array at which it ends.
    """
    ratio, extent, prominence = thresholds
    grown = np.empty(1024, np.int64)  # doubled when it is full
    ends = np.empty(len(peaks), np.int64)
    places = np.empty(27, np.int64)
    begin = 0  # of the current region in `grown`
    n_regions = 0
    number = 0
    for peak in peaks:
        if state[peak] != _FREE:
            continue
        number += 1
        lowest = min(p[peak] / ratio, extent)
        contact = -1.0  # the highest probability of a voxel that touches a higher region
        if begin == len(grown):  # no space for the peak
            grown = np.concatenate((grown, np.empty_like(grown)))
        grown[begin] = peak
        state[peak] = number
        next_position = begin  # `grown` is also the queue of voxels whose neighbours are visited
        end = begin + 1
        while next_position < end:
            v = grown[next_position]
            next_position += 1
            if end + 27 > len(grown):  # a voxel adds at most its 27 neighbours
                grown = np.concatenate((grown, np.empty_like(grown)))
            for k in range(find_neighbours(index, starts, shape, v, places)):
                u = places[k]
                if state[u] == _FREE and p[u] >= lowest:
                    state[u] = number
                    grown[end] = u
                    end += 1
                elif state[u] != _FREE and state[u] != number:  # `u` is in a higher region
                    contact = max(contact, p[v])
        if p[peak] >= prominence * contact:
            ends[n_regions] = end
            n_regions += 1
            begin = end  # otherwise the region is a shoulder, and the next region overwrites it
    return grown[:begin], ends[:n_regions]


def join_touching(regions: Sequence[PeakRegion], sparse: SparseProbabilities) -> list[PeakRegion]:
    """Join regions of one label that touch by a face, an edge or a corner of a voxel.

    In the written mask, touching regions are one connected object, so they must be one candidate.

    Args:
        regions: Regions without a common voxel, by descending highest probability.
        sparse: The voxels in which the regions were grown.

    Returns:
        The joined regions by descending highest probability. No two of them touch.

    >>> p = np.array([0.9, 0.4, 0.0, 0.6], np.float32)
    >>> sparse = SparseProbabilities((1, 4), np.arange(4), p)
    >>> regions = [PeakRegion(np.array([i]), p[[i]]) for i in (0, 3, 1)]
    >>> [region.voxels.tolist() for region in join_touching(regions, sparse)]
    [[0, 1], [3]]
    """
    if len(regions) < 2:
        return list(regions)
    shape = (1, *sparse.shape)[-3:]  # 2-D is 3-D with one slice
    voxels = np.concatenate([region.voxels for region in regions])
    region_of_voxel = np.repeat(np.arange(len(regions)), [len(region.voxels) for region in regions])
    region_at = np.full(len(sparse.index), _NO_REGION, np.int64)
    region_at[np.searchsorted(sparse.index, voxels)] = region_of_voxel
    parent = np.arange(len(regions), dtype=np.int64)  # at first, each region is a set of its own
    # changes `parent` in place, so that touching regions get the same root
    _unite_touching(sparse.index, row_starts(sparse.index, shape), shape, region_at, parent)
    members: dict[int, list[PeakRegion]] = {}
    for i, region in enumerate(regions):
        members.setdefault(int(root_of(parent, i)), []).append(region)
    joined = []
    # `members` is still by descending peak: the root of a set is its first region in `regions`,
    # which has the highest peak, and a dict keeps the order of insertion
    for touching in members.values():
        all_voxels = np.concatenate([one.voxels for one in touching])
        probabilities = np.concatenate([one.probabilities for one in touching])
        order = np.argsort(all_voxels)
        joined.append(PeakRegion(all_voxels[order], probabilities[order]))
    return joined


@compile_loops
def _unite_touching(index: Any, starts: Any, shape: Any, region_at: Any, parent: Any) -> None:
    """Unite all pairs of regions that have neighbouring voxels, in the union-find forest `parent`.

    Args:
        index: Ascending flat indices of the stored voxels.
        starts: The position in `index` of each row along x (`row_starts`).
        shape: Shape of the volume in the order z, y, x.
        region_at: The region number of each voxel in `index`, or `_NO_REGION`.
        parent: The parent of each region, changed in place. The root of a set of united regions is
            its lowest number, which is the region with the highest peak.
    """
    places = np.empty(27, np.int64)
    for v in range(len(index)):
        if region_at[v] == _NO_REGION:
            continue
        for k in range(find_neighbours(index, starts, shape, v, places)):
            other = region_at[places[k]]
            if other == _NO_REGION or other == region_at[v]:
                continue
            a = root_of(parent, region_at[v])
            b = root_of(parent, other)
            parent[max(a, b)] = min(a, b)


def find_candidates(
    probabilities: Iterable[NDArray[np.float32] | SparseProbabilities],
    geometry: Geometry,
    rule: CandidateRule,
    label_values: Sequence[int],
    case: str = "",
    keep_from: float = 1.0,
) -> Prediction:
    """Find the candidates in the probabilities of K labels by the plan's rule for candidates.

    Each candidate is one connected object of one label, and no two candidates of a label touch.
    Its height is its highest probability, and its score the mean of its eight highest ones. Voxels
    that share a face, an edge or a corner are connected. A voxel that regions of several labels
    contain is assigned to the label of the highest probability. The run time grows with the number
    of voxels above the rule's floor.

    Args:
        probabilities: K channels, as arrays `[*spatial]` or as `SparseProbabilities`. A generator
            is possible.
        geometry: The grid of the channels.
        rule: The plan's rule for candidates.
        label_values: The mask value of each channel's label.
        case: The case's id.
        keep_from: Only the `rule.candidate_limit` candidates of the greatest height are returned,
            and all further candidates with a score of at least this number.

    Returns:
        The candidates by descending score, all accepted, and `instances` `[*spatial]` with their
        ids. Regions of fewer voxels than `rule.min_voxels` are in `removed`, up to the limit of
        candidates.
        If no voxel reaches the floor, the prediction has no candidates.

    Raises:
        GeometryError: If a channel does not fit the grid.
        ContentError: If a probability is NaN.

    A voxel next to a peak belongs to it from p = peak / 1.6 or p = 0.35, the rule's defaults:

    >>> rule = CandidateRule(min_voxels=1)
    >>> p = np.array([[[0.9, 0.5, 0.1, 0.6, 0.3]]], dtype=np.float32)
    >>> found = find_candidates(p, Geometry.from_spacing((1, 5), (1, 1)), rule, (7,))
    >>> found.instances.tolist(), [c.label for c in found.candidates]
    ([[1, 1, 0, 2, 0]], [7, 7])
    """
    regions_of_labels: list[PeakRegion] = []
    for label, channel in zip(label_values, probabilities, strict=True):
        sparse = as_sparse(channel, geometry, rule)
        regions = join_touching(grow_regions(sparse, rule), sparse)
        regions_of_labels += [replace(one, label=label) for one in regions]
    regions_of_labels = _divide_shared_voxels(regions_of_labels, rule, geometry.shape)
    # a part of a divided region may not reach the floor
    by_height = [one for one in regions_of_labels if one.height >= rule.floor]
    # by descending height, equal heights by the index of the peak
    by_height.sort(key=lambda one: (-one.height, one.peak))
    large = [one for one in by_height if len(one.voxels) >= rule.min_voxels]
    small = [one for one in by_height if len(one.voxels) < rule.min_voxels]
    limit = rule.candidate_limit
    chosen = large[:limit] + [one for one in large[limit:] if one.score >= keep_from]
    instances = np.zeros(geometry.shape, np.int32)
    flat_instances = instances.reshape(-1)  # a view, to which writing is faster than to `flat`
    candidates = []
    for candidate_id, region in enumerate(_sort_by_score(chosen), start=1):
        flat_instances[region.voxels] = candidate_id
        candidates.append(_make_candidate(candidate_id, region, geometry))
    removed = []  # they are numbered from 1 again, because they are not in `instances`
    for candidate_id, region in enumerate(_sort_by_score(small[:limit]), start=1):
        candidate = _make_candidate(candidate_id, region, geometry)
        removed.append(replace(candidate, has_mask=False, accepted=False))
    return Prediction(
        case=case,
        geometry=geometry,
        candidates=tuple(candidates),
        instances=instances,
        removed=tuple(removed),
        n_left_out=len(large) - len(chosen),
    )


def _sort_by_score(regions: Sequence[PeakRegion]) -> list[PeakRegion]:
    """Sort regions by descending score, so that ids follow the scores. Ties keep their order."""
    return sorted(regions, key=lambda one: -one.score)


def _make_candidate(candidate_id: int, region: PeakRegion, geometry: Geometry) -> Candidate:
    """Convert a region of voxels to a candidate.

    Args:
        candidate_id: Id of the candidate.
        region: The region.
        geometry: The grid of the region's voxels.
    """
    voxels = np.stack(np.unravel_index(region.voxels, geometry.shape), axis=-1)
    return Candidate.from_voxels(
        id=candidate_id,
        label=region.label,
        score=region.score,
        voxels=voxels,
        geometry=geometry,
    )


def _divide_shared_voxels(
    regions: list[PeakRegion], rule: CandidateRule, shape: tuple[int, ...]
) -> list[PeakRegion]:
    """Assign each voxel that regions of several labels share to one region.

    - The region with the highest probability in the voxel gets it; of equal ones, the first region.
    - A region that loses voxels may fall apart. Each connected part then becomes a region, because
      a candidate must be one object.
    - Regions of fewer than `rule.min_voxels` voxels are returned unchanged, because they do not
      become candidates.

    Args:
        regions: The regions of all labels. Regions of the same label share no voxels.
        rule: The plan's rule for candidates.
        shape: Shape of the volume.
    """
    # the regions that can become candidates, by their row in `regions`
    candidates = {
        row: region for row, region in enumerate(regions) if len(region.voxels) >= rule.min_voxels
    }
    if len({region.label for region in candidates.values()}) < 2:  # one label has no shared voxels
        return regions
    voxels = np.concatenate([region.voxels for region in candidates.values()])
    probabilities = np.concatenate([region.probabilities for region in candidates.values()])
    row_of_voxel = np.repeat(
        list(candidates), [len(region.voxels) for region in candidates.values()]
    )
    # numpy keeps the last of several values for a voxel, so the highest probability comes last, and
    # of equal ones that of the first region
    order = np.lexsort((-row_of_voxel, probabilities))
    owner_row = np.full(prod(shape), -1, np.int32)  # row of the region of each voxel in the volume
    owner_row[voxels[order]] = row_of_voxel[order]
    divided: list[PeakRegion] = []
    for row, region in enumerate(regions):
        stays = owner_row[region.voxels] == row
        if row not in candidates or stays.all():
            divided.append(region)
            continue
        remaining = PeakRegion(region.voxels[stays], region.probabilities[stays], region.label)
        divided += _connected_parts(remaining, shape)
    return divided


def _connected_parts(region: PeakRegion, shape: tuple[int, ...]) -> list[PeakRegion]:
    """Split a region into its connected parts, in the order of their first voxels.

    Return an empty list if the region has no voxels.

    Args:
        region: The region.
        shape: Shape of the volume, to which the region's flat indices refer.
    """
    if len(region.voxels) == 0:
        return []
    # parts are labelled in the bounding box of the region, which is smaller than the volume
    position = np.stack(np.unravel_index(region.voxels, shape))  # [axes, n]
    position -= position.min(axis=1, keepdims=True)
    box = np.zeros(position.max(axis=1) + 1, bool)
    box[tuple(position)] = True
    part_of_voxel = label_components(box)[tuple(position)]
    parts = []
    for number in range(1, part_of_voxel.max() + 1):
        inside = part_of_voxel == number
        part = replace(
            region, voxels=region.voxels[inside], probabilities=region.probabilities[inside]
        )
        parts.append(part)
    return parts
