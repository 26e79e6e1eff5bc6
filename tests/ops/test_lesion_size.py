import numpy as np
import pytest

from lesionseg.ops import equivalent_diameter_mm


@pytest.mark.parametrize("dims", [2, 3])
def test_diameter_of_a_drawn_ball(dims):
    axes = np.ogrid[tuple(slice(-12, 13) for _ in range(dims))]
    n_voxels = (sum(a**2 for a in axes) <= 100).sum()
    assert float(equivalent_diameter_mm(n_voxels, dims)) == pytest.approx(20, rel=0.02)


def test_arrays_and_zero():
    found = equivalent_diameter_mm([0.0, np.pi / 6], 3)
    np.testing.assert_allclose(found, [0.0, 1.0])
