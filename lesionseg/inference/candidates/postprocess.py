"""From probabilities to candidates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, equivalent_diameter_mm
from lesionseg.errors import GeometryError
from lesionseg.inference.candidates.joining import join_regions
from lesionseg.inference.candidates.peaks import Above, PeakRegion, collect_above, grow_regions
from lesionseg.plan.plan import CandidateRule


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
    probability, and a candidate's score is the highest probability of its voxels, or their mean
    (`rule.score`); which are kept goes by the highest. Nothing above the floor gives no
    candidates. The cost grows with the voxels above the floor. Raises `GeometryError` for a
    channel that does not fit, `ContentError` for NaN.

    >>> rule = CandidateRule(min_voxels=1)
    >>> p = np.array([[[0.9, 0.5, 0.1, 0.6, 0.3]]], dtype=np.float32)
    >>> found = find_candidates(p, Geometry.from_spacing((1, 5), (1, 1)), rule, (7,))
    >>> found.instances.tolist(), [c.label for c in found.candidates]
    ([[1, 1, 0, 2, 2]], [7, 7])
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
    kept = sorted(high[: rule.max_candidates], key=lambda one: -one[0].score(rule.score))
    return tuple(
        replace(_candidate(number, region, geometry, label, rule), has_mask=False, accepted=False)
        for number, (region, label) in enumerate(kept, start=1)
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
    kept = high[: rule.max_candidates]
    return sorted(kept, key=lambda i: -regions[i].score(rule.score))  # stable: then by the highest


def _is_large(region: PeakRegion, geometry: Geometry, rule: CandidateRule) -> bool:
    volume_mm = len(region.voxels) * geometry.voxel_size
    return float(equivalent_diameter_mm(volume_mm, geometry.dims)) >= rule.min_diameter_mm


def _candidate(
    number: int, region: PeakRegion, geometry: Geometry, label: int, rule: CandidateRule
) -> Candidate:
    voxels = np.stack(np.unravel_index(region.voxels, geometry.shape), axis=-1)
    return Candidate.from_voxels(number, label, region.score(rule.score), voxels, geometry)
