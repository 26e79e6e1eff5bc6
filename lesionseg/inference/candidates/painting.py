"""Candidates by a plan; where it has regions, found on their union and painted one by one.

A lesion is one whatever regions it has: what is looked for is the highest probability over them.
A voxel of a candidate belongs to each region that has at least half of that: the region is then as
likely as not, given that the voxel is lesion at all. Where the network is sure of the lesion this
is the usual half; and no voxel is left without a region.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import UNION, Geometry
from lesionseg.errors import GeometryError
from lesionseg.inference.candidates.peaks import Above, collect_above
from lesionseg.inference.candidates.postprocess import CandidateSet, find_candidates
from lesionseg.plan.plan import Plan


def find_by_plan(
    probabilities: Iterable[NDArray[np.float32] | Above], geometry: Geometry, plan: Plan
) -> CandidateSet:
    """The candidates in probabilities `[K, *spatial]` of the plan's channels.

    With regions a candidate's label is that of the union and `CandidateSet.values` holds the mask
    values: `plan.label_values` of the regions present, later ones over earlier ones. Raises as
    `find_candidates`.
    """
    rule = plan.candidate_rule
    if not plan.regions:
        return find_candidates(probabilities, geometry, rule, plan.label_values)
    channels = [
        c if isinstance(c, Above) else collect_above([c], geometry.shape, rule)
        for c in probabilities
    ]
    if len(channels) != len(plan.regions):
        raise GeometryError(
            "The probabilities do not have one channel per region.",
            seen=len(channels),
            expected=len(plan.regions),
        )
    union = highest(channels)
    candidates = find_candidates([union], geometry, rule, tuple(UNION))
    return replace(
        candidates, values=_painted(candidates.instances, union, channels, plan.label_values)
    )


def highest(channels: Sequence[Above]) -> Above:
    """The highest probability over some channels of one shape.

    >>> a = Above((3,), np.array([0, 1]), np.array([0.5, 0.9], np.float32))
    >>> b = Above((3,), np.array([1, 2]), np.array([0.7, 0.25], np.float32))
    >>> highest([a, b]).probabilities.tolist()
    [0.5, 0.8999999761581421, 0.25]
    """
    index = np.unique(np.concatenate([channel.index for channel in channels]))
    probabilities = np.zeros(len(index), dtype=np.float32)
    for channel in channels:
        place = np.searchsorted(index, channel.index)
        probabilities[place] = np.maximum(probabilities[place], channel.probabilities)
    return Above(channels[0].shape, index, probabilities)


def _painted(
    instances: NDArray[np.int32],
    union: Above,
    channels: Sequence[Above],
    painted: Sequence[int],
) -> NDArray[np.uint8]:
    """The mask values of all candidates, later regions over earlier ones."""
    values = np.zeros(instances.shape, dtype=np.uint8)
    for channel, value in zip(channels, painted, strict=True):
        of_lesion = union.probabilities[np.searchsorted(union.index, channel.index)]
        belongs = channel.probabilities >= of_lesion / 2
        belongs &= instances.flat[channel.index] > 0
        values.flat[channel.index[belongs]] = value
    return values
