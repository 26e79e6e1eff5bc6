"""Grids with a spacing of 1 mm."""

from lesionseg.core import Geometry


def unit_grid(*shape):
    """Return the grid of a shape with a spacing of 1 mm."""
    return Geometry.from_spacing(shape, (1.0,) * len(shape))
