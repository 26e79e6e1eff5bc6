import numpy as np
import pytest

from lesionseg.evaluation.lesions import measure_extent


def test_a_box_by_hand():
    voxels = np.argwhere(np.ones((3, 2, 6), dtype=bool))
    found = measure_extent(voxels, (4.0, 1.0, 1.0))
    diagonal = np.hypot(1, 5)
    # edge to edge along the diagonal of centres: a pixel's width in that direction is added
    assert found.long_axis_mm == pytest.approx(diagonal + (1 + 5) / diagonal)
    assert found.slices == 3
    assert not found.near_resolution


def test_a_disc_of_twenty_pixels():
    y, x = np.ogrid[:25, :25]
    voxels = np.argwhere((y - 12) ** 2 + (x - 12) ** 2 <= 100)
    found = measure_extent(voxels, (0.5, 0.5))
    assert found.long_axis_mm == pytest.approx(10.5, abs=0.4)
    assert found.short_axis_mm == pytest.approx(10.5, abs=0.4)
    assert found.slices == 1
    assert not found.near_resolution


def test_a_single_voxel():
    found = measure_extent(np.array([[3, 4, 5]]), (2.0, 1.0, 0.5))
    assert (found.slices, found.long_axis_mm, found.short_axis_mm) == (1, 1.0, 0.5)
    assert found.near_resolution


def test_the_slice_axis_is_the_coarse_one():
    voxels = np.argwhere(np.ones((4, 2, 5), dtype=bool))
    assert measure_extent(voxels, (1.0, 5.0, 1.0)).slices == 2
    assert measure_extent(voxels, (1.0, 1.0, 1.0)).slices == 4


def test_one_slice_is_near_the_resolution():
    voxels = np.argwhere(np.ones((1, 4, 4), dtype=bool))
    assert measure_extent(voxels, (1.0, 1.0, 1.0)).near_resolution


def test_axes_do_not_depend_on_direction():
    rng = np.random.default_rng(0)
    mask = rng.random((1, 9, 9)) < 0.4
    a = measure_extent(np.argwhere(mask), (1.0, 1.0, 1.0))
    b = measure_extent(np.argwhere(mask.transpose(0, 2, 1)), (1.0, 1.0, 1.0))
    assert a.long_axis_mm == pytest.approx(b.long_axis_mm)
