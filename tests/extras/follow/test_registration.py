"""Rigid registration of two visits."""

import numpy as np
import pytest

from benchmarks.phantoms.visits import VisitSettings, simulate_visits
from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError
from lesionseg.extras.follow.registration import register_rigid


def make_movement(degrees, shift_mm):
    """Make a rotation around the third axis with a shift, in RAS millimetres."""
    c = np.cos(np.deg2rad(degrees))
    s = np.sin(np.deg2rad(degrees))
    matrix = np.eye(4)
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[:3, 3] = shift_mm
    return matrix


def test_known_movement_is_found_and_repeated_registration_is_equal():
    """Rotate the earlier scan's header by 6 degrees and shift it by 9 mm. The noise differs."""
    settings = VisitSettings(shape=(48, 72, 64), spacing_mm=(3, 2, 2))
    scans, _ = simulate_visits(np.random.default_rng(0), settings)
    away = make_movement(6, (7, -4, 5))
    geometry = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    later = Volume(scans["after"][None], geometry)
    moved = Volume(scans["before"][None], Geometry(geometry.shape, away @ geometry.affine))
    found = register_rigid(later, moved)
    again = register_rigid(later, moved)
    ends = [(0.15 * n, 0.85 * n) for n in geometry.shape]
    corners = geometry.to_mm(np.array(np.meshgrid(*ends)).reshape(3, -1).T)
    back = np.c_[corners, np.ones(len(corners))] @ (found.matrix @ away).T
    assert np.linalg.norm(back[:, :3] - corners, axis=1).max() < 1.0  # half a voxel
    assert found.foreground_dice > 0.95
    assert found.mutual_information > 0.3
    np.testing.assert_array_equal(found.matrix, again.matrix)


def test_two_axes_are_an_error():
    flat = Volume(np.zeros((1, 8, 8), np.float32), Geometry.from_spacing((8, 8), (1, 1)))
    with pytest.raises(GeometryError, match="three axes"):
        register_rigid(flat, flat)
