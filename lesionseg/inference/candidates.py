"""From probabilities to candidates: regions of peaks, joined where a high saddle connects them.

A large lesion of which the network is sure here and less sure there has many peaks. Cut apart, each
piece but one would be a false positive, and none would show how large the lesion is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, equivalent_diameter_mm
from lesionseg.errors import GeometryError
from lesionseg.inference.peaks import (
    PeakRegion,
    SparseProbabilities,
    collect_sparse,
    grow_regions,
    neighbours,
    row_starts,
)
from lesionseg.ops.compiled import compiled, root_of
from lesionseg.plan.plan import CandidateRule

_UNSEEN, _NO_REGION = -1, -1


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
    higher, saddles = _saddles_of(regions, sparse, rule.join)
    dims, members = len(sparse.shape), [[region] for region in regions]

    def is_large(part: Sequence[PeakRegion]) -> bool:
        volume = voxel_size * sum(len(r.voxels) for r in part)
        return bool(equivalent_diameter_mm(volume, dims) >= rule.join_mm)

    for i, region in enumerate(regions):  # a higher one has found its place already
        near = higher[i] != _NO_REGION and region.height < rule.join * saddles[i]
        if near and (is_large(members[higher[i]]) or is_large([region])):
            members[higher[i]].append(region)
            members[i] = members[higher[i]]  # the same list: what joins one joins all
    return [_union(part) for i, part in enumerate(members) if part[0] is regions[i]]


def _union(regions: Sequence[PeakRegion]) -> PeakRegion:
    voxels = np.concatenate([r.voxels for r in regions])
    order = np.argsort(voxels)
    return PeakRegion(voxels[order], np.concatenate([r.probabilities for r in regions])[order])


def _saddles_of(
    regions: Sequence[PeakRegion], sparse: SparseProbabilities, join: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each region the one that its saddle leads to, −1 where none does, and its height."""
    p, shape = sparse.probabilities, (1, *sparse.shape)[-3:]  # 2-D is 3-D with one slice
    region_at = np.full(len(p), _NO_REGION, dtype=np.int64)
    region_at[np.searchsorted(sparse.index, [r.peak for r in regions])] = np.arange(len(regions))
    order = np.argsort(-p, kind="stable")
    # no lower saddle can join even the lowest peak
    order = order[: np.searchsorted(-p[order], -min(r.height for r in regions) / join, "right")]
    starts = row_starts(sparse.index, shape)
    higher, saddles = _flood(p, sparse.index, starts, shape, order, region_at)
    return higher, saddles


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


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """The candidates of one case and their voxels.

    `candidates` by descending score, ids 1..n in that order; `instances` `[*spatial]` int32 holds
    ids, 0 elsewhere. `values` and `removed`: see `Prediction`.
    """

    candidates: tuple[Candidate, ...]
    instances: NDArray[np.int32]
    values: NDArray[np.uint8] | None = None
    removed: tuple[Candidate, ...] = ()


def find_candidates(
    probabilities: Iterable[NDArray[np.float32] | SparseProbabilities],
    geometry: Geometry,
    rule: CandidateRule,
    label_values: Sequence[int],
) -> CandidateSet:
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
    n_channels = 0
    for channel in probabilities:
        if channel.shape != geometry.shape or n_channels == len(label_values):
            raise GeometryError(
                f"Probabilities {channel.shape} of {n_channels + 1} or more labels do not fit "
                f"{len(label_values)} labels on the grid {geometry.shape}."
            )
        if not isinstance(channel, SparseProbabilities):
            channel = collect_sparse([channel], geometry.shape, rule)
        grown = grow_regions(channel, rule)
        joined = join_regions(grown, channel, rule, geometry.voxel_size)
        regions += joined
        labels += [label_values[n_channels]] * len(joined)
        n_channels += 1
    if n_channels != len(label_values):
        raise GeometryError(f"There are {n_channels} channels for {len(label_values)} labels.")
    large = [len(r.voxels) >= rule.min_voxels and _is_wide(r, geometry, rule) for r in regions]
    if len({label for label, is_large in zip(labels, large, strict=True) if is_large}) > 1:
        regions = _divided(regions, large)

    def best(are_large: bool) -> list[int]:
        """The highest regions that are large or not, by descending score, then by height."""
        least = rule.min_voxels if are_large else 1
        some = [
            i
            for i, r in enumerate(regions)
            if large[i] == are_large and len(r.voxels) >= least and r.height >= rule.floor
        ]
        some.sort(key=lambda i: (-regions[i].height, regions[i].peak, i))
        return sorted(some[: rule.max_candidates], key=lambda i: -regions[i].score)

    def candidate(number: int, i: int) -> Candidate:
        voxels = np.stack(np.unravel_index(regions[i].voxels, geometry.shape), axis=-1)
        return Candidate.from_voxels(number, labels[i], regions[i].score, voxels, geometry)

    instances = np.zeros(geometry.shape, dtype=np.int32)
    candidates = []
    for number, i in enumerate(best(True), start=1):
        instances.flat[regions[i].voxels] = number
        candidates.append(candidate(number, i))
    removed = tuple(
        replace(candidate(number, i), has_mask=False, accepted=False)
        for number, i in enumerate(best(False), start=1)
    )
    return CandidateSet(tuple(candidates), instances, removed=removed)


def _divided(regions: Sequence[PeakRegion], large: Sequence[bool]) -> list[PeakRegion]:
    """Every voxel of several large regions given to the highest probability, ties to the first."""
    some = [r for r, is_large in zip(regions, large, strict=True) if is_large]
    voxels = np.concatenate([r.voxels for r in some])
    probabilities = np.concatenate([r.probabilities for r in some])
    order = np.lexsort((-probabilities, voxels))  # stable: ties stay in the order of labels
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = np.diff(voxels[order]) > 0
    won = np.zeros(len(order), dtype=np.bool_)
    won[order[first]] = True
    parts = iter(np.split(won, np.cumsum([len(r.voxels) for r in some])[:-1]))
    divided = []
    for region, is_large in zip(regions, large, strict=True):
        if is_large:
            won_here = next(parts)
            region = PeakRegion(region.voxels[won_here], region.probabilities[won_here])
        divided.append(region)
    return divided


def _is_wide(region: PeakRegion, geometry: Geometry, rule: CandidateRule) -> bool:
    volume = len(region.voxels) * geometry.voxel_size
    return bool(equivalent_diameter_mm(volume, geometry.dims) >= rule.min_diameter_mm)
