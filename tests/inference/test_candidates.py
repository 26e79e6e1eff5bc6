"""Candidates from probabilities: the rule, its invariances, and limits."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, uniform_filter

from lesionseg.core import Geometry, OperatingPoint
from lesionseg.errors import ContentError, GeometryError
from lesionseg.inference.candidates import PROMINENCE, find_candidates
from lesionseg.ops.components import label_components, lesion_instances
from lesionseg.plan.plan import CandidateRule
from tests.grids import unit_grid

RULE = CandidateRule(ratio=2.5, extent=1.0, min_voxels=1)  # the extent depends only on the peak


def find(*channels, rule=RULE, mm=1.0, **changes):
    """Find the candidates of one channel per label. `changes` replace fields of the rule."""
    arrays = [np.asarray(channel, dtype=np.float32) for channel in channels]
    geometry = Geometry.from_spacing(arrays[0].shape, (mm,) * arrays[0].ndim)
    labels = tuple(range(1, len(arrays) + 1))
    return find_candidates(arrays, geometry, replace(rule, **changes), labels)


def scores(candidates):
    return [round(c.score, 3) for c in candidates]


# --- the rule, computed by hand --------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "change", "instances"),
    [
        # a peak extends down to a share of its value: 0.9 / 2.5 = 0.36, so 0.35 is outside
        ([0.1, 0.36, 0.9, 0.5, 0.35, 0.1], {}, [0, 1, 1, 1, 0, 0]),
        # faint lesions extend to lower values than bright ones
        ([0.9, 0.3, 0.0, 0.3, 0.2, 0.13, 0.11], {}, [1, 0, 0, 2, 2, 2, 0]),
        # the extent may contain values below the floor, but the peak may not be below it
        ([0.3, 0.2, 0.0, 0.29, 0.2], {"floor": 0.3}, [1, 1, 0, 0, 0]),
        # 0.9 / 1.6 = 0.56, but 0.36 is above the extent of 0.35; 0.2 / 1.6 = 0.125
        (
            [0.34, 0.36, 0.9, 0.5, 0.0, 0.12, 0.13, 0.2],
            {"ratio": 1.6, "extent": 0.35},
            [0, 1, 1, 1, 0, 0, 2, 2],
        ),
        # a shoulder is dropped: 0.34 < 1.5 · 0.3 next to the extent of 0.9
        ([0.9, 0.5, 0.30, 0.34, 0.1], {}, [1, 1, 0, 0, 0]),
        # a second peak (0.5 ≥ 1.5 · 0.3) touches the higher region: one candidate
        ([0.9, 0.5, 0.3, 0.5, 0.1], {}, [1, 1, 1, 1, 0]),
        # a plateau is one peak; equal peaks are ordered by index
        ([0.5, 0.5, 0.0, 0.7, 0.0, 0.5, 0.0, 0.7], {}, [3, 3, 0, 1, 0, 4, 0, 2]),
        # small candidates are dropped
        ([0.9, 0.0, 0.6, 0.5], {"min_voxels": 2}, [0, 0, 1, 1]),
        ([0.01, 0.04], {}, [0, 0]),
    ],
)
def test_rule_gives_the_candidates_found_by_hand(row, change, instances):
    found = find([row], **change)
    assert found.instances.tolist() == [instances]
    assert [c.id for c in found.candidates] == list(range(1, max(instances) + 1))


def test_score_is_the_mean_of_the_eight_highest_voxels():
    found = find([[*[0.8] * 9, *[0.7] * 4, 0.0, 0.9, 0.5, 0.4]])
    assert scores(found.candidates) == [0.8, 0.6]  # of nine voxels of 0.8; of all three voxels
    assert (found.instances == 1).sum() == 13


@pytest.mark.parametrize(
    ("channels", "instances", "labels"),
    [
        (([0.9, 0.6, 0.5, 0.0], [0.0, 0.5, 0.8, 0.7]), [1, 1, 2, 2], [1, 2]),
        (([0.9, 0.8], [0.7, 0.7]), [1, 1], [1]),  # less likely everywhere
        # a region that is divided becomes a candidate for each part
        (([0.7, 0.6, 0.5, 0.6, 0.65], [0.0, 0.0, 0.9, 0.0, 0.0]), [2, 2, 1, 3, 3], [2, 1, 1]),
    ],
)
def test_voxel_of_two_labels_belongs_to_the_higher_probability(channels, instances, labels):
    found = find(*([row] for row in channels))
    assert found.instances.tolist() == [instances]
    assert [c.label for c in found.candidates] == labels


def test_candidate_is_measured_in_voxels_and_millimetres():
    p = np.zeros((4, 5, 6), np.float32)
    p[1:3, 2:4, 3:5] = 0.8
    geometry = Geometry.from_spacing(p.shape, (3.0, 2.0, 1.0))
    (found,) = find_candidates(p[None], geometry, RULE, (4,)).candidates
    assert (found.id, found.label) == (1, 4)
    assert (found.start_vox, found.stop_vox) == ((1, 2, 3), (3, 4, 5))
    assert found.centre_mm == (3.5, 5.0, 4.5)


def test_candidates_that_are_too_small_are_kept_as_removed_boxes():
    channel = [[0.9, 0.0, 0.0, 0.6, 0.6, 0.6, 0.0, 0.3]]
    found = find(channel, min_voxels=2)
    assert (scores(found.candidates), scores(found.removed)) == ([0.6], [0.9, 0.3])
    assert [c.start_vox for c in found.removed] == [(0.0, 0.0), (0.0, 7.0)]
    assert not any(c.has_mask or c.accepted for c in found.removed)
    assert scores(find(channel, min_voxels=2, candidate_limit=1).removed) == [0.9]


def test_nan_is_an_error():
    with pytest.raises(ContentError, match=r"inference\.precision=fp32"):
        find([[float("nan"), 0.2]])


def test_channel_on_another_grid_is_an_error():
    geometry = unit_grid(2, 2)
    with pytest.raises(GeometryError):
        find_candidates(np.zeros((1, 3, 2), np.float32), geometry, RULE, (1,))


# --- invariances -----------------------------------------------------------------------------


def make_maps(seed, shape, n_labels):
    """Make a smooth random map with many peaks, levels and islands for each label."""
    rng = np.random.default_rng(seed)
    channels = []
    for _ in range(n_labels):
        p = uniform_filter(rng.random(shape), 3, mode="wrap")
        channels.append((((p - p.min()) / np.ptp(p)) ** rng.uniform(3, 6)).astype(np.float32))
    return channels


def label_by_naive_rule(p, rule):
    """Apply the rule slowly, with one mask per peak."""
    claimed = np.zeros(p.shape, int)
    kept = np.zeros(p.shape, bool)
    seeds = np.flatnonzero((maximum_filter(p, 3) <= p) & (p >= rule.floor))
    for step, seed in enumerate(sorted(seeds, key=lambda i: -p.flat[i]), start=1):
        if claimed.flat[seed]:
            continue
        bar = min(np.float64(p.flat[seed]) / rule.ratio, np.float64(np.float32(rule.extent)))
        parts = label_components((p >= bar) & (claimed == 0))
        region = parts == parts.flat[seed]
        contact = region & maximum_filter(claimed > 0, 3)
        claimed[region] = step
        shoulder = contact.any() and p.flat[seed] < PROMINENCE * p[contact].max()
        kept |= region & ~shoulder
    instances = label_components(kept)
    sizes = np.bincount(instances.ravel())
    instances[sizes[instances] < rule.min_voxels] = 0
    return np.unique(instances, return_inverse=True)[1].reshape(p.shape)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(9, 10, 11), (24, 20)])
def test_candidates_equal_those_of_the_naive_rule_and_of_the_mirrored_image(seed, shape):
    (p,) = make_maps(seed, shape, 1)
    rule = CandidateRule(min_voxels=2)
    found = find(p, rule=rule).instances
    naive = label_by_naive_rule(p, rule)
    pairs = np.unique(np.stack([found, naive]).reshape(2, -1), axis=1)  # the ids differ in order
    assert pairs.shape[1] == found.max() + 1 == naive.max() + 1
    assert np.array_equal(found, find(p[:, ::-1], rule=rule).instances[:, ::-1])


# --- each candidate is one connected component ---------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(9, 14, 15), (40, 50)])
@pytest.mark.parametrize("n_labels", [1, 2])
def test_every_candidate_is_one_component_of_the_mask_at_every_threshold(seed, shape, n_labels):
    found = find(*make_maps(seed, shape, n_labels), rule=CandidateRule(min_voxels=2))
    assert len(found.candidates) > 3
    for candidate in found.candidates:
        own = found.instances == candidate.id
        assert label_components(own).max() == 1
        place = np.argwhere(own)
        assert candidate.start_vox == tuple(place.min(axis=0))
        assert candidate.stop_vox == tuple(place.max(axis=0) + 1)
    for threshold in (0.1, 0.3, 0.5, 0.7):
        drawn = found.accept(OperatingPoint(f"score:{threshold}", threshold))
        n_accepted = sum(c.accepted for c in drawn.candidates)
        components, of_component = lesion_instances(drawn.mask())
        pairs = np.unique(np.stack([components, found.instances])[:, components > 0], axis=1)
        assert len(of_component) == pairs.shape[1] == n_accepted


def test_all_of_1000_equal_spots_are_candidates():
    spot = np.pad(np.full((3, 3, 3), 0.8, np.float32), 3)
    found = find(np.tile(spot, (10, 10, 10)), rule=CandidateRule())
    assert (len(found.candidates), found.n_left_out) == (1000, 0)


def test_limit_leaves_out_the_lowest_peaks_and_states_their_number():
    row = [[0.3, 0.0, 0.9, 0.0, 0.6, 0.0, 0.5]]
    found = find(row, candidate_limit=2)
    assert found.instances.tolist() == [[0, 0, 1, 0, 2, 0, 0]]
    assert found.n_left_out == 2
    assert "2 with the lowest scores" in found.left_out_note
    # candidates above the operating point are kept
    geometry = unit_grid(1, 7)
    rule = replace(RULE, candidate_limit=1)
    found = find_candidates(np.array([row], np.float32), geometry, rule, (1,), keep_from=0.5)
    assert scores(found.candidates) == [0.9, 0.6, 0.5]
    assert found.n_left_out == 1
