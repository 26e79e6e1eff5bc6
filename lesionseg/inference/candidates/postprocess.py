"""From probabilities to candidates: regions of peaks, joined where a high pass connects them.

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
from lesionseg.inference.candidates.peaks import (
    Above,
    PeakRegion,
    collect_above,
    grow_regions,
    neighbours,
    row_starts,
)
from lesionseg.ops.kernels.compiled_code import compiled
from lesionseg.ops.kernels.sparse_numba import root_of
from lesionseg.plan.candidate_rule import CandidateRule

_UNSEEN, _NO_REGION = -1, -1


def join_regions(
    regions: Sequence[PeakRegion], above: Above, rule: CandidateRule, voxel_size: float = 1.0
) -> list[PeakRegion]:
    """The regions of one label, by descending peak, those joined that one lesion may well hold.

    The pass of a peak is the highest level from which a way leads to a higher peak and nowhere
    falls below it (topographic prominence; ties go to the earlier region). A region whose peak is
    less than `rule.join` times its pass belongs to that higher peak's region, and so on up, if the
    larger of both is `rule.join_mm` in equivalent diameter: small lesions side by side stay apart.
    Voxels of the way itself belong to neither. Ways through voxels that `above` does not hold are
    not seen. `voxel_size`: in mm³, of a slice in mm². `rule.join` of 1 or less joins nothing.

    >>> p = np.array([[0.9, 0.3, 0.8, 0.05, 0.6]], np.float32)
    >>> above = Above((1, 5), np.arange(5), p[0])
    >>> apart = [PeakRegion(np.array([i]), p[0, [i]]) for i in (0, 2, 4)]
    >>> joined = join_regions(apart, above, CandidateRule(join=10, join_mm=1))
    >>> [r.voxels.tolist() for r in joined]
    [[0, 2], [4]]
    """
    if rule.join <= 1 or len(regions) < 2:
        return list(regions)
    higher, passes = _passes_of(regions, above, rule.join)
    dims, members = len(above.shape), [[region] for region in regions]

    def is_large(part: Sequence[PeakRegion]) -> bool:
        volume = voxel_size * sum(len(r.voxels) for r in part)
        return bool(equivalent_diameter_mm(volume, dims) >= rule.join_mm)

    for i, region in enumerate(regions):  # a higher one has found its place already
        near = higher[i] != _NO_REGION and region.height < rule.join * passes[i]
        if near and (is_large(members[higher[i]]) or is_large([region])):
            members[higher[i]].append(region)
            members[i] = members[higher[i]]  # the same list: what joins one joins all
    return [_union(part) for i, part in enumerate(members) if part[0] is regions[i]]


def _union(regions: Sequence[PeakRegion]) -> PeakRegion:
    voxels = np.concatenate([r.voxels for r in regions])
    order = np.argsort(voxels)
    return PeakRegion(voxels[order], np.concatenate([r.probabilities for r in regions])[order])


def _passes_of(
    regions: Sequence[PeakRegion], above: Above, join: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each region the one that its pass leads to, −1 where none does, and the pass."""
    p, shape = above.probabilities, (1, *above.shape)[-3:]  # 2-D is 3-D with one slice
    region_at = np.full(len(p), _NO_REGION, dtype=np.int64)
    region_at[np.searchsorted(above.index, [r.peak for r in regions])] = np.arange(len(regions))
    order = np.argsort(-p, kind="stable")
    # no lower pass can join even the lowest peak
    order = order[: np.searchsorted(-p[order], -min(r.height for r in regions) / join, "right")]
    starts = row_starts(above.index, shape)
    higher, passes = _flood(p, above.index, starts, shape, order, region_at)
    return higher, passes


