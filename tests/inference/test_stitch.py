import errno
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core import Geometry
from lesionseg.data.tiling import TileGrid
from lesionseg.errors import OutputError
from lesionseg.inference.stitch import (
    Stitcher,
    Store,
    gaussian_weight,
    restore_slabs,
    signed_permutation,
)


class Whole:
    """Takes rows and keeps them; NaN where none came."""

    def __init__(self, n_channels: int, *shape: int) -> None:
        self.values = torch.full((n_channels, *shape), torch.nan)
        self.firsts: list[int] = []

    def __call__(self, first: int, rows: Tensor) -> None:
        assert torch.isnan(self.values[:, first : first + rows.shape[1]]).all()
        self.values[:, first : first + rows.shape[1]] = rows
        self.firsts.append(first)


@pytest.mark.parametrize("shape", [(33, 20, 17), (40, 25)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
def test_tiles_of_a_volume_put_together_are_the_volume(
    shape: tuple[int, ...], overlap: float
) -> None:
    volume = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    grid = TileGrid(shape, (16,) * len(shape), overlap)
    whole = Whole(2, *shape)
    stitcher = Stitcher(shape, 2, gaussian_weight(grid.tile_shape), whole)
    for i in range(len(grid)):
        stitcher.add(volume[(slice(None), *grid.slices(i))], grid.slices(i))
    stitcher.finish()
    torch.testing.assert_close(whole.values, volume, atol=1e-6, rtol=1e-6)
    assert whole.firsts == sorted(whole.firsts)
    assert len(whole.firsts) > 1


def test_equals_a_naive_loop_over_voxels() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = gaussian_weight((4, 4))
    starts = [(0, 0), (0, 2), (2, 0), (2, 2)]
    tiles = torch.rand((4, 1, 4, 4), generator=generator)
    whole = Whole(1, 6, 6)
    stitcher = Stitcher((6, 6), 1, weight, whole)
    for (y, x), tile in zip(starts, tiles, strict=True):
        stitcher.add(tile, (slice(y, y + 4), slice(x, x + 4)))
    stitcher.finish()
    for v in range(6):
        for w in range(6):
            inside = [
                (float(weight[v - y, w - x]), float(tile[0, v - y, w - x]))
                for (y, x), tile in zip(starts, tiles, strict=True)
                if 0 <= v - y < 4 and 0 <= w - x < 4
            ]
            expected = sum(a * b for a, b in inside) / sum(a for a, _ in inside)
            assert float(whole.values[0, v, w]) == pytest.approx(expected, abs=1e-6)


def test_voxels_that_no_tile_covers_are_zero() -> None:
    whole = Whole(1, 7)
    stitcher = Stitcher((7,), 1, torch.ones(2), whole)
    stitcher.add(torch.ones(1, 2), (slice(1, 3),))
    stitcher.add(torch.ones(1, 2), (slice(5, 7),))  # more than a tile further on
    stitcher.finish()
    assert whole.values.tolist() == [[0, 1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("in_file", [False, True])
def test_half_the_memory_keeps_probabilities_and_their_order(tmp_path: Path, in_file: bool) -> None:
    store = Store((2, 6, 5), folder=tmp_path / "new" if in_file else None)
    # as near to 1 as to 0, 0 and 1 themselves
    tail = torch.logspace(-7, -0.31, 14)
    p = torch.cat([torch.zeros(1), tail, (1 - tail).flip(0), torch.ones(1)]).reshape(2, 3, 5)
    store.write((slice(2, 5), slice(0, 5)), p)
    store.release()
    assert store.values.dtype == torch.float16
    found = store.decode(store.values)
    torch.testing.assert_close(found[:, 2:5], p, atol=6e-8, rtol=1e-3)
    torch.testing.assert_close(1 - found[:, 2:5], 1 - p, atol=6e-8, rtol=1e-3)
    assert (found[:, 2:5].reshape(-1).diff() >= 0).all()
    assert not found[:, :2].any()
    assert not found[:, 5:].any()
    store.close()


def test_a_file_has_no_name_that_could_be_left_behind(tmp_path: Path) -> None:
    store = Store((1, 100, 100), folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert not store.values.any()


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError):
        Store((1, 100, 100), folder=tmp_path)


# --- back to the file's grid ---------------------------------------------------------------------

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


@pytest.mark.parametrize("shape", [(16,), (8, 13), (32, 64, 64)])
def test_the_centre_weighs_one_and_nothing_weighs_nothing(shape):
    weight = gaussian_weight(shape)
    assert weight.shape == shape
    assert weight.dtype == torch.float32
    assert weight.max() == 1
    assert weight.min() >= 0.001 * 0.999
