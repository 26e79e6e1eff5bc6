import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError


def _oblique() -> Geometry:
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.fliplr(np.diag([0.5, 1.0, 3.0]))
    affine[:3, 3] = (10, -20, 30)
    return Geometry((4, 5, 6), affine)


def test_spacing_and_voxel_size_survive_a_turn() -> None:
    geometry = _oblique()
    assert geometry.spacing_mm == pytest.approx((3.0, 1.0, 0.5))
    assert geometry.voxel_size == pytest.approx(1.5)


def test_index_to_mm_and_back() -> None:
    geometry = _oblique()
    index = np.array([[0, 0, 0], [3, 4, 5], [1.5, 2, 0.25]])
    assert np.allclose(geometry.to_index(geometry.to_mm(index)), index)


def test_two_dims_map_row_and_column_to_y_and_x() -> None:
    geometry = Geometry.from_spacing((10, 20), (0.5, 0.25))
    assert geometry.to_mm([[2, 4]]).tolist() == [[1.0, 1.0]]
    assert geometry.to_mm([[2, 0]]).tolist() == [[0.0, 1.0]]


def test_matches_within_a_micrometre_but_not_a_tenth() -> None:
    geometry = _oblique()
    near, far = np.array(geometry.affine), np.array(geometry.affine)
    near[0, 3] += 1e-4
    far[0, 3] += 0.1
    assert geometry.matches(Geometry(geometry.shape, near))
    assert not geometry.matches(Geometry(geometry.shape, far))
    assert geometry.distance_mm(Geometry((4, 5, 7), geometry.affine)) == float("inf")


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan)])
def test_refuses_an_affine_that_cannot_be_used(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError, match="affine"):
        Geometry((2, 2, 2), affine)


def test_volume_refuses_an_array_of_another_shape() -> None:
    with pytest.raises(GeometryError, match="does not fit"):
        Volume(np.zeros((1, 4, 5, 7)), _oblique())
