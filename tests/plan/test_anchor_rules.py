"""Anchors are fitted to lesions."""

from dataclasses import replace
from itertools import pairwise
from operator import attrgetter

import numpy as np
import pytest

from lesionseg.plan import anchor_sizes
from lesionseg.plan.anchor_sizes import fit_anchors
from lesionseg.plan.plan import Architecture, total_strides


def make_architecture(dims):
    """Make an architecture of five stages, each of half the resolution."""
    strides = ((1,) * dims, *[(2,) * dims] * 4)
    return Architecture("retinanet", (16, 32, 64, 128, 256), strides, ((3,) * dims,) * 5)


def fit(extents, dims=3):
    return fit_anchors(extents, make_architecture(dims)).value


def test_width_of_the_heads_is_a_multiple_of_their_norm_groups():
    network = replace(make_architecture(3), features=(10, 20, 40, 80, 160))
    assert fit_anchors([[5, 5, 5]], network).value.width == 24


@pytest.mark.parametrize("dims", [2, 3])
def test_anchors_of_three_voxel_lesions_have_a_stride_of_two(dims):
    found = fit([[3] * dims] * 20, dims)
    assert total_strides(make_architecture(dims).strides)[found.stages[0]] == (2,) * dims
    assert (found.mean_iou, found.small_recall) == (pytest.approx(1.0), 1.0)


def test_single_slices_do_not_need_the_finest_level():
    """The stages halve only the slices, so each slice remains."""
    strides = ((1, 1, 1), *[(1, 2, 2)] * 3)
    architecture = Architecture("retinanet", (16, 32, 64, 128), strides, ((3, 3, 3),) * 4)
    found = fit_anchors([[1, 30, 30]] * 20, architecture).value
    assert total_strides(strides)[found.stages[0]] == (1, 8, 8)


@pytest.mark.parametrize(("seed", "n", "dims"), [(0, 2, 3), (3, 3, 3), (8, 8, 3), (33, 33, 2)])
@pytest.mark.parametrize("place", ["_best_iou", "np.log"])
def test_rounding_of_another_processor_does_not_change_the_sizes(monkeypatch, place, seed, n, dims):
    extents = np.random.default_rng(seed).integers(2, 30, (n, dims))
    expected = fit(extents, dims).sizes
    compute = attrgetter(place)(anchor_sizes)
    digits = np.random.default_rng(0)

    def round_differently(*arrays):
        found = compute(*arrays)
        return found * (1 + 2.2e-16 * digits.integers(-1, 2, found.shape))

    monkeypatch.setattr(f"lesionseg.plan.anchor_sizes.{place}", round_differently)
    assert fit(extents, dims).sizes == expected


def test_boxes_of_low_probability_are_kept():
    assert fit([[24, 24]] * 20, 2).floor == 0.01


def test_mixed_lesions_are_covered_better_than_by_cubes_of_octaves():
    rng = np.random.default_rng(0)
    extents = np.exp(rng.normal(1.5, 0.6, (300, 1)) + rng.normal(0, 0.3, (300, 3))).round() + 1
    found = fit(extents)
    cubes = np.repeat(2.0 ** (np.arange(2, 11) / 2)[:, None], 3, axis=1)
    shared = np.minimum(extents[:, None], cubes).prod(-1)
    union = extents.prod(-1)[:, None] + cubes.prod(-1) - shared
    assert found.mean_iou > (shared / union).max(1).mean()
    assert found.small_recall > 0.9
    assert all(len(sizes) == found.n_shapes for sizes in found.sizes)
    volumes = [[np.prod(size) for size in sizes] for sizes in found.sizes]
    assert volumes == sorted(map(sorted, volumes))  # the smallest at the finest level
    for finer, coarser in pairwise(found.sizes):
        assert set(finer) & set(coarser)  # the levels overlap


def test_dataset_without_lesions_gets_cubes_that_grow_with_the_stride():
    found = fit([])
    octaves = [(4 * 2.0**i,) * 3 for i in range(4)]
    assert [found.sizes[i][0] for i in range(3)] == octaves[:3]
    assert [found.sizes[i][3] for i in range(2)] == octaves[1:3]  # of the next level
    assert found.sizes[3][1] == octaves[3]  # the coarsest has one of the level before
    assert found.mean_iou is None
