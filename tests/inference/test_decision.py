"""Decisions on candidates: regions of a lesion, and the limit on candidates."""

import numpy as np
import pytest
import torch

from lesionseg.core import Geometry, InputCheckResult, Labels
from lesionseg.data.preprocess_image import plan_geometry
from lesionseg.errors import GeometryError
from lesionseg.inference.decision import Inferred, find_by_rule, limit_candidates
from lesionseg.inference.stitch import Store
from lesionseg.plan.plan import CandidateRule
from tests.evaluation.hand_cases import prediction_of
from tests.grids import unit_grid
from tests.models.plans import plan_of

WHOLE = (1, 2, 4)
CORE = (4,)


def find(*channels, regions=(WHOLE, CORE), values=(1, 4)):
    """Find the candidates of probabilities with one channel per region."""
    rows = np.array(channels, dtype=np.float32)
    if rows.ndim == 2:
        rows = rows[:, np.newaxis]
    labels = Labels(values, tuple(map(str, values)), regions)
    grid = unit_grid(*rows.shape[1:])
    return find_by_rule(rows, grid, CandidateRule(min_voxels=1), labels)


def test_lesion_with_two_regions_is_one_candidate():
    whole = [0.0, 0.5, 0.9, 0.8, 0.0, 0.0, 0.2, 0.0]
    core = [0.0, 0.1, 0.4, 0.7, 0.0, 0.0, 0.15, 0.0]
    found = find(whole, core)
    assert found.instances.tolist() == [[0, 1, 1, 1, 0, 0, 2, 0]]
    assert [(c.label, round(c.score, 3)) for c in found.candidates] == [(1, 0.733), (1, 0.2)]
    # a voxel is core if the core has at least half of the lesion's probability there
    assert found.values.tolist() == [[0, 1, 1, 4, 0, 0, 4, 0]]


def test_voxel_of_two_regions_has_the_value_of_the_later_region():
    likely = [0.9] * 8, [0.9] * 8
    assert set(find(*likely).values.flat) == {4}
    assert set(find(*likely, regions=(CORE, WHOLE), values=(4, 1)).values.flat) == {1}


def test_inner_region_without_its_outer_region_is_found():
    assert find([0.1] * 4, [0, 0.8, 0.8, 0]).values[0, 1:3].tolist() == [4, 4]


def test_every_voxel_of_a_candidate_has_a_region():
    noise = np.random.default_rng(0).random((3, 20, 30)) ** 4
    found = find(*noise, regions=((1, 2, 3), (2, 3), (3,)), values=(1, 2, 3))
    assert len(found.candidates) > 1
    np.testing.assert_array_equal(found.values > 0, found.instances > 0)


def test_probabilities_of_zero_give_no_candidate():
    found = find([0.0] * 8, [0.0] * 8)
    assert found.candidates == ()
    assert not found.values.any()


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 9)])
def test_missing_channel_or_another_grid_is_an_error(shape):
    labels = Labels((1, 4), ("whole", "core"), (WHOLE, CORE))
    grid = unit_grid(1, 8)
    with pytest.raises(GeometryError):
        find_by_rule(np.zeros(shape, np.float32), grid, CandidateRule(), labels)


def test_candidates_beyond_the_limit_are_kept_if_they_reach_the_threshold():
    instances = np.array([[1, 0, 2, 0, 3, 3]], np.int32)
    geometry = unit_grid(*instances.shape)
    given = prediction_of(instances, (0.9, 0.6, 0.2), geometry)
    kept = limit_candidates(given, 1, keep_from=0.5)
    assert [c.id for c in kept.candidates] == [1, 2]
    assert kept.instances.tolist() == [[1, 0, 2, 0, 0, 0]]
    assert kept.n_left_out == 1


def restore(grid, file):
    """Return probabilities of 0.75 on a grid of the plan on the grid of the file."""
    store = Store((1, *grid.shape))
    store.write(tuple(slice(0, n) for n in grid.shape), torch.full((1, *grid.shape), 0.75))
    inferred = Inferred(store, grid, file, InputCheckResult(None, ""))
    return np.concatenate(list(inferred.slabs(0, None)))


@pytest.mark.parametrize("n_slices", [8, 12, 13, 17])
def test_lesion_in_all_slices_of_a_fine_scan_has_probabilities_in_all_of_them(n_slices):
    """The plan's grid of 5 mm ends up to 1.25 mm before the scan's, or after it."""
    plan = plan_of(dims=3).with_(spacing_mm=(5.0, 1.0, 1.0))
    file = unit_grid(n_slices, 3, 3)
    found = restore(plan_geometry(file, plan), file)
    np.testing.assert_allclose(found, np.full(file.shape, 0.75), atol=1e-3)


def test_probabilities_half_a_voxel_and_more_outside_the_grid_of_the_plan_are_zero():
    found = restore(Geometry.from_spacing((2, 3, 3), (5.0, 1.0, 1.0)), unit_grid(16, 3, 3))
    assert (found[:10] > 0.7).all()  # the grid ends at 7.5 mm, and half a voxel is 2.5 mm
    assert (found[10:] == 0).all()
