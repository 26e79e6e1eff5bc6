import subprocess
import sys

import numpy as np
import pytest
import torch

from lesionseg.core import Geometry, Volume
from lesionseg.data.augmentation.augment import AugmentationSettings, build_augmentation
from lesionseg.data.cache.cached_case import read_cached_case, write_cached_case
from lesionseg.data.prepare import PreparedCase, PreparedReference
from lesionseg.data.sampling import TileSampler
from lesionseg.data.tile_dataset import TileDataset, build_loader
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
        write_cached_case(tmp_path / name, prepared, reference, "hash")
        made.append(read_cached_case(tmp_path / name))
    return made


@pytest.fixture
def dataset(cases, plan):
    sampler = TileSampler(cases, TILE, n_tiles=9, seed=3)
    augment = build_augmentation(AugmentationSettings(), plan)
    return TileDataset(cases, sampler, augment, TILE)


def test_an_item_is_the_tile_that_the_sampler_chose(cases):
    sampler = TileSampler(cases, TILE, n_tiles=20, seed=0)
    dataset = TileDataset(cases, sampler, None, TILE)
    for i in range(20):
        choice, item = sampler.choose(0, i), dataset[i]
        case = cases[choice.case]
        pad = [(30, 30)] * 3
        where = tuple(slice(s + 30, s + 30 + t) for s, t in zip(choice.start, TILE, strict=True))
        image = np.pad(np.asarray(case.image, np.float32), [(0, 0), *pad])[(..., *where)]
        np.testing.assert_array_equal(item["image"], image)
        np.testing.assert_array_equal(item["labels"], np.pad(case.labels, pad)[where])
        np.testing.assert_array_equal(item["instances"], np.pad(case.instances, pad)[where])
        valid = np.ones(case.shape, bool) if case.valid is None else case.valid
        np.testing.assert_array_equal(item["valid"], np.pad(valid, pad)[where])


def test_types_are_those_promised(dataset):
    item = dataset[0]
    assert {key: tensor.dtype for key, tensor in item.items()} == {
        "image": torch.float32,
        "labels": torch.uint8,
        "instances": torch.int32,
        "valid": torch.bool,
    }
    assert item["image"].shape == (2, *TILE)


def batches(loader):
    return [{key: tensor.clone() for key, tensor in batch.items()} for batch in loader]


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_batches_are_the_same_for_any_number_of_workers_and_follow_the_epoch(dataset):
    alone, helped = build_loader(dataset, 2, 0, seed=0), build_loader(dataset, 2, 2, seed=0)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(batches(alone))
        assert same(epochs[-1], batches(helped))
    assert len(epochs[0]) == 4
    assert epochs[0][0]["image"].shape == (2, 2, *TILE)
    assert not same(*epochs)
    dataset.set_epoch(0)
    assert same(epochs[0], batches(helped))


def test_ranks_share_the_tiles_evenly(dataset):
    ranks = [build_loader(dataset, 1, 0, seed=0, rank=r, n_ranks=2) for r in (0, 1)]
    assert [len(loader) for loader in ranks] == [4, 4]
    first, second = (batches(loader) for loader in ranks)
    assert torch.equal(first[1]["image"][0], dataset[2]["image"])
    assert torch.equal(second[1]["image"][0], dataset[3]["image"])


def test_a_sampler_for_other_cases_is_refused(cases):
    sampler = TileSampler(cases[:1], TILE, n_tiles=2, seed=0)
    with pytest.raises(ConfigError, match="other cases"):
        TileDataset(cases, sampler, None, TILE)


def test_tiling_is_imported_without_torch():
    code = (
        "import sys, lesionseg.data.tiling, lesionseg.data; lesionseg.data.TileGrid\n"
        "sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_rooms_door_opens_to_every_name():
    import lesionseg.data

    for name in lesionseg.data.__all__:
        assert getattr(lesionseg.data, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lesionseg.data.nonsense
