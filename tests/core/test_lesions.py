"""Sizes, boxes, centres and volumes of lesions, by hand."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Zones
from lesionseg.core.lesions import (
    Lesions,
    box_centres_mm,
    box_diameters_mm,
    box_slices,
    centre_slices,
    clip_boxes,
    equivalent_diameter_mm,
)
from lesionseg.errors import ContentError

GRID = Geometry.from_spacing((4, 5, 6), (3, 2, 1))
FLAT = Geometry.from_spacing((4, 5), (1, 1))


def measure(geometry, voxels_of_rows, boxes=None, labels=None):
    """Measure rows of voxels, given as lists of array indices."""
    n = len(voxels_of_rows)
    rows = [np.array(voxels, int).reshape(-1, geometry.dims) for voxels in voxels_of_rows]
    index = [np.ravel_multi_index(tuple(row.T), geometry.shape) for row in rows]
    first = np.cumsum([0, *map(len, rows)])
    flat = np.concatenate(index) if n else np.zeros(0, int)
    ids = np.arange(1, n + 1) * 10
    return Lesions.measure(geometry, ids, labels or [1] * n, boxes, flat, first)


def test_diameter_is_that_of_a_ball_or_a_disc():
    assert equivalent_diameter_mm(4 / 3 * np.pi * 3**3, 3) == pytest.approx(6)
    assert equivalent_diameter_mm([np.pi * 5**2, 0], 2).tolist() == pytest.approx([10, 0])


def test_diameter_of_a_box_is_that_of_its_inscribed_ellipsoid():
    boxes = np.array([[0, 0, 0, 1, 2, 4], [2, 2, 2, 1, 1, 1]])
    # sides of 3, 4 and 4 mm; the second box is inverted
    assert box_diameters_mm(boxes, GRID).tolist() == pytest.approx([48 ** (1 / 3), 0])


def test_centre_of_a_box_is_between_its_outer_voxels():
    # voxels 1 to 2, 0 to 1 and 3: centres 1.5, 0.5 and 3, times the spacing, x first
    assert box_centres_mm(np.array([[1, 0, 3, 3, 2, 4]]), GRID).tolist() == [[3.0, 1.0, 4.5]]


def test_slices_of_boxes_are_cut_off_at_zero():
    assert box_slices((-3.0, 1.2, -1.0, 1.9), 2) == (slice(0, 0), slice(1, 2))
    assert centre_slices((-3.0, 1.2, 2.0, 3.6), 2) == (slice(0, 2), slice(1, 4))
    # no centre inside: the voxel at the middle of the box
    assert centre_slices((5.6, 1.0, 6.2, 3.0), 2) == (slice(5, 6), slice(1, 3))


def test_boxes_are_clipped_to_the_image():
    assert clip_boxes([[-1, 2, 9, 3.5]], (4, 5), "t").tolist() == [[0, 2, 4, 3.5]]
    assert clip_boxes([], (4, 5, 6), "t").shape == (0, 6)


@pytest.mark.parametrize("box", [[4, 0, 5, 2], [1, 2, 1, 3], [2, 0, 1, 3]])
def test_empty_box_or_box_outside_is_an_error_with_its_sides(box):
    with pytest.raises(ContentError, match=rf"t: .*y {box[0]} to {box[2]} of 0 to 4"):
        clip_boxes([box], (4, 5), "t")


def test_rows_with_voxels_are_measured_by_them():
    found = measure(GRID, [[(1, 2, 3), (1, 2, 5), (2, 2, 3), (2, 4, 3)], [(0, 0, 0)]])
    assert found.ids.tolist() == [10, 20]
    assert found.boxes.tolist() == [[1, 2, 3, 3, 5, 6], [0, 0, 0, 1, 1, 1]]
    # means of the indices are 1.5, 2.5 and 3.5, times the spacing, x first
    assert found.centres_mm.tolist() == [[3.5, 5.0, 4.5], [0, 0, 0]]
    assert found.diameters_mm[1] == pytest.approx(equivalent_diameter_mm(6, 3))
    assert found.n_voxels.tolist() == found.sizes_vox.tolist() == [4, 1]
    assert found.has_voxels.tolist() == [True, True]
    assert found.voxels_of(1).tolist() == [[0, 0, 0]]
    assert found.volume_ml(0) == pytest.approx(0.024)


def test_rows_without_voxels_keep_their_boxes_or_are_left_out():
    rows = [[], [(1, 1, 1)]]
    boxes = np.array([[0, 0, 0, 2, 3, 6], [0, 0, 0, 9, 9, 9]])
    found = measure(GRID, rows, boxes, labels=[1, 2])
    assert found.boxes.tolist() == [[0, 0, 0, 2, 3, 6], [1, 1, 1, 2, 2, 2]]
    assert found.centres_mm.tolist() == [[2.5, 2.0, 1.5], [1, 2, 3]]
    assert found.diameters_mm[0] == pytest.approx(6)
    # an ellipsoid of 6 mm has 113 mm³, and a voxel has 6
    assert found.sizes_vox.tolist() == [19, 1]
    assert found.volume_ml(0) is None
    assert found.has_voxels.tolist() == [False, True]
    left = measure(GRID, rows, labels=[1, 2])
    assert (left.ids.tolist(), left.labels.tolist(), len(left)) == ([20], [2], 1)


def test_area_of_a_picture_is_no_volume():
    assert measure(FLAT, [[(1, 1)]]).volume_ml(0) is None


def test_no_lesions_have_an_empty_table():
    for boxes in (None, np.zeros((0, 6))):
        assert len(measure(GRID, [], boxes)) == 0
        assert not measure(GRID, [], boxes).draw().any()


def test_small_boxes_are_drawn_over_large_ones_and_voxels_over_boxes():
    boxes = np.array([[0, 0, 2, 3], [0, 0, 4, 5], [3, 3, 4, 4]])
    found = measure(FLAT, [[], [], [(0, 0)]], boxes)
    assert found.draw().tolist() == [
        [30, 10, 10, 20, 20],
        [10, 10, 10, 20, 20],
        [20, 20, 20, 20, 20],
        [20, 20, 20, 20, 20],
    ]


def test_order_of_drawn_boxes_follows_their_size_and_not_their_place():
    boxes = np.array([[2, 3, 4, 5], [0, 0, 4, 5], [2, 2, 3, 4]])
    drawn = measure(FLAT, [[], [], []], boxes).draw()
    assert drawn.tolist()[2:] == [[20, 20, 30, 30, 10], [20, 20, 20, 10, 10]]


def test_zone_of_voxels_is_that_of_most_of_them_and_not_of_their_centre():
    values = np.ones(FLAT.shape, np.uint8)
    values[1, 1:3] = 2
    ring = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert Zones(values, FLAT, {}).of(measure(FLAT, [ring])) == ["1"]


def test_zone_of_a_box_is_that_of_its_centre():
    values = np.zeros(FLAT.shape, np.uint8)
    values[2:] = 1
    values[:2, :2] = 2
    zones = Zones(values, FLAT, {})
    boxes = np.array([[1, 1, 4, 4], [0, 0, 2, 1]])
    assert zones.of(measure(FLAT, [[], []], boxes)) == ["1", "2"]


def test_zone_at_the_end_of_its_grid_is_the_nearest_one_beyond_it():
    small = Geometry.from_spacing((2, 2), (1, 1))
    zones = Zones(np.array([[1, 0], [0, 2]]), small, {})
    found = measure(FLAT, [[(0, 2)], [(1, 2)], [(3, 3)]])
    # voxels 2 and 3 are outside the grid of the zones; the first is as far from 1 as from 2
    assert zones.of(found)[1:] == ["2", "2"]
