"""In which zone a lesion lies: most voxels, else the nearest, on whatever grid."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Zones
from lesionseg.ops.components import measure_instances

GRID = Geometry.from_spacing((6, 10, 10), (2, 1, 1))
NAMES = {1: "left", 2: "right"}


def lesions(*blocks: tuple[slice, ...]):  # type: ignore[no-untyped-def]
    instances = np.zeros(GRID.shape, np.int32)
    for number, block in enumerate(blocks, 1):
        instances[block] = number
    n = len(blocks)
    return measure_instances(GRID, np.arange(1, n + 1), [1] * n, None, instances)


def halves(geometry: Geometry = GRID) -> Zones:
    """The left half is 1, the right 2, and the first slice none."""
    values = np.zeros(geometry.shape, np.uint8)
    middle = geometry.shape[2] // 2
    values[1:, :, :middle], values[1:, :, middle:] = 1, 2
    return Zones(values, geometry, NAMES)


def test_most_voxels_decide_of_equals_the_smaller_value() -> None:
    rows = slice(2, 4), slice(2, 4)
    found = lesions((*rows, slice(3, 6)), (slice(2, 4), slice(6, 8), slice(4, 6)))
    assert halves().of(found) == ["left", "left"]
    assert halves().of(lesions((*rows, slice(4, 9)))) == ["right"]


def test_one_outside_lies_in_the_nearest() -> None:
    zones = Zones(np.where(halves().values == 1, 0, halves().values), GRID, NAMES)
    assert zones.of(lesions((slice(2, 3), slice(2, 3), slice(0, 1)))) == ["right"]
    assert halves().of(lesions((slice(0, 1), slice(2, 3), slice(8, 9)))) == ["right"]


def test_another_grid_gives_the_same_zones() -> None:
    fine = Geometry.from_spacing((24, 20, 20), (0.5, 0.5, 0.5))
    turned = fine.affine.copy()
    turned[:, 2], turned[0, 3] = -turned[:, 2], turned[0, 3] + 9.5
    turned[3, 3] = 1
    mirrored = Zones(halves(fine).values[:, :, ::-1], Geometry(fine.shape, turned), NAMES)
    found = lesions(
        (slice(2, 4), slice(2, 4), slice(6, 8)), (slice(3, 4), slice(6, 8), slice(1, 3))
    )
    assert halves(fine).of(found) == mirrored.of(found) == ["right", "left"]


@pytest.mark.parametrize("names", [{}, {1: "left"}])
def test_an_unnamed_zone_is_called_by_its_value_and_none_is_empty(names: dict[int, str]) -> None:
    found = lesions((slice(2, 3), slice(2, 3), slice(8, 9)))
    assert Zones(halves().values, GRID, names).of(found) == ["2"]
    assert Zones(np.zeros(GRID.shape, np.uint8), GRID, names).of(found) == [""]
    assert halves().of(lesions()) == []
