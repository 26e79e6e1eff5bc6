from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint
from lesionseg.errors import ConfigError, ContentError, GeometryError
from lesionseg.inference import candidates
from lesionseg.inference.candidates import (
    PROMINENCE,
    collect_sparse,
    find_candidates,
    grow_regions,
    join_regions,
)
from lesionseg.inference.decision import accept, choose_operating_point
from lesionseg.ops.components import label_components
from lesionseg.plan.plan import CandidateRule

RULE = CandidateRule(ratio=2.5, extent=1.0, min_voxels=1, join=1)  # by the peak alone
JOIN = replace(RULE, join=10.0, join_mm=0.0)


def find(*channels, rule=RULE, mm=1.0, **changes):
    arrays = [np.asarray(channel, dtype=np.float32) for channel in channels]
    geometry = Geometry.from_spacing(arrays[0].shape, (mm,) * arrays[0].ndim)
    labels = tuple(range(1, len(arrays) + 1))
    return find_candidates(arrays, geometry, replace(rule, **changes), labels)


def scores(candidates):
    return [round(c.score, 3) for c in candidates]


# --- the rule, by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "change", "instances"),
    [
        # a peak extends to its own share: 0.9 / 2.5 = 0.36; 0.36 belongs to it, 0.35 does not
        ([0.1, 0.36, 0.9, 0.5, 0.35, 0.1], {}, [0, 1, 1, 1, 0, 0]),
        # faint lesions extend further down than bright ones
        ([0.9, 0.3, 0.0, 0.3, 0.2, 0.13, 0.11], {}, [1, 0, 0, 2, 2, 2, 0]),
        # the extent may go below the floor, the peak may not
        ([0.3, 0.2, 0.0, 0.29, 0.2], {"floor": 0.3}, [1, 1, 0, 0, 0]),
        # 0.9 / 1.6 = 0.56, but 0.36 is still likely; 0.2 / 1.6 = 0.125
        (
            [0.34, 0.36, 0.9, 0.5, 0.0, 0.12, 0.13, 0.2],
            {"ratio": 1.6, "extent": 0.35},
            [0, 1, 1, 1, 0, 0, 2, 2],
        ),
        # a shoulder is dropped: 0.34 < 1.5 · 0.3 beside the extent of 0.9; 0.5 ≥ 1.5 · 0.3 is kept
        ([0.9, 0.5, 0.30, 0.34, 0.1], {}, [1, 1, 0, 0, 0]),
        ([0.9, 0.5, 0.3, 0.5, 0.1], {}, [1, 1, 2, 2, 0]),
        # a plateau is one peak; equal peaks are ranked by index
        ([0.5, 0.5, 0.0, 0.7, 0.0, 0.5, 0.0, 0.7], {}, [3, 3, 0, 1, 0, 4, 0, 2]),
        # small ones are dropped; only the highest are kept
        ([0.9, 0.0, 0.6, 0.5], {"min_voxels": 2}, [0, 0, 1, 1]),
        ([0.3, 0.0, 0.9, 0.0, 0.6], {"max_candidates": 2}, [0, 0, 1, 0, 2]),
        ([0.01, 0.04], {}, [0, 0]),
    ],
)
def test_a_row_of_probabilities_has_these_candidates(row, change, instances):
    found = find([row], **change)
    assert found.instances.tolist() == [instances]
    assert [c.id for c in found.candidates] == list(range(1, max(instances) + 1))


def test_a_candidate_scores_the_mean_of_its_eight_highest_voxels():
    found = find([[*[0.8] * 9, *[0.7] * 4, 0.0, 0.9, 0.5, 0.4]])
    assert scores(found.candidates) == [0.8, 0.6]  # nine of 0.8; all three of the higher peak
    assert (found.instances == 1).sum() == 13


def test_a_voxel_of_two_labels_belongs_to_the_higher_probability():
    found = find([[0.9, 0.6, 0.5, 0.0]], [[0.0, 0.5, 0.8, 0.7]])
    assert found.instances.tolist() == [[1, 1, 2, 2]]
    assert scores(found.candidates) == [0.75, 0.75]
    beaten = find([[0.9, 0.8]], [[0.7, 0.7]])  # everywhere
    assert [c.label for c in beaten.candidates] == [1]


