"""Grids of voxels in millimetres."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lesionseg.core import Geometry, Volume
from lesionseg.core.geometry import describe_sides
from lesionseg.errors import GeometryError

FLAT = Geometry.from_spacing((2, 2), (1, 1))


@pytest.fixture
def oblique():
    rotation = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.fliplr(np.diag([0.5, 1.0, 3.0]))
    affine[:3, 3] = (10, -20, 30)
    return Geometry((4, 5, 6), affine)


def test_spacing_and_voxel_size_of_a_rotated_grid_are_exact(oblique):
    assert oblique.spacing_mm == pytest.approx((3.0, 1.0, 0.5))
    assert oblique.voxel_size == pytest.approx(1.5)


def test_index_survives_a_round_trip_through_millimetres(oblique):
    index = np.array([[0, 0, 0], [3, 4, 5], [1.5, 2, 0.25]])
    assert np.allclose(oblique.to_index(oblique.to_mm(index)), index)


def test_row_and_column_are_y_and_x_in_two_dimensions():
    geometry = Geometry.from_spacing((10, 20), (0.5, 0.25))
    assert geometry.to_mm([[2, 4], [2, 0]]).tolist() == [[1.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(("shift_mm", "is_match"), [(1e-4, True), (0.1, False)])
def test_grids_match_within_a_micrometre_but_not_within_a_tenth(oblique, shift_mm, is_match):
    other = np.array(oblique.affine)
    other[0, 3] += shift_mm
    assert oblique.matches(Geometry(oblique.shape, other)) == is_match


def test_grids_of_different_shapes_have_an_infinite_distance(oblique):
    assert oblique.distance_mm(Geometry((4, 5, 7), oblique.affine)) == float("inf")


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan)])
def test_invalid_affine_is_an_error(affine):
    with pytest.raises(GeometryError, match="affine"):
        Geometry((2, 2, 2), affine)


def test_array_of_another_shape_than_its_grid_is_an_error(oblique):
    with pytest.raises(GeometryError):
        Volume(np.zeros((1, 4, 5, 7)), oblique)


def test_canonical_order_of_an_oblique_volume_follows_the_nearest_axes():
    s = np.sin(np.deg2rad(20))
    c = np.cos(np.deg2rad(20))
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [-2 * c, 3 * s, 0], [2 * s, 3 * c, 0]]  # A-P, S-I tilted, R-L
    assert Geometry((4, 5, 6), affine).canonical_order == (1, 0, 2)


@pytest.mark.parametrize(
    ("shape", "shift_mm", "expected"),
    [((10, 10, 10), 0, 1), ((10, 10, 10), 4, 0.6), ((4, 4, 4), 2, 1), ((4, 4, 4), 99, 0)],
)
def test_overlap_is_the_share_of_the_smaller_grid(shape, shift_mm, expected):
    large = Geometry.from_spacing((10, 10, 10), (1, 1, 1))
    other = Geometry(shape, large.affine + np.eye(4, k=3) * shift_mm)
    assert large.overlap(other) == pytest.approx(expected, abs=0.05)
    assert other.overlap(large) == pytest.approx(expected, abs=0.05)


def test_distance_is_that_of_the_farthest_corner():
    here = Geometry.from_spacing((3, 4, 5), (1, 1, 1))
    wider = Geometry.from_spacing((3, 4, 5), (1, 1, 2))
    assert here.distance_mm(wider) == 4  # 4 steps of 1 mm more along x
    moved = np.array(wider.affine)
    moved[0, 3] = -4
    assert here.distance_mm(Geometry(here.shape, moved)) == 4
    assert here.describe_difference(wider) == "corners are up to 4 mm apart"
    assert here.describe_difference(Geometry.from_spacing((3, 4), (1, 1))) == "the shapes differ"


def test_overlap_ends_half_a_voxel_beyond_the_outer_centres():
    large = Geometry.from_spacing((10, 10), (1, 1))
    for sign in (1, -1):
        beyond = large.affine + sign * 10 * np.eye(3, k=2)
        assert large.overlap(Geometry((10, 10), beyond)) == 0
    inner = Geometry((1, 10), large.affine)
    assert large.overlap(inner) == 1


def test_cropped_grid_keeps_the_positions_of_its_voxels(oblique):
    part = oblique.crop((slice(1, 3), slice(2, 5), slice(0, 4)))
    assert part.shape == (2, 3, 4)
    assert np.allclose(part.to_mm([[0, 0, 0], [1, 2, 3]]), oblique.to_mm([[1, 2, 0], [2, 4, 3]]))


def test_sizes_are_in_pixels_without_a_pixel_size():
    assert Geometry.from_spacing((2, 2), (1, 1)).size_unit == "px"
    assert Geometry.from_spacing((2, 2), (1, 0.5)).size_unit == "mm"
    assert Geometry.from_spacing((2, 2, 2), (1, 1, 1)).size_unit == "mm"
    assert Geometry.from_spacing((2, 2), (0.5, 0.5), "mm at the detector").size_unit != "px"


@pytest.mark.parametrize(
    ("sides", "text"),
    [((1.5, 2), "1.5 × 2"), ((999.96, 1000, 1000.4), "1000 × 1000 × 1000"), ((123456,), "123456")],
)
def test_sides_have_four_digits_or_more(sides, text):
    assert describe_sides(sides) == text


def test_parallel_axes_are_an_error_and_small_voxels_are_not():
    for between in (0, 1e-10):
        parallel = np.eye(3)
        parallel[:2, 1] = (1, between)
        with pytest.raises(GeometryError, match="inverted"):
            Geometry((2, 2), parallel)
    one_tiny = np.diag([1e-4, 1.0, 1.0])  # small voxels are not flat
    assert Geometry((2, 2), one_tiny).spacing_mm == pytest.approx((1e-4, 1))


def test_missing_channels_are_not_present():
    volume = Volume(np.arange(3)[:, None, None] * np.ones((3, 2, 2)), FLAT, missing=(1,))
    assert [channel[0, 0] for channel in volume.present_channels] == [0, 2]
    assert volume.brightness()[0, 0] == pytest.approx(0.587 + 2 * 0.114)


def test_moved_grid_has_moved_voxels_and_contains_its_centre(oblique):
    way_mm = np.array([5.0, -3.0, 2.0])
    shift = np.eye(4)
    shift[:3, 3] = way_mm
    moved = oblique.move(shift)
    np.testing.assert_allclose(moved.to_mm([[1, 2, 3]]), oblique.to_mm([[1, 2, 3]]) + way_mm)
    np.testing.assert_allclose(moved.centre_mm, oblique.centre_mm + way_mm)
    assert moved.unit == oblique.unit
    assert oblique.contains(oblique.centre_mm)


def test_grid_contains_points_up_to_half_a_voxel_beyond_its_outer_centres():
    grid = Geometry.from_spacing((4, 5), (2, 1))
    points = grid.to_mm([[-0.5, 0], [3.5, 4.5], [-0.6, 0], [0, 4.6]])
    assert grid.contains(points).tolist() == [True, True, False, False]
