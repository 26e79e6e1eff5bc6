"""Grids of voxels in millimetres."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError


@pytest.fixture
def oblique():
    a = np.deg2rad(20)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
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


def test_grids_match_within_a_micrometre_but_not_within_a_tenth(oblique):
    near = np.array(oblique.affine)
    near[0, 3] += 1e-4
    far = np.array(oblique.affine)
    far[0, 3] += 0.1
    assert oblique.matches(Geometry(oblique.shape, near))
    assert not oblique.matches(Geometry(oblique.shape, far))


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
