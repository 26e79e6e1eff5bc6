"""Decisions on candidates: regions painted into one lesion, and the limit on candidates."""

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, Labels, Prediction
from lesionseg.errors import GeometryError
from lesionseg.inference.decision import find_by_plan, limit_candidates
from lesionseg.plan.plan import CandidateRule
from tests.models.plans import plan_of

WHOLE, CORE = (1, 2, 4), (4,)


def find(*channels, regions=(WHOLE, CORE), values=(1, 4)):
    rows = np.array(channels, dtype=np.float32)
    rows = rows[:, np.newaxis] if rows.ndim == 2 else rows
    labels = Labels(values, tuple(map(str, values)), regions)
    plan = plan_of().with_(labels=labels, candidate_rule=CandidateRule(min_voxels=1))
    return find_by_plan(rows, Geometry.from_spacing(rows.shape[1:], (1.0, 1.0)), plan)


def test_a_lesion_with_two_regions_is_one_candidate():
    whole = [0.0, 0.5, 0.9, 0.8, 0.0, 0.0, 0.2, 0.0]
    core = [0.0, 0.1, 0.4, 0.7, 0.0, 0.0, 0.15, 0.0]
    found = find(whole, core)
    assert found.instances.tolist() == [[0, 1, 1, 1, 0, 0, 2, 0]]
    assert [(c.label, round(c.score, 3)) for c in found.candidates] == [(1, 0.733), (1, 0.2)]
    # the core where it has at least half of the lesion's probability, also in a faint candidate
    assert found.values.tolist() == [[0, 1, 1, 4, 0, 0, 4, 0]]


def test_later_regions_are_painted_over_earlier_ones_and_an_inner_one_alone_is_found():
    both = [0.9] * 8, [0.9] * 8
    assert set(find(*both).values.flat) == {4}
    assert set(find(*both, regions=(CORE, WHOLE), values=(4, 1)).values.flat) == {1}
    assert find([0.1] * 8, [0, 0, 0.8, 0.8, 0, 0, 0, 0]).values[0, 2:4].tolist() == [4, 4]


def test_no_voxel_of_a_candidate_is_left_without_a_region():
    noise = np.random.default_rng(0).random((3, 20, 30)) ** 4
    found = find(*noise, regions=((1, 2, 3), (2, 3), (3,)), values=(1, 2, 3))
    assert len(found.candidates) > 1
    np.testing.assert_array_equal(found.values > 0, found.instances > 0)


def test_nothing_gives_no_candidate_and_a_missing_channel_is_an_error():
    found = find([0.0] * 8, [0.0] * 8)
    assert found.candidates == ()
    assert not found.values.any()
    with pytest.raises(GeometryError):
        find([0.0] * 8)


def test_candidates_beyond_the_limit_are_kept_from_the_threshold_up():
    geometry = Geometry.from_spacing((1, 6), (1.0, 1.0))
    instances = np.array([[1, 0, 2, 0, 3, 3]], np.int32)
    candidates = tuple(
        Candidate.from_box(number, 1, score, (0, 0, 1, 1), geometry)
        for number, score in ((1, 0.9), (2, 0.6), (3, 0.2))
    )
    kept = limit_candidates(Prediction("A", geometry, candidates, instances), 1, keep_from=0.5)
    assert [c.id for c in kept.candidates] == [1, 2]
    assert kept.instances.tolist() == [[1, 0, 2, 0, 0, 0]]
    assert kept.n_left_out == 1
