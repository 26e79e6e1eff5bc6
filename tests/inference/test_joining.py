from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.core import Geometry, Prediction
from lesionseg.inference.candidates import (
    collect_sparse,
    find_candidates,
    grow_regions,
    join_regions,
)
from lesionseg.ops.components import label_components
from lesionseg.plan.plan import CandidateRule

RULE = CandidateRule(ratio=2.5, extent=1.0, min_voxels=1, join=10.0, join_mm=0.0)


def _find(p: list[list[float]], rule: CandidateRule = RULE, mm: float = 1.0) -> Prediction:
    array = np.asarray(p, dtype=np.float32)
    geometry = Geometry.from_spacing(array.shape, (mm,) * array.ndim)
    return find_candidates([array], geometry, rule, (1,))


@pytest.mark.parametrize(
    ("p", "instances"),
    [
        ([[0.9, 0.2, 0.8, 0.0, 0.0]], [[1, 0, 1, 0, 0]]),
        # a pass under a tenth of the lower peak keeps them apart
        ([[0.9, 0.07, 0.8]], [[1, 0, 2]]),
        # the way may lead round a corner
        (
            [[0.9, 0.0, 0.8], [0.3, 0.0, 0.3], [0.2, 0.3, 0.2]],
            [[1, 0, 1], [0, 0, 0], [0, 0, 0]],
        ),
        # 0.7 meets 0.9 only by way of 0.8
        ([[0.9, 0.2, 0.8, 0.2, 0.7]], [[1, 0, 1, 0, 1]]),
        # 0.5 meets 0.7 at 0.19, and the candidates of 0.7 and 0.9 are apart
        ([[0.9, 0.05, 0.7, 0.19, 0.5]], [[1, 0, 2, 0, 2]]),
    ],
)
def test_a_high_pass_makes_one_candidate_of_two_peaks(
    p: list[list[float]], instances: list[list[int]]
) -> None:
    assert _find(p).instances.tolist() == instances


def test_small_lesions_side_by_side_stay_apart() -> None:
    rule = replace(RULE, join_mm=3.0)
    p = [[0.9, 0.9, 0.2, 0.8]]
    assert _find(p, rule).instances.tolist() == [[1, 1, 0, 2]]  # 1.6 and 1.1 mm
    assert _find(p, rule, mm=2.0).instances.tolist() == [[1, 1, 0, 1]]  # 3.2 and 2.3 mm
    assert _find([[0.9, 0.2, 0.8, 0.8]], rule, mm=2.0).instances.tolist() == [[1, 0, 1, 1]]


def test_a_join_of_one_joins_nothing() -> None:
    rule = replace(RULE, join=1.0)
    assert _find([[0.9, 0.3, 0.9]], rule).instances.tolist() == [[1, 0, 2]]


def test_labels_are_joined_each_by_itself() -> None:
    p = np.array([[[0.9, 0.2, 0.0]], [[0.0, 0.2, 0.8]]], dtype=np.float32)
    geometry = Geometry.from_spacing((1, 3), (1.0, 1.0))
    assert len(find_candidates(p, geometry, RULE, (1, 2)).candidates) == 2


# --- against slow words ----------------------------------------------------------------------


def _blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    p = rng.random(shape)
    for axis in range(len(shape)):
        p = (p + np.roll(p, 1, axis) + np.roll(p, -1, axis)) / 3
    return ((p - p.min()) / np.ptp(p)).astype(np.float32) ** 3


def _pass_of(p: NDArray[np.float32], seed: int, others: list[int]) -> tuple[float, int]:
    """The highest level at which `seed` lies in one part with another peak, and the first such."""
    for level in sorted(set(p.ravel().tolist()), reverse=True):
        parts = label_components(p >= level)
        near = [k for k in others if parts.flat[k] and parts.flat[k] == parts.flat[seed]]
        if near:
            return level, near[0]
    return 0.0, -1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(6, 7, 8), (14, 12)])
def test_equals_the_slow_wording_of_the_rule(seed: int, shape: tuple[int, ...]) -> None:
    p = _blobs(np.random.default_rng(seed), shape)
    rule = replace(RULE, ratio=1.2, join=2.0, floor=0.02, prominence=0.0)
    above = collect_sparse([p], shape, replace(rule, ratio=1e6))
    regions = grow_regions(above, rule)
    peaks = [r.peak for r in regions]
    group = list(range(len(regions)))
    for i, region in enumerate(regions):
        level, higher = _pass_of(p, region.peak, peaks[:i])
        if higher >= 0 and region.height < rule.join * level:
            group[i] = group[peaks.index(higher)]
    expected = [
        np.sort(np.concatenate([r.voxels for r, k in zip(regions, group, strict=True) if k == g]))
        for g in sorted(set(group))
    ]
    seen = join_regions(regions, above, rule)
    assert len(seen) < len(regions)
    assert [r.voxels.tolist() for r in seen] == [v.tolist() for v in expected]
