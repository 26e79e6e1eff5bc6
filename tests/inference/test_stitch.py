"""Stitching of tiles into a volume, and its storage in half precision."""

import errno
import itertools
import os

import pytest
import torch

from lesionseg.errors import OutputError
from lesionseg.inference.stitch import Stitcher, Store, gaussian_weight


def stitch(shape, weight, pieces):
    """Stitch pieces `(tile, slices)`. Return the volume and the first row of each part of it."""
    values = torch.full((pieces[0][0].shape[0], *shape), torch.nan)
    firsts = []

    def take(first, rows):
        assert torch.isnan(values[:, first : first + rows.shape[1]]).all()
        values[:, first : first + rows.shape[1]] = rows
        firsts.append(first)

    stitcher = Stitcher(shape, len(values), weight, take)
    for tile, place in pieces:
        stitcher.add(tile, place)
    stitcher.finish()
    return values, firsts


def test_stitched_volume_equals_a_naive_loop_over_voxels():
    weight = gaussian_weight((4, 4))
    starts = [(0, 0), (0, 2), (2, 0), (2, 2)]
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
    pieces = [(one, (slice(1, 3),)), (one, (slice(5, 7),))]  # with a gap between them
    assert stitch((7,), torch.ones(2), pieces)[0].tolist() == [[0, 1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("in_file", [False, True])
def test_half_precision_keeps_probabilities_and_their_order(tmp_path, in_file):
    store = Store((2, 6, 5), folder=tmp_path / "new" if in_file else None)
    # probabilities close to 0 and close to 1, with 0 and 1 themselves
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


def test_file_of_a_store_has_no_name_in_the_folder(tmp_path):
    assert not Store((1, 100, 100), folder=tmp_path).values.any()
    assert not list(tmp_path.iterdir())


def test_full_disk_is_an_error_before_writing(tmp_path, monkeypatch):
    def raise_full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", raise_full_disk, raising=False)
    with pytest.raises(OutputError):
        Store((1, 100, 100), folder=tmp_path)
