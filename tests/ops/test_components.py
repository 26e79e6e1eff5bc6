"""Connected components of label maps, compared with SciPy, and filled polygons."""

import numpy as np
import pytest
from scipy import ndimage

from lesionseg.errors import ContentError
from lesionseg.ops.components import (
    fill_polygons,
    foreground_slices,
    lesion_instances,
    present_values,
)


def test_four_axes_are_an_error():
    with pytest.raises(ContentError, match="two or three axes"):
        lesion_instances(np.zeros((2, 2, 2, 2), dtype=np.uint8))


def test_foreground_slices_enclose_the_nonzero_voxels():
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[1:3, 2:5, 0:1] = True
    assert foreground_slices(mask) == (slice(1, 3), slice(2, 5), slice(0, 1))
    assert foreground_slices(np.zeros((3, 3))) is None


@pytest.mark.parametrize("seed", range(40))
def test_components_of_dense_read_only_maps_equal_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 11, rng.integers(2, 4)))
    kept = rng.random(shape) < rng.random()
    labels = (rng.integers(1, 4, shape) * kept).astype(rng.choice(["u1", "i2", "i4", "i8"]))
    labels = np.array(labels, order=rng.choice(["C", "F"]))
    labels.flags.writeable = False
    instances, labels_of = lesion_instances(labels)
    assert instances.dtype == np.int32
    pairs = set()
    n_parts = 0
    for value in (1, 2, 3):
        parts, n = ndimage.label(labels == value, np.ones((3,) * len(shape)))
        inside = parts > 0
        n_parts += n
        pairs |= {(value, *p) for p in zip(parts[inside], instances[inside], strict=True)}
    assert len(pairs) == len(labels_of) == n_parts
    assert {(i, value) for value, _, i in pairs} == set(enumerate(labels_of, start=1))
    ids, first = np.unique(instances, return_index=True)
    assert (np.diff(first[ids > 0]) > 0).all()  # numbered by first voxel


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_present_values_equal_those_of_numpy(rng, share):
    array = rng.integers(1, 90, (7, 8, 9)) * (rng.random((7, 8, 9)) < share)
    assert present_values(array) == np.unique(array).tolist()
    assert present_values(array[:0]) == []


def is_inside(corners, y, x):
    """Return True if a ray to the left crosses an odd number of sides."""
    crossings = 0
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y):
            crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
    return crossings % 2 == 1


def test_filled_polygon_equals_a_naive_loop(rng):
    for _ in range(20):
        corners = rng.uniform(-2, 12, (rng.integers(3, 9), 2))
        expected = [[is_inside(corners, y, x) for x in range(9)] for y in range(10)]
        if np.any(expected):
            np.testing.assert_array_equal(fill_polygons([corners], (10, 9)), expected)


def test_polygon_without_pixel_centres_is_its_nearest_pixel():
    small = np.array([[2.4, 3.4], [2.4, 3.6], [2.6, 3.5]])
    assert np.argwhere(fill_polygons([small], (5, 5))).tolist() == [[2, 4]]
    assert not fill_polygons([small + 20], (5, 5)).any()


def test_hole_smaller_than_a_pixel_removes_no_pixel():
    outline = np.array([[0.5, 0.5], [0.5, 3.5], [2.5, 3.5], [2.5, 0.5]])
    small = np.array([[1.9, 2.1], [1.9, 2.3], [1.7, 2.2]])  # nearest to the pixel (2, 2)
    lesion = fill_polygons([outline], (5, 6))
    assert np.argwhere(lesion).tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]
    for polygons in ([outline, small], [small, outline]):
        np.testing.assert_array_equal(fill_polygons(polygons, (5, 6)), lesion)
    # a small lesion next to it and one within another small one
    apart = small + 2
    assert np.argwhere(fill_polygons([outline, apart], (5, 6)) ^ lesion).tolist() == [[4, 4]]
    smaller = (small - small.mean(axis=0)) / 2 + small.mean(axis=0)
    assert np.argwhere(fill_polygons([small, smaller], (5, 6))).tolist() == [[2, 2]]


@pytest.mark.parametrize("error", [0, 1e-9, 5e-4, -5e-4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 2), (3, 3), (10, 18)])
@pytest.mark.parametrize("step", [1, -1])
def test_outline_through_the_centres_of_the_outermost_pixels_includes_them(
    error, height, width, step
):
    low = np.array([3, 2])
    high = low + np.array([height - 1, width - 1])
    corners = np.array([low, (low[0], high[1]), high, (high[0], low[1])])[::step]
    rounding = error * np.array([[1, -1], [-1, 1], [1, 1], [-1, -1]])
    filled = fill_polygons([corners + rounding], (16, 22))
    expected = np.zeros((16, 22), bool)
    expected[3 : 3 + height, 2 : 2 + width] = True
    np.testing.assert_array_equal(filled, expected)


def test_slanted_side_through_centres_includes_them():
    triangle = np.array([[1, 1], [1, 7], [7, 1]]) + 3e-4
    expected = [[y >= 1 and x >= 1 and x + y <= 8 for x in range(9)] for y in range(9)]
    np.testing.assert_array_equal(fill_polygons([triangle], (9, 9)), expected)


def test_centres_on_the_outline_of_a_hole_belong_to_the_lesion():
    outer = np.array([[1, 1], [1, 7], [7, 7], [7, 1]])
    hole = np.array([[3, 3], [3, 5], [5, 5], [5, 3]])
    expected = np.zeros((9, 9), bool)
    expected[1:8, 1:8] = True
    expected[4, 4] = False
    keyhole = np.array([*outer, outer[0], *hole, hole[0], outer[0]])
    for polygons in ([outer, hole], [hole, outer], [keyhole]):
        np.testing.assert_array_equal(fill_polygons(polygons, (9, 9)), expected)
    beyond = fill_polygons([outer - [5, 0]], (9, 9))  # a part of the outline is outside
    assert foreground_slices(beyond) == (slice(0, 3), slice(1, 8))
    assert beyond.sum() == 3 * 7
