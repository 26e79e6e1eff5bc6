"""Which regions are one candidate: those whose peaks a high pass connects (compiled).

A large lesion of which the network is sure here and less sure there has many peaks. Cut apart, each
piece but one would be a false positive, and none would show how large the lesion is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import equivalent_diameter_mm
from lesionseg.inference.candidates.peaks import Above, PeakRegion, compiled, neighbours, row_starts
from lesionseg.plan.plan import CandidateRule

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
    found = np.empty(27, dtype=np.int64)
    for v in order:
        root[v] = v
        for k in range(neighbours(index, starts, shape, v, found)):
            if root[found[k]] == _UNSEEN:
                continue
            a, b = _root(root, v), _root(root, found[k])
            if a == b:
                continue
            low, high = max(region_at[a], region_at[b]), min(region_at[a], region_at[b])
            if high != _NO_REGION:  # both islands have a region; later ones are lower
                higher[low], passes[low] = high, p[v]
                low = high
            root[a], region_at[b] = b, low
    return higher, passes


@compiled
def _root(root: Any, v: Any) -> Any:
    """The voxel by which an island is known; halves the way there."""
    while root[v] != v:
        root[v] = root[root[v]]
        v = root[v]
    return v
