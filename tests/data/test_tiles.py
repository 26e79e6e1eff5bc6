"""Tiles: their content, missing channels, and the grid of tiles over a volume."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.config import AugmentConfig, SamplingConfig
from lesionseg.core import Geometry, Reference, Volume
from lesionseg.data.cache import read_cached_case, write_cached_case
from lesionseg.data.preprocess import PreparedCase
from lesionseg.data.tiles import TileDataset
from lesionseg.data.tiling import TileGrid, clip_start, read_tile
from lesionseg.errors import ConfigError

TILE = (8, 16, 12)


@pytest.fixture
def cases(tmp_path, rng):
    """Write two small cases. Case b is smaller than the tile along x and has an ignored corner."""
    cases = []
    for name, shape in (("a", (20, 24, 28)), ("b", (9, 20, 7))):
        geometry = Geometry.from_spacing(shape, (1, 1, 1))
        instances = np.zeros(shape, np.int32)
        instances[2:4, 3:6, 4:6] = 1
        ignore = np.zeros(shape, bool)
        ignore[:2, :2, :2] = True
        image = Volume(rng.normal(size=(2, *shape)).astype(np.float32), geometry)
        reference = Reference(
            geometry,
            instances.astype(np.uint8),
            instances,
            (1,),
            ignore=ignore if name == "b" else None,
        )
        (tmp_path / name).mkdir()
        write_cached_case(tmp_path / name, PreparedCase(name, name, image, reference), "hash")
        cases.append(read_cached_case(tmp_path / name))
    return cases


@pytest.fixture
def make_tiles(cases, plan):
    """Make a dataset of nine tiles per epoch with two channels. A case may lack a channel."""

    def make(augmentation=None, share=0.0, cases=cases, may_lack=True):
        changed = plan.with_(tile_shape=TILE, channel_names=("FLAIR", "T1"), may_lack=may_lack)
        return TileDataset(
            cases,
            changed,
            SamplingConfig.of(),
            augmentation,
            n_tiles=9,
            seed=3,
            channel_dropout=share,
        )

    return make


def padded_tile(array, start, shape):
    """Return a tile `[c, *spatial]` of an array that continues with zeros."""
    padded = np.pad(np.asarray(array), [(0, 0), *[(30, 30)] * len(shape)])
    return padded[:, *(slice(s + 30, s + 30 + n) for s, n in zip(start, shape, strict=True))]


def test_item_is_the_tile_that_the_sampler_chose(cases, make_tiles):
    dataset = make_tiles()
    for i in range(20):
        choice = dataset.sampler.choose(*divmod(i, 9))
        case = cases[choice.case]
        valid = np.ones(case.shape, bool) if case.valid is None else case.valid
        expected = {
            "image": case.image,
            "label": case.labels[None],
            "instances": case.instances[None],
            "valid": valid[None],
        }
        item = dataset[i]
        types = {"image": "float32", "label": "uint8", "instances": "int32", "valid": "bool"}
        for key, array in expected.items():
            assert item[key].dtype == getattr(torch, types[key])
            np.testing.assert_array_equal(item[key], padded_tile(array, choice.start, TILE))


@pytest.mark.parametrize("augmentation", [None, AugmentConfig.of()])
def test_channel_dropout_sets_a_channel_of_some_tiles_to_zero(make_tiles, augmentation):
    whole = make_tiles(augmentation)
    dropped = make_tiles(augmentation, 0.5)
    missing = [dropped.raw(i).change.missing for i in range(200)]
    assert {*missing} == {(), (0,), (1,)}
    assert 70 < missing.count(()) < 130
    assert min(missing.count((0,)), missing.count((1,))) > 30
    again = make_tiles(augmentation, 0.5)
    for i in range(12, 24):
        expected = dict(whole[i])
        expected["image"] = expected["image"].clone()
        expected["image"][list(missing[i])] = 0
        item = again[i]
        assert all(torch.equal(item[key], tensor) for key, tensor in expected.items())


def test_channel_dropout_drops_no_channel_of_a_case_that_lacks_one(cases, make_tiles):
    dataset = make_tiles(share=0.9, cases=[replace(case, missing=(1,)) for case in cases])
    assert {dataset.raw(i).change.missing for i in range(20)} == {(1,)}


def test_channel_dropout_is_an_error_if_the_plan_requires_all_channels(make_tiles):
    with pytest.raises(ConfigError, match="requires all channels"):
        make_tiles(share=0.3, may_lack=False)


GRIDS = [((40, 33, 50), (16, 16, 16), 0.5), ((100,), (30,), 0.0), ((9, 30), (12, 8), 0.25)]


@pytest.mark.parametrize(("shape", "tile", "overlap"), GRIDS)
def test_mean_over_all_tiles_is_the_volume(rng, shape, tile, overlap):
    grid = TileGrid(shape, tile, overlap)
    volume = rng.normal(size=shape)
    padded = np.pad(volume, grid.pad)
    total = np.zeros_like(padded)
    n_tiles = np.zeros(grid.padded_shape, int)
    for i in range(len(grid)):
        place = grid.slices(i)
        assert n_tiles[place].shape == tile
        total[place] += padded[place]
        n_tiles[place] += 1
    np.testing.assert_allclose((total / n_tiles)[grid.inside], volume)


@pytest.mark.parametrize(("shape", "tile", "overlap"), GRIDS)
def test_tiles_have_at_least_the_requested_overlap(shape, tile, overlap):
    grid = TileGrid(shape, tile, overlap)
    for axis, length in enumerate(tile):
        starts = sorted({start[axis] for start in grid.starts})
        assert max(np.diff(starts), default=0) <= np.ceil(length * (1 - overlap))


def test_axis_shorter_than_the_tile_is_padded_on_both_sides():
    grid = TileGrid((5, 40), (8, 16))
    assert (grid.pad, grid.padded_shape) == (((1, 2), (0, 0)), (8, 40))
    assert grid.inside == (slice(1, 6), slice(0, 40))
    assert {start[0] for start in grid.starts} == {0}
    assert len(TileGrid((3, 4, 5), (8, 8, 8))) == 1


@pytest.mark.parametrize(
    ("start", "shape", "tile", "expected"),
    [
        ((3, 1), (5, 9), (8, 8), (-1, 1)),
        ((-4, 7, 100), (10, 10, 10), (4, 4, 4), (0, 6, 6)),
    ],
)
def test_start_of_a_tile_is_clipped_to_the_volume(start, shape, tile, expected):
    assert clip_start(start, shape, tile) == expected


@pytest.mark.parametrize("start", [(3, 5), (-2, 4), (6, -3), (-1, -1), (9, 9), (20, 20)])
def test_tile_is_the_zero_padded_slice(rng, start):
    array = rng.integers(1, 99, size=(2, 10, 11)).astype(np.int32)
    tile = read_tile(array, start, (4, 5))
    np.testing.assert_array_equal(tile, padded_tile(array, start, (4, 5)))
    assert not np.shares_memory(tile, array)
