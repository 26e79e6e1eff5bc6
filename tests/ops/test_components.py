import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from lesionseg.errors import ContentError
from lesionseg.ops.components import (
    fill_polygon,
    foreground_slices,
    label_components,
    lesion_instances,
    mask_boxes,
    present_values,
)


@pytest.mark.parametrize("order", ["C", "F"])
def test_ids_follow_the_first_voxel_in_c_order_whatever_the_memory_layout(order):
    mask = np.zeros((3, 4, 5), dtype=bool, order=order)
    mask[0, 3, 4] = mask[1, 0, 0] = mask[2, 3, 0] = True
    found = label_components(mask)
    assert [found[0, 3, 4], found[1, 0, 0], found[2, 3, 0]] == [1, 2, 3]


def test_touching_lesions_of_different_labels_stay_apart():
    labels = np.array([[1, 1, 2, 2, 0, 1]], dtype=np.uint8)
    found = lesion_instances(labels)
    assert found.instances.tolist() == [[1, 1, 2, 2, 0, 3]]
    assert found.labels == (1, 2, 1)
    assert found.instances.dtype == np.int32


def test_four_axes_are_refused():
    with pytest.raises(ContentError, match="two or three axes"):
        lesion_instances(np.zeros((2, 2, 2, 2), dtype=np.uint8))


def test_boxes_of_instances():
    instances = np.zeros((4, 5, 6), dtype=np.int32)
    instances[1:3, 2:5, 0:1] = 1
    instances[3, 4, 5] = 3
    assert mask_boxes(instances, 3).tolist() == [
        [1, 2, 0, 3, 5, 1],
        [0, 0, 0, 0, 0, 0],
        [3, 4, 5, 4, 5, 6],
    ]
    assert mask_boxes(instances, 0).shape == (0, 6)


def test_foreground_slices_bound_the_voxels():
    array = np.zeros((7, 8, 9))
    array[2:4, 1:7, 5] = 1
    inside = foreground_slices(array)
    assert inside == (slice(2, 4), slice(1, 7), slice(5, 6))
    assert inside == ndimage.find_objects(array.astype(int))[0]
    assert foreground_slices(np.zeros((3, 3))) is None


@pytest.mark.parametrize("seed", range(40))
def test_components_of_crowded_maps_equal_flood_filling(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 11, rng.integers(2, 4)))
    kept = rng.random(shape) < rng.random()
    labels = (rng.integers(1, 4, shape) * kept).astype(rng.choice(["u1", "i2", "i4", "i8"]))
    found = lesion_instances(labels)
    apart = np.zeros((4, *shape), np.int32)
    for value in (1, 2, 3):
        apart[value] = ndimage.label(labels == value, np.ones((3,) * len(shape)))[0]
    pairs = {(v, part, i) for v in (1, 2, 3) for part, i in _pairs(apart[v], found.instances)}
    assert len(pairs) == len(found.labels) == apart.max(axis=tuple(range(1, apart.ndim))).sum()
    assert {(i, v) for v, _, i in pairs} == set(enumerate(found.labels, start=1))
    ids, first = np.unique(found.instances, return_index=True)
    assert (np.diff(first[ids > 0]) > 0).all()  # numbered by first voxel


def _pairs(parts, instances):
    inside = parts > 0
    return set(zip(parts[inside].tolist(), instances[inside].tolist(), strict=True))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4"])
def test_present_values_are_those_of_numpy(dtype):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 1.0):
        array = (rng.integers(1, 90, (7, 8, 9)) * (rng.random((7, 8, 9)) < share)).astype(dtype)
        assert present_values(array) == np.unique(array).tolist()
    assert present_values(np.zeros((0, 4), dtype)) == []


def test_a_polygon_is_what_a_plain_loop_finds() -> None:
    rng = np.random.default_rng(0)

    def is_inside(corners: np.ndarray, y: float, x: float) -> bool:
        inside = False
        for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                inside = not inside
        return inside

    for _ in range(20):
        corners = rng.uniform(-2, 12, (rng.integers(3, 9), 2))
        expected = [[is_inside(corners, y, x) for x in range(9)] for y in range(10)]
        if np.any(expected):
            np.testing.assert_array_equal(fill_polygon(corners, (10, 9)), expected)
    small = np.array([[2.4, 3.4], [2.4, 3.6], [2.6, 3.5]])
    assert np.argwhere(fill_polygon(small, (5, 5))).tolist() == [[2, 4]]  # the nearest pixel
    assert not fill_polygon(small + 20, (5, 5)).any()


def test_components_do_without_torch():
    code = "import sys, lesionseg.ops.components\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
