"""Filled polygons against a plain loop over pixels and edges."""

import numpy as np

from lesionseg.io.dicom.pixels import fill_polygon


def is_inside(corners: np.ndarray, y: float, x: float) -> bool:
    """The winding number by angles: another rule than crossings, the same inside."""
    around = np.append(corners, corners[:1], axis=0) - (y, x)
    angles = np.unwrap(np.arctan2(around[:, 0], around[:, 1]))
    return abs(angles[-1] - angles[0]) > 1


def test_a_polygon_is_what_a_plain_loop_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        turns = np.sort(rng.uniform(0, 2 * np.pi, 9))
        reach = rng.uniform(2, 9, 9)
        corners = np.stack([10 + reach * np.sin(turns), 12 + reach * np.cos(turns)], axis=1)
        filled = fill_polygon(corners, (20, 24))
        expected = [[is_inside(corners, y, x) for x in range(24)] for y in range(20)]
        np.testing.assert_array_equal(filled, expected)


def test_a_polygon_between_pixels_keeps_the_nearest() -> None:
    corners = np.array([[2.2, 3.2], [2.2, 3.4], [2.4, 3.3]])
    assert np.argwhere(fill_polygon(corners, (5, 5))).tolist() == [[2, 3]]


def test_nothing_and_outside_give_nothing() -> None:
    assert not fill_polygon(np.zeros((0, 2)), (3, 3)).any()
    assert not fill_polygon(np.array([[-9.0, -9], [-9, -8], [-8, -8]]), (3, 3)).any()
