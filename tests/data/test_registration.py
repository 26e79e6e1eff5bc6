"""Rigid registration: a known movement is found again, the same each time."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.data.registration import register_rigid
from lesionseg.errors import GeometryError
from lesionseg.phantoms import VisitSettings, simulate_visits


def movement(degrees: float, shift_mm: tuple[float, float, float]) -> np.ndarray:
    """A turn around the third axis and a shift, in RAS millimetres."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(4)
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[:3, 3] = shift_mm
    return matrix


def test_a_known_movement_is_found_again_each_time_alike() -> None:
    """The earlier scan's header is turned by 6 degrees and moved by 9 mm; noise differs."""
    settings = VisitSettings(shape=(48, 72, 64), spacing_mm=(3, 2, 2))
    scans, _ = simulate_visits(np.random.default_rng(0), settings)
    away = movement(6, (7, -4, 5))
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    later = Volume(scans["after"][None], geometry)
    moved = Volume(scans["before"][None], Geometry(geometry.shape, away @ geometry.affine))
    found, again = (register_rigid(later, moved) for _ in range(2))
    corners = geometry.to_mm(
        np.array(np.meshgrid(*[(0.15 * n, 0.85 * n) for n in geometry.shape])).reshape(3, -1).T
    )
    back = np.c_[corners, np.ones(len(corners))] @ (found.matrix @ away).T
    assert np.linalg.norm(back[:, :3] - corners, axis=1).max() < 1.0  # half a voxel
    assert found.foreground_dice > 0.95
    assert found.mutual_information > 0.3
    np.testing.assert_array_equal(found.matrix, again.matrix)


def test_two_axes_are_refused() -> None:
    flat = Volume(np.zeros((1, 8, 8), np.float32), Geometry.from_spacing((8, 8), (1, 1)))
    with pytest.raises(GeometryError, match="three axes"):
        register_rigid(flat, flat)