@compiled
def _flood(p: Any, index: Any, starts: Any, shape: Any, order: Any, region_at: Any) -> Any:
    """Lower the water voxel by voxel: where two islands meet is the pass of the lower one's peak.

    `region_at` has the region whose peak a voxel is, and of an island's root its highest region.
    """
    n_regions = region_at.max() + 1
    higher = np.full(n_regions, _NO_REGION, dtype=np.int64)
    passes = np.zeros(n_regions, dtype=np.float32)
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
                higher[low], passes[low] = high, p[v]
                low = high
            root[a], region_at[b] = b, low
    return higher, passes


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
    probabilities: Iterable[NDArray[np.float32] | Above],
    geometry: Geometry,
    rule: CandidateRule,
    label_values: Sequence[int],
) -> CandidateSet:
    """Find candidates in the probabilities `[K, *spatial]` of K labels, by `CandidateRule`.

    The channels may come one by one from a generator, whole or as the voxels that matter
    (`collect_above`). Voxels that share a face, an edge or a corner touch. A plateau is one
    peak; ties go to the lower index. A voxel claimed for two labels belongs to the higher
    probability. `rule.score` says what a candidate scores; which are kept goes by the highest
    voxel. Nothing above the floor gives no candidates. The cost grows with the voxels above the
    floor. Raises `GeometryError` for a channel that does not fit, `ContentError` for NaN.

    >>> rule = CandidateRule(min_voxels=1)
    >>> p = np.array([[[0.9, 0.5, 0.1, 0.6, 0.3]]], dtype=np.float32)
    >>> found = find_candidates(p, Geometry.from_spacing((1, 5), (1, 1)), rule, (7,))
    >>> found.instances.tolist(), [c.label for c in found.candidates]
    ([[1, 1, 0, 2, 0]], [7, 7])
    """
    grown = [_regions(channel, geometry, rule) for channel in probabilities]
    channels = [[r for r in channel if len(r.voxels) >= rule.min_voxels] for channel in grown]
    if len(channels) != len(label_values):
        raise GeometryError(
            "The probabilities do not have one channel per label.",
            seen=len(channels),
            expected=len(label_values),
        )
    regions = [region for channel in channels for region in channel]
    labels = np.repeat(np.array(label_values), [len(channel) for channel in channels])
    if sum(len(channel) > 0 for channel in channels) > 1:
        regions = _settle(regions)
    instances = np.zeros(geometry.shape, dtype=np.int32)
    candidates = []
    ranking = _ranking(regions, rule)
    ranked = [i for i in ranking if _is_large(regions[i], geometry, rule)]
    small = [(regions[i], int(labels[i])) for i in ranking if i not in set(ranked)]
    for label, channel in zip(label_values, grown, strict=True):
        small += [(r, label) for r in channel if len(r.voxels) < rule.min_voxels]
    for number, i in enumerate(ranked, start=1):
        instances.flat[regions[i].voxels] = number
        candidates.append(_candidate(number, regions[i], geometry, int(labels[i]), rule))
    return CandidateSet(tuple(candidates), instances, removed=_removed(small, geometry, rule))


def _removed(
    small: Sequence[tuple[PeakRegion, int]], geometry: Geometry, rule: CandidateRule
) -> tuple[Candidate, ...]:
    """The regions of these labels as boxes, the highest first."""
    high = [(r, label) for r, label in small if r.height >= rule.floor]
    high.sort(key=lambda one: (-one[0].height, one[0].peak))
    highest = sorted(high[: rule.max_candidates], key=lambda one: -one[0].score(rule.score))
    return tuple(
        replace(_candidate(number, region, geometry, label, rule), has_mask=False, accepted=False)
        for number, (region, label) in enumerate(highest, start=1)
    )


def _regions(
    channel: NDArray[np.float32] | Above, geometry: Geometry, rule: CandidateRule
) -> list[PeakRegion]:
    if channel.shape != geometry.shape:
        raise GeometryError(
            "The probabilities do not fit the grid.", seen=channel.shape, expected=geometry.shape
        )
    if not isinstance(channel, Above):
        channel = collect_above([channel], geometry.shape, rule)
    return join_regions(grow_regions(channel, rule), channel, rule, geometry.voxel_size)


def _settle(regions: Sequence[PeakRegion]) -> list[PeakRegion]:
    """Give every voxel claimed for several labels to the highest probability, ties to the first."""
    voxels = np.concatenate([r.voxels for r in regions])
    probabilities = np.concatenate([r.probabilities for r in regions])
    order = np.lexsort((-probabilities, voxels))  # stable: ties stay in the order of labels
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = np.diff(voxels[order]) > 0
    won = np.zeros(len(order), dtype=np.bool_)
    won[order[first]] = True
    parts = np.split(won, np.cumsum([len(r.voxels) for r in regions])[:-1])
    return [region.part(keep) for region, keep in zip(regions, parts, strict=True)]


def _ranking(regions: Sequence[PeakRegion], rule: CandidateRule) -> list[int]:
    """Which regions become candidates, best first."""
    large = [i for i, r in enumerate(regions) if len(r.voxels) >= max(rule.min_voxels, 1)]
    high = [i for i in large if regions[i].height >= rule.floor]
    high.sort(key=lambda i: (-regions[i].height, regions[i].peak, i))
    highest = high[: rule.max_candidates]
    return sorted(
        highest, key=lambda i: -regions[i].score(rule.score)
    )  # stable: then by the highest


def _is_large(region: PeakRegion, geometry: Geometry, rule: CandidateRule) -> bool:
    volume_mm = len(region.voxels) * geometry.voxel_size
    return float(equivalent_diameter_mm(volume_mm, geometry.dims)) >= rule.min_diameter_mm


def _candidate(
    number: int, region: PeakRegion, geometry: Geometry, label: int, rule: CandidateRule
) -> Candidate:
    voxels = np.stack(np.unravel_index(region.voxels, geometry.shape), axis=-1)
    return Candidate.from_voxels(number, label, region.score(rule.score), voxels, geometry)
