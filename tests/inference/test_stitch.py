"""Stitching of tiles into a volume, and its storage in half precision."""

import errno
import os
from unittest.mock import Mock

import numpy as np
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


def test_stitched_volume_equals_sums_of_whole_arrays():
    weight = gaussian_weight((4, 4))
    starts = [(0, 0), (0, 2), (2, 0), (2, 2)]
    tiles = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    pieces = []
    total = torch.zeros(6, 6)
    weights = torch.zeros(6, 6)
    for (y, x), tile in zip(starts, tiles, strict=True):
        place = np.s_[y : y + 4, x : x + 4]
        pieces.append((tile, place))
        total[place] += weight * tile[0]
        weights[place] += weight
    found, firsts = stitch((6, 6), weight, pieces)
    assert len(firsts) > 1
    assert firsts == sorted(firsts)
    torch.testing.assert_close(found[0], total / weights)


def test_voxels_that_no_tile_covers_are_zero():
    one = torch.ones(1, 2)
    pieces = [(one, (slice(1, 3),)), (one, (slice(5, 7),))]  # with a gap between them
    assert stitch((7,), torch.ones(2), pieces)[0].tolist() == [[0, 1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("in_file", [False, True])
def test_half_precision_keeps_probabilities_and_their_order(tmp_path, in_file):
    store = Store((2, 6, 5), folder=tmp_path / "new" if in_file else None)
    # probabilities close to 0 and close to 1, with 0 and 1 themselves
    tail = torch.cat([torch.zeros(1), torch.logspace(-7, -0.31, 14)])
    p = torch.cat([tail, (1 - tail).flip(0)]).reshape(2, 3, 5)
    store.write((slice(2, 5), slice(0, 5)), p)
    store.release()
    assert store.values.dtype == torch.float16
    found = store.decode(store.values)
    kept = found[:, 2:5]
    torch.testing.assert_close(kept, p, atol=6e-8, rtol=1e-3)
    torch.testing.assert_close(1 - kept, 1 - p, atol=6e-8, rtol=1e-3)
    assert (kept.flatten().diff() >= 0).all()
    assert not found[:, [0, 1, 5]].any()


def test_file_of_a_store_has_no_name_and_needs_space_on_the_disk(tmp_path, monkeypatch):
    assert not Store((1, 100, 100), folder=tmp_path).values.any()
    assert not list(tmp_path.iterdir())
    full_disk = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr(os, "posix_fallocate", full_disk, raising=False)
    with pytest.raises(OutputError):
        Store((1, 100, 100), folder=tmp_path)