def test_a_candidate_is_measured_in_voxels_and_millimetres():
    p = np.zeros((4, 5, 6), np.float32)
    p[1:3, 2:4, 3:5] = 0.8
    geometry = Geometry.from_spacing(p.shape, (3.0, 2.0, 1.0))
    (found,) = find_candidates(p[None], geometry, RULE, (4,)).candidates
    assert (found.id, found.label) == (1, 4)
    assert (found.start_vox, found.stop_vox) == ((1, 2, 3), (3, 4, 5))
    assert found.centre_mm == (3.5, 5.0, 4.5)
    assert found.volume_ml == pytest.approx(8 * 6 / 1000)
    assert found.diameter_mm == pytest.approx(2 * (3 * 48 / (4 * np.pi)) ** (1 / 3))


def test_what_is_dropped_for_its_size_is_remembered_as_boxes():
    channel = [[0.9, 0.0, 0.0, 0.6, 0.6, 0.6, 0.0, 0.3]]
    found = find(channel, min_voxels=2)
    assert (scores(found.candidates), scores(found.removed)) == ([0.6], [0.9, 0.3])
    assert [c.start_vox for c in found.removed] == [(0.0, 0.0), (0.0, 7.0)]
    assert not any(c.has_mask or c.accepted for c in found.removed)
    assert scores(find(channel, min_voxels=2, max_candidates=1).removed) == [0.9]


def test_nan_and_a_channel_off_the_grid_are_an_error():
    with pytest.raises(ContentError):
        find([[float("nan"), 0.2]])
    geometry = Geometry.from_spacing((2, 2), (1, 1))
    with pytest.raises(GeometryError):
        find_candidates(np.zeros((1, 3, 2), np.float32), geometry, RULE, (1,))


# --- properties ------------------------------------------------------------------------------


def blobs(rng, shape):
    grid, p = np.stack(np.indices(shape), -1), np.zeros(shape)
    for _ in range(12):
        centre, width, height = rng.uniform(0, shape), rng.uniform(0.7, 2.5), rng.uniform(0.02, 1)
        p = np.maximum(p, height * np.exp(-((grid - centre) ** 2).sum(-1) / (2 * width**2)))
    return p.astype(np.float32)


def around(array, fill):
    """The 3ᵈ neighbourhood of each voxel, on the last axes, and those axes."""
    padded = np.pad(array, 1, constant_values=fill)
    axes = tuple(range(array.ndim, 2 * array.ndim))
    return np.lib.stride_tricks.sliding_window_view(padded, (3,) * array.ndim), axes


def naive(p, rule):
    """The rule in slow words: one mask a step."""
    claimed, out = np.zeros(p.shape, int), np.zeros(p.shape, np.int32)
    windows, axes = around(p, -1)
    seeds = np.flatnonzero((windows.max(axis=axes) <= p) & (p >= rule.floor))
    for step, seed in enumerate(sorted(seeds, key=lambda i: -p.flat[i]), start=1):
        if claimed.flat[seed]:
            continue
        bar = min(np.float64(p.flat[seed]) / rule.ratio, np.float64(np.float32(rule.extent)))
        parts = label_components((p >= bar) & (claimed == 0))
        region = parts == parts.flat[seed]
        contact = region & around(claimed > 0, False)[0].any(axis=axes)
        claimed[region] = step
        shoulder = contact.any() and p.flat[seed] < PROMINENCE * p[contact].max()
        if not shoulder and region.sum() >= rule.min_voxels:
            out[region] = out.max() + 1
    return out


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(9, 10, 11), (24, 20)])
def test_equals_the_slow_wording_of_the_rule_mirrored_or_not(seed, shape):
    p = blobs(np.random.default_rng(seed), shape)
    rule = CandidateRule(min_voxels=2, join=1)
    found, slow = find(p, rule=rule).instances, naive(p, rule)
    pairs = np.unique(np.stack([found, slow]).reshape(2, -1), axis=1)  # ids are by another order
    assert pairs.shape[1] == found.max() + 1 == slow.max() + 1
    assert np.array_equal(found, find(p[:, ::-1], rule=rule).instances[:, ::-1])


