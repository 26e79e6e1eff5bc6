import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lesionseg.data.tiling import TileGrid
from lesionseg.errors import OutputError
from lesionseg.inference.stitch import Stitcher, Store
from lesionseg.ops.windows import gaussian_weight


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
