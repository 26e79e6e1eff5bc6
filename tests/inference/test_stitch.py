import errno
import itertools
import os

import numpy as np
import pytest
import torch

from lesionseg.core import Geometry
from lesionseg.errors import OutputError
from lesionseg.inference.stitch import (
    Stitcher,
    Store,
    gaussian_weight,
    restore_slabs,
    signed_permutation,
)


def stitch(shape, weight, pieces):
    """The stitched volume of pieces `(tile, slices)` and the first row of each part of it."""
    values, firsts = torch.full((pieces[0][0].shape[0], *shape), torch.nan), []

    def take(first, rows):
        assert torch.isnan(values[:, first : first + rows.shape[1]]).all()
        values[:, first : first + rows.shape[1]] = rows
        firsts.append(first)

    stitcher = Stitcher(shape, len(values), weight, take)
    for tile, place in pieces:
        stitcher.add(tile, place)
    stitcher.finish()
    return values, firsts


def test_equals_a_naive_loop_over_voxels():
    weight, starts = gaussian_weight((4, 4)), [(0, 0), (0, 2), (2, 0), (2, 2)]
    tiles = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    pairs = list(zip(starts, tiles, strict=True))
    pieces = [(tile, (slice(y, y + 4), slice(x, x + 4))) for (y, x), tile in pairs]
    found, firsts = stitch((6, 6), weight, pieces)
    assert len(firsts) > 1
    assert firsts == sorted(firsts)
    for v, w in itertools.product(range(6), repeat=2):
        total = weights = 0.0
        for (y, x), tile in pairs:
            if 0 <= v - y < 4 and 0 <= w - x < 4:
                total += weight[v - y, w - x] * tile[0, v - y, w - x]
                weights += weight[v - y, w - x]
        assert found[0, v, w].item() == pytest.approx(float(total / weights), abs=1e-6)


def test_voxels_that_no_tile_covers_are_zero():
    one = torch.ones(1, 2)
    pieces = [(one, (slice(1, 3),)), (one, (slice(5, 7),))]  # more than a tile further on
    assert stitch((7,), torch.ones(2), pieces)[0].tolist() == [[0, 1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("in_file", [False, True])
def test_half_the_memory_keeps_probabilities_and_their_order(tmp_path, in_file):
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
    assert not found[:, [0, 1, 5]].any()
    store.close()


def test_a_file_leaves_no_name_behind_and_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    assert not Store((1, 100, 100), folder=tmp_path).values.any()
    assert not list(tmp_path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError):
        Store((1, 100, 100), folder=tmp_path)


# --- back to the file's grid ---------------------------------------------------------------------

SHAPE = (5, 6, 7)
FILE = Geometry.from_spacing(SHAPE, (3.0, 1.5, 0.5))
ARRAY = np.random.default_rng(0).random(SHAPE).astype(np.float32)


def restore(p, plan_geometry, file):
    """One channel on the file's grid, from its slabs."""
    p = torch.from_numpy(np.asarray(p, np.float32))
    return np.concatenate(list(restore_slabs(p, plan_geometry, file)))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_turned_volumes_come_back_exactly(axes):
    for signs in itertools.product((1, -1), repeat=3):
        turned = ARRAY.transpose(axes)[tuple(slice(None, None, s) for s in signs)].copy()
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for plan_axis, (file_axis, sign) in enumerate(zip(axes, signs, strict=True)):
            matrix[file_axis, plan_axis] = sign
            matrix[file_axis, 3] = 0 if sign > 0 else SHAPE[file_axis] - 1
        found = restore(turned, Geometry(turned.shape, FILE.affine @ matrix), FILE)
        assert found.dtype == np.float32
        assert np.array_equal(found, ARRAY)


def test_whole_voxel_shifts_leave_zeros_where_the_plan_does_not_reach():
    file = Geometry((3, 3), np.eye(3))
    shifted = Geometry((2, 2), np.array([[1, 0, 1], [0, 1, -1], [0, 0, 1.0]]))
    # plan voxel (0, 0) is file voxel (1, -1)
    assert restore([[1, 2], [3, 4]], shifted, file).tolist() == [[0, 0, 0], [2, 0, 0], [4, 0, 0]]


def test_a_ramp_resampled_to_a_finer_grid_and_turned_stays_a_ramp():
    def ramp(geometry):
        mm = geometry.to_mm(np.argwhere(np.ones(geometry.shape)))
        return (mm @ np.array([1.0, 10.0, 100.0])).reshape(geometry.shape)

    plan_geometry = Geometry.from_spacing((6, 8, 10), (2.0, 2.0, 2.0))
    turned = np.array([[-1, 0, 0, 18.0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    file = Geometry((19, 11, 15), turned)
    found = restore(ramp(plan_geometry), plan_geometry, file)
    assert found.shape == file.shape
    np.testing.assert_allclose(found, ramp(file), atol=1e-2)


def test_a_zoom_a_slight_turn_and_half_a_voxel_are_no_signed_permutation():
    a = np.deg2rad(0.1)  # a fifth of a voxel at voxel 100
    turn = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    for matrix in (np.diag([0.5, 1, 1.0]), turn, [[1, 0, 0.5], [0, 1, 0], [0, 0, 1]]):
        assert signed_permutation(np.array(matrix), (100, 100)) is None
