"""Candidates of regions: one lesion, painted region by region."""

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError
from lesionseg.inference.decision import find_by_plan
from lesionseg.plan.plan import CandidateRule, Plan
from tests.models.plans import plan_of

GRID = Geometry.from_spacing((1, 8), (1.0, 1.0))


def plan(
    regions: tuple[tuple[int, ...], ...] = ((1, 2, 4), (4,)), values: tuple[int, ...] = (1, 4)
) -> Plan:
    rule = CandidateRule(min_voxels=1, join=1)
    labels = tuple(f"label {value}" for value in values)
    return plan_of(labels=labels, label_values=values, candidate_rule=rule, regions=regions)


def rows(*channels: list[float]) -> np.ndarray:
    return np.array(channels, dtype=np.float32)[:, np.newaxis]


def test_a_lesion_with_two_regions_is_one_candidate() -> None:
    whole = [0.0, 0.5, 0.9, 0.8, 0.0, 0.0, 0.2, 0.0]
    core = [0.0, 0.1, 0.4, 0.7, 0.0, 0.0, 0.15, 0.0]
    found = find_by_plan(rows(whole, core), GRID, plan())
    assert found.instances.tolist() == [[0, 1, 1, 1, 0, 0, 2, 0]]
    assert [(c.label, round(c.score, 3)) for c in found.candidates] == [(1, 0.733), (1, 0.2)]
    # the core where it has at least half of the lesion's probability, also in a faint candidate
    assert found.values is not None
    assert found.values.tolist() == [[0, 1, 1, 4, 0, 0, 4, 0]]


def test_a_voxel_that_only_an_inner_region_claims_is_found_and_reads_back_as_both() -> None:
    found = find_by_plan(rows([0.1] * 8, [0, 0, 0.8, 0.8, 0, 0, 0, 0]), GRID, plan())
    assert found.values is not None
    assert found.values[0, 2:4].tolist() == [4, 4]
    assert np.isin(found.values[0, 2:4], plan().regions[0]).all()


def test_later_regions_are_painted_over_earlier_ones() -> None:
    both = rows([0.9] * 8, [0.9] * 8)
    first = find_by_plan(both, GRID, plan())
    second = find_by_plan(both, GRID, plan(regions=((4,), (1, 2, 4)), values=(4, 1)))
    assert first.values is not None
    assert second.values is not None
    assert (set(first.values.flat), set(second.values.flat)) == ({4}, {1})


def test_no_voxel_of_a_candidate_is_left_without_a_region() -> None:
    noise = np.random.default_rng(0)
    probabilities = noise.random((3, 20, 30)).astype(np.float32) ** 4
    regions = plan(regions=((1, 2, 3), (2, 3), (3,)), values=(1, 2, 3))
    found = find_by_plan(probabilities, Geometry.from_spacing((20, 30), (1.0, 1.0)), regions)
    assert found.values is not None
    assert len(found.candidates) > 1
    np.testing.assert_array_equal(found.values > 0, found.instances > 0)


def test_without_regions_each_label_is_found_by_itself() -> None:
    found = find_by_plan(
        rows([0, 0.9, 0.9, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.7, 0, 0]), GRID, plan(regions=())
    )
    assert [c.label for c in found.candidates] == [1, 4]
    assert found.values is None


def test_nothing_gives_no_candidate_and_a_missing_channel_is_refused() -> None:
    found = find_by_plan(rows([0.0] * 8, [0.0] * 8), GRID, plan())
    assert found.candidates == ()
    assert found.values is not None
    assert not found.values.any()
    with pytest.raises(GeometryError):
        find_by_plan(rows([0.0] * 8), GRID, plan())