# --- operating points ------------------------------------------------------------------------


def test_the_operating_point_accepts_from_its_score_up():
    half = accept(find([[0.9, 0.0, 0.5, 0.0, 0.4]]), OperatingPoint("score:0.5", 0.5))
    assert [c.accepted for c in half.candidates] == [True, True, False]
    assert half.mask().tolist() == [[1, 0, 1, 0, 0]]
    assert half.operating_point == OperatingPoint("score:0.5", 0.5)


def test_points_are_found_by_name_whatever_the_digits():
    points = (OperatingPoint("fp_per_case:1", 0.4), OperatingPoint("sensitivity:0.9", 0.2))
    assert choose_operating_point(points) is points[0]
    assert choose_operating_point(points, "sensitivity:0.90") is points[1]
    assert choose_operating_point(points, "score:0.37").score == 0.37
    assert choose_operating_point(()).score == 0.5
    for name in ("fp_per_case:2", "score:1.5", "score:x", "dice", "sensitivity"):
        with pytest.raises(ConfigError, match="fp_per_case:1"):
            choose_operating_point(points, name)


# --- joining peaks -------------------------------------------------------------------------------


def test_a_high_pass_makes_one_candidate_of_two_peaks():
    assert find([[0.9, 0.2, 0.8, 0.0]], rule=JOIN).instances.tolist() == [[1, 0, 1, 0]]
    # a pass under a tenth of the lower peak keeps them apart
    assert find([[0.9, 0.07, 0.8]], rule=JOIN).instances.tolist() == [[1, 0, 2]]
    corner = [[0.9, 0.0, 0.8], [0.3, 0.0, 0.3], [0.2, 0.3, 0.2]]
    assert find(corner, rule=JOIN).instances.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_small_lesions_side_by_side_each_label_and_peaks_that_may_not_join_stay_apart():
    rule, row = replace(JOIN, join_mm=3.0), [[0.9, 0.9, 0.2, 0.8]]
    assert find(row, rule=rule).instances.tolist() == [[1, 1, 0, 2]]  # 1.6 and 1.1 mm
    assert find(row, rule=rule, mm=2.0).instances.tolist() == [[1, 1, 0, 1]]  # 3.2 and 2.3 mm
    assert find([[0.9, 0.3, 0.9]], rule=JOIN, join=1.0).instances.tolist() == [[1, 0, 2]]
    assert len(find([[0.9, 0.2, 0.0]], [[0.0, 0.2, 0.8]], rule=JOIN).candidates) == 2


def pass_of(p, seed, others):
    """The highest level at which `seed` lies in one part with another peak, and the first such."""
    for level in sorted(set(p.ravel().tolist()), reverse=True):
        parts = label_components(p >= level)
        near = [k for k in others if parts.flat[k] and parts.flat[k] == parts.flat[seed]]
        if near:
            return level, near[0]
    return 0.0, -1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(6, 7, 8), (14, 12)])
def test_joining_equals_its_slow_wording(seed, shape, monkeypatch):
    p = np.random.default_rng(seed).random(shape)
    for axis in range(len(shape)):
        p = (p + np.roll(p, 1, axis) + np.roll(p, -1, axis)) / 3
    p = ((p - p.min()) / np.ptp(p)).astype(np.float32) ** 3
    monkeypatch.setattr(candidates, "PROMINENCE", 0.0)  # shoulders stay
    rule = replace(JOIN, ratio=1.2, join=2.0, floor=0.02)
    above = collect_sparse([p], shape, replace(rule, ratio=1e6))
    regions = grow_regions(above, rule)
    peaks, group = [r.peak for r in regions], list(range(len(regions)))
    for i, region in enumerate(regions):
        level, higher = pass_of(p, region.peak, peaks[:i])
        if higher >= 0 and region.height < rule.join * level:
            group[i] = group[peaks.index(higher)]
    expected = [
        np.sort(np.concatenate([r.voxels for r, k in zip(regions, group, strict=True) if k == g]))
        for g in sorted(set(group))
    ]
    joined = join_regions(regions, above, rule)
    assert len(joined) < len(regions)
    assert [r.voxels.tolist() for r in joined] == [v.tolist() for v in expected]
