import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.inference.stitch import restore_slabs, signed_permutation

SHAPE = (5, 6, 7)
FILE = Geometry.from_spacing(SHAPE, (3.0, 1.5, 0.5))


def restore(p: NDArray[np.float32], plan_geometry: Geometry, file: Geometry) -> NDArray[np.float32]:
    """One channel on the file's grid, from its slabs."""
    return np.concatenate(list(restore_slabs(torch.from_numpy(p), plan_geometry, file)))


ARRAY = np.random.default_rng(0).random(SHAPE).astype(np.float32)


def _turned(axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[NDArray[np.float32], Geometry]:
    """`ARRAY` as it lies on a turned grid of the same voxels, and that grid."""
    turned = ARRAY.transpose(axes)[tuple(slice(None, None, s) for s in signs)]
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for plan_axis, (file_axis, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[file_axis, plan_axis] = sign
        matrix[file_axis, 3] = 0 if sign > 0 else SHAPE[file_axis] - 1
    return turned.copy(), Geometry(turned.shape, FILE.affine @ matrix)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_turned_volumes_come_back_exactly(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    turned, plan_geometry = _turned(axes, signs)
    found = restore(turned, plan_geometry, FILE)
    assert found.dtype == np.float32
    assert np.array_equal(found, ARRAY)


def test_whole_voxel_shifts_leave_zeros_where_the_plan_does_not_reach() -> None:
    plan_geometry = Geometry((2, 2), np.array([[1, 0, 1], [0, 1, -1], [0, 0, 1.0]]))
    file_geometry = Geometry((3, 3), np.eye(3))
    found = restore(np.array([[1, 2], [3, 4]], np.float32), plan_geometry, file_geometry)
    # plan voxel (0, 0) is file voxel (1, -1)
    assert found.tolist() == [[0, 0, 0], [2, 0, 0], [4, 0, 0]]


def test_grids_that_do_not_meet_give_zeros() -> None:
    far = Geometry((2, 2), np.array([[1, 0, 50], [0, 1, 0], [0, 0, 1.0]]))
    assert not restore(np.ones((2, 2), np.float32), far, Geometry((3, 3), np.eye(3))).any()


def test_a_ramp_resampled_to_a_finer_grid_and_turned_stays_a_ramp() -> None:
    plan_geometry = Geometry.from_spacing((6, 8, 10), (2.0, 2.0, 2.0))
    file_geometry = Geometry(
        (19, 11, 15), np.array([[-1, 0, 0, 18.0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    )
    mm = plan_geometry.to_mm(np.argwhere(np.ones(plan_geometry.shape)))
    ramp = (mm @ np.array([1.0, 10.0, 100.0])).reshape(plan_geometry.shape)
    found = restore(ramp.astype(np.float32), plan_geometry, file_geometry)
    there = file_geometry.to_mm(np.argwhere(np.ones(file_geometry.shape)))
    expected = (there @ np.array([1.0, 10.0, 100.0])).reshape(file_geometry.shape)
    assert found.shape == file_geometry.shape
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_zooms_and_rotations_are_no_signed_permutation() -> None:
    assert signed_permutation(np.diag([0.5, 1, 1.0]), (4, 4)) is None
    angle = np.deg2rad(0.1)  # a fifth of a voxel at voxel 100
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    assert signed_permutation(np.vstack([turn, [0, 0, 1]]), (100, 100)) is None
    assert signed_permutation(np.array([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]]), (4, 4)) is None
