import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor

from lesionseg.config import AugmentConfig, SamplingConfig
from lesionseg.core import Geometry, Volume
from lesionseg.data.cache import read_cached_case, write_cached_case
from lesionseg.data.prepare import PreparedCase, PreparedReference
from lesionseg.data.sampling import TileSampler
from lesionseg.data.tiles import TileDataset
from lesionseg.errors import ConfigError

TILE = (8, 16, 12)


@pytest.fixture
def cases(tmp_path, rng):
    """Two small cases, the second smaller than the tile along x and with an ignored corner."""
    made = []
    for name, shape in (("a", (20, 24, 28)), ("b", (9, 20, 7))):
        instances = np.zeros(shape, np.int32)
        instances[2:4, 3:6, 4:6] = 1
        valid = None
        if name == "b":
            valid = np.ones(shape, bool)
            valid[:2, :2, :2] = False
        image = rng.normal(size=(2, *shape)).astype(np.float32)
        reference = PreparedReference((instances > 0).astype(np.uint8), instances, (1,), valid)
        prepared = PreparedCase(
            name, name, Volume(image, Geometry.from_spacing(shape, (1, 1, 1))), reference
        )
        (tmp_path / name).mkdir()
        write_cached_case(tmp_path / name, prepared, "hash")
        made.append(read_cached_case(tmp_path / name))
    return made


@pytest.fixture
def dataset(cases, plan):
    return tiles_of(cases, plan, AugmentConfig.of(), n_tiles=9, seed=3)


def tiles_of(cases, plan, augmentation, n_tiles, seed):
    plan = plan.with_(tile_shape=TILE)
    return TileDataset(cases, plan, SamplingConfig.of(), augmentation, n_tiles=n_tiles, seed=seed)


def test_an_item_is_the_tile_that_the_sampler_chose(cases, plan):
    sampler = TileSampler(cases, TILE, SamplingConfig.of(), n_tiles=20, seed=0)
    dataset = tiles_of(cases, plan, None, n_tiles=20, seed=0)
    for i in range(20):
        choice, item = sampler.choose(0, i), dataset[i]
        case = cases[choice.case]
        pad = [(30, 30)] * 3
        where = tuple(slice(s + 30, s + 30 + t) for s, t in zip(choice.start, TILE, strict=True))
        image = np.pad(np.asarray(case.image, np.float32), [(0, 0), *pad])[(..., *where)]
        np.testing.assert_array_equal(item["image"], image)
        np.testing.assert_array_equal(item["label"][0], np.pad(case.labels, pad)[where])
        np.testing.assert_array_equal(item["instances"][0], np.pad(case.instances, pad)[where])
        valid = np.ones(case.shape, bool) if case.valid is None else case.valid
        np.testing.assert_array_equal(item["valid"][0], np.pad(valid, pad)[where])


def test_types_are_those_promised(dataset):
    item = dataset[0]
    assert {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in item.items()} == {
        "image": ((2, *TILE), torch.float32),
        "label": ((1, *TILE), torch.uint8),
        "instances": ((1, *TILE), torch.int32),
        "valid": ((1, *TILE), torch.bool),
    }
    assert isinstance(dataset, Dataset)
    assert isinstance(item["image"], MetaTensor)
    assert isinstance(item["label"], MetaTensor)


def loader(dataset, batch_size, epoch=0, workers=0):
    """The batches of an epoch of nine tiles, an incomplete last one left out."""
    n = dataset.n_tiles
    context = "fork" if workers else None
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(n * epoch, n * epoch + n),
        num_workers=workers,
        drop_last=True,
        multiprocessing_context=context,
    )


def batches(loader):
    return [{key: tensor.clone() for key, tensor in batch.items()} for batch in loader]


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_batches_are_the_same_for_any_number_of_workers_and_follow_the_epoch(dataset):
    epochs = []
    for epoch in (0, 1):
        epochs.append(batches(loader(dataset, 2, epoch)))
        assert same(epochs[-1], batches(loader(dataset, 2, epoch, workers=2)))
    assert len(epochs[0]) == 4
    assert epochs[0][0]["image"].shape == (2, 2, *TILE)
    assert not same(*epochs)
    assert same(epochs[0], batches(loader(dataset, 2, 0, workers=2)))


def test_tiling_is_imported_without_torch():
    code = (
        "import sys, lesionseg.data.tiling, lesionseg.data; lesionseg.data.TileGrid\n"
        "sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def dropping(cases, plan, share, augmentation=None, may_lack=True, **settings):
    plan = plan.with_(tile_shape=TILE, channel_names=("FLAIR", "T1"), may_lack=may_lack)
    return TileDataset(
        cases, plan, None, augmentation, n_tiles=9, seed=3, channel_dropout=share, **settings
    )


@pytest.mark.parametrize("augmentation", [None, AugmentConfig.of()])
def test_a_channel_is_left_out_of_some_tiles_and_nothing_else_changes(cases, plan, augmentation):
    whole = dropping(cases, plan, 0.0, augmentation)
    some, again = (dropping(cases, plan, 0.5, augmentation) for _ in range(2))
    missing = [some.raw(i).change.missing for i in range(200)]
    assert 70 < sum(m == () for m in missing) < 130
    assert {m: missing.count(m) > 30 for m in missing} == {(): True, (0,): True, (1,): True}
    for i in range(12, 24):
        before, item, expected = whole[i], again[i], whole[i]["image"].clone()
        for channel in missing[i]:
            expected[channel] = 0
        assert torch.equal(item["image"], expected)
        assert all(torch.equal(item[key], before[key]) for key in ("label", "instances", "valid"))


def test_what_a_case_lacks_stays_missing_and_nothing_is_left_out_beside(cases, plan):
    tiles = dropping([replace(case, missing=(1,)) for case in cases], plan, 0.9)
    assert {tiles.raw(i).change.missing for i in range(20)} == {(1,)}


def test_a_plan_that_cannot_do_without_is_refused(cases, plan):
    with pytest.raises(ConfigError, match="no channel to do without"):
        dropping(cases, plan, 0.3, may_lack=False)
