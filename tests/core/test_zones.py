"""Zones of lesions: the zone with most voxels, otherwise the nearest zone."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Zones
from lesionseg.ops.components import measure_instances

GRID = Geometry.from_spacing((6, 10, 10), (2, 1, 1))
NAMES = {1: "left", 2: "right"}


def make_lesions(*blocks):
    instances = np.zeros(GRID.shape, np.int32)
    for number, block in enumerate(blocks, 1):
        instances[block] = number
    n = len(blocks)
    return measure_instances(GRID, np.arange(1, n + 1), [1] * n, None, instances)


def make_halves(geometry=GRID):
    """Make zones with value 1 in the left half, 2 in the right, and no zone in the first slice."""
    values = np.zeros(geometry.shape, np.uint8)
    middle = geometry.shape[2] // 2
    values[1:, :, :middle] = 1
    values[1:, :, middle:] = 2
    return Zones(values, geometry, NAMES)


def test_zone_with_most_voxels_is_chosen_and_the_smaller_value_if_equal():
    rows = slice(2, 4), slice(2, 4)
    found = make_lesions((*rows, slice(3, 6)), (slice(2, 4), slice(6, 8), slice(4, 6)))
    assert make_halves().of(found) == ["left", "left"]
    assert make_halves().of(make_lesions((*rows, slice(4, 9)))) == ["right"]


def test_lesion_outside_all_zones_gets_the_nearest_zone():
    zones = Zones(np.where(make_halves().values == 1, 0, make_halves().values), GRID, NAMES)
    assert zones.of(make_lesions((slice(2, 3), slice(2, 3), slice(0, 1)))) == ["right"]
    assert make_halves().of(make_lesions((slice(0, 1), slice(2, 3), slice(8, 9)))) == ["right"]


def test_zones_on_another_grid_are_the_same():
    fine = Geometry.from_spacing((24, 20, 20), (0.5, 0.5, 0.5))
    turned = fine.affine.copy()
    turned[:, 2] *= -1
    turned[0, 3] += 9.5
    turned[3, 3] = 1
    mirrored = Zones(make_halves(fine).values[:, :, ::-1], Geometry(fine.shape, turned), NAMES)
    found = make_lesions(
        (slice(2, 4), slice(2, 4), slice(6, 8)), (slice(3, 4), slice(6, 8), slice(1, 3))
    )
    assert make_halves(fine).of(found) == mirrored.of(found) == ["right", "left"]


@pytest.mark.parametrize("names", [{}, {1: "left"}])
def test_zone_without_a_name_is_called_by_its_value(names):
    found = make_lesions((slice(2, 3), slice(2, 3), slice(8, 9)))
    assert Zones(make_halves().values, GRID, names).of(found) == ["2"]


def test_lesion_without_any_zone_has_an_empty_name():
    nothing = Zones(np.zeros(GRID.shape, np.uint8), GRID, NAMES)
    assert nothing.of(make_lesions((slice(2, 3), slice(2, 3), slice(8, 9)))) == [""]
    assert nothing.of(make_lesions()) == []
