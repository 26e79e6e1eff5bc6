"""Resizing by splines, compared with SciPy on the whole array."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lesionseg.ops.resize import find_neighbours, resize

SHAPES = [((7, 9, 8), (7, 13, 5)), ((4, 6, 6), (9, 6, 11)), ((1, 6, 5), (1, 3, 4))]


@pytest.mark.parametrize(("before", "after"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_resizing_by_one_order_equals_that_of_scipy(before, after, order, rng):
    array = rng.normal(size=before)
    factors = np.divide(after, before)
    expected = ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)
    expected = expected.clip(array.min(), array.max())
    found = resize(torch.from_numpy(array), after, (order,) * 3).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [0, 1])
def test_axis_with_its_own_order_is_resized_after_clipped_slices(axis, order, rng):
    array = rng.normal(size=(5, 6, 7))
    after = [8, 9, 4]
    planes = [n for a, n in enumerate(after) if a != axis]
    slices = []
    for plane in np.moveaxis(array, axis, 0):
        factors = np.divide(planes, plane.shape)
        larger = ndimage.zoom(plane, factors, order=3, mode="nearest", grid_mode=True)
        slices.append(larger.clip(plane.min(), plane.max()))
    stack = np.stack(slices, axis)
    places = [(np.arange(n) + 0.5) * (m / n) - 0.5 for n, m in zip(after, stack.shape, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    expected = ndimage.map_coordinates(stack, grid, order=order, mode="nearest")
    orders = [order if a == axis else 3 for a in range(3)]
    found = resize(torch.from_numpy(array), after, orders, clip_along=axis).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
def test_rows_from_a_part_of_the_input_equal_those_of_the_whole(order, rng):
    array = torch.from_numpy(rng.normal(size=(3, 9)).astype(np.float32))
    neighbours = find_neighbours(9, 14, order)
    whole = neighbours.apply(array, axis=1)
    for first in range(0, 14, 5):
        rows = slice(first, min(first + 5, 14))
        needed = neighbours.reach(rows)
        part = neighbours.within(rows, needed.start).apply(array[:, needed], axis=1)
        assert torch.equal(part, whole[:, rows])


def test_array_that_has_the_new_shape_is_not_changed(rng):
    array = torch.from_numpy(rng.normal(size=(3, 4, 5)).astype(np.float32))
    assert torch.equal(resize(array, (3, 4, 5), (3, 3, 3)), array)
