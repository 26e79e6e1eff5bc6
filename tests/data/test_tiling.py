import numpy as np
import pytest

from lesionseg.data.tiling import TileGrid, clip_start, read_tile
from lesionseg.errors import ConfigError


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [((40, 33, 50), (16, 16, 16), 0.5), ((100,), (30,), 0.0), ((9, 30), (12, 8), 0.25)],
)
def test_tiles_cover_every_voxel_overlap_enough_and_give_the_volume_back(rng, shape, tile, overlap):
    grid, volume = TileGrid(shape, tile, overlap), rng.normal(size=shape)
    padded = np.pad(volume, grid.pad)
    total, seen = np.zeros_like(padded), np.zeros(grid.padded_shape, int)
    for i in range(len(grid)):
        where = grid.slices(i)
        assert seen[where].shape == tile
        total[where] += padded[where]
        seen[where] += 1
    np.testing.assert_allclose((total / seen)[grid.inside], volume)
    for axis, length in enumerate(tile):
        starts = sorted({start[axis] for start in grid.starts})
        assert max(np.diff(starts), default=0) <= np.ceil(length * (1 - overlap))


def test_an_axis_shorter_than_the_tile_is_padded_on_both_sides():
    grid = TileGrid((5, 40), (8, 16))
    assert grid.pad == ((1, 2), (0, 0))
    assert grid.padded_shape == (8, 40)
    assert grid.inside == (slice(1, 6), slice(0, 40))
    assert {start[0] for start in grid.starts} == {0}
    assert len(TileGrid((3, 4, 5), (8, 8, 8))) == 1
    assert clip_start((3, 1), (5, 9), (8, 8)) == (-grid.pad[0][0], 1)
    assert clip_start((-4, 7, 100), (10, 10, 10), (4, 4, 4)) == (0, 6, 6)


def test_a_wrong_overlap_or_number_of_axes_is_refused():
    with pytest.raises(ConfigError, match="overlap"):
        TileGrid((8, 8), (4, 4), 1.0)
    with pytest.raises(ConfigError, match="does not fit a volume"):
        TileGrid((8, 8), (4, 4, 4))


@pytest.mark.parametrize("start", [(3, 5), (-2, 4), (6, -3), (-1, -1), (9, 9), (20, 20)])
def test_a_tile_is_the_zero_padded_slice(rng, start):
    array = rng.integers(1, 99, size=(2, 10, 11)).astype(np.int32)
    tile = read_tile(array, start, (4, 5))
    padded = np.pad(array, [(0, 0), (30, 30), (30, 30)])
    y, x = start[0] + 30, start[1] + 30
    np.testing.assert_array_equal(tile, padded[:, y : y + 4, x : x + 5])
    assert not np.shares_memory(tile, array)
