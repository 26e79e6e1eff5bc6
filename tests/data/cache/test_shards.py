import gzip
import json
import pickle
import tarfile
import uuid
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Reference, Volume
from lesionseg.data.cache import shards
from lesionseg.data.cache.case_cache import cache_key
from lesionseg.data.cache.fill import fill_cache
from lesionseg.data.sampling import SamplingSettings
from lesionseg.data.tile_dataset import TileDataset
from lesionseg.errors import ContentError, OutputError, ReadError
from lesionseg.io.remote.local_disk import LocalDisk
from lesionseg.io.remote.remote_folder import RemoteFolder

pytest.importorskip("fsspec")
SHAPE = (9, 10, 11)


@pytest.fixture
def dataset(tmp_path):
    cases = []
    for i in range(5):
        file = tmp_path / f"c{i}"
        file.write_text(str(i))
        cases.append(CaseFiles(f"c{i}", (file,), file, group=f"g{i}"))
    return Dataset("toy", tmp_path, "manifest", 3, ("T1",), {1: "lesion"}, tuple(cases))


def read_toy(files, log=None):
    """Noise made from the number in the file; names each case it is asked for in `log`."""
    if log is not None:
        with log.open("a") as stream:
            stream.write(f"{files.case}\n")
    number = int(files.images[0].read_text())
    geometry = Geometry.from_spacing(SHAPE, (1, 1, 1))
    image = np.random.default_rng(number).normal(size=(1, *SHAPE)).astype(np.float32)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 3:5, 6:9] = 1
    return Case(files.case, Volume(image, geometry), Reference(geometry, labels), files.group)


@pytest.fixture
def url(tmp_path):
    return f"memory://{uuid.uuid4().hex}/cache"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "asked"


@pytest.fixture
def fill(dataset, plan, log, url, tmp_path):
    disk = LocalDisk(tmp_path / "disk")
    return partial(
        fill_cache, dataset, dataset.cases, plan, url, read=partial(read_toy, log=log), disk=disk
    )


def asked(log):
    return sorted(log.read_text().split()) if log.exists() else []


def same_arrays(mine, other):
    for name in ("image", "labels", "instances"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


@pytest.fixture
def by_path(dataset, plan, tmp_path):
    return fill_cache(dataset, dataset.cases, plan, tmp_path / "plain", read=read_toy)


def test_cases_at_a_url_are_those_of_a_folder(fill, by_path, log, tmp_path):
    made = fill(workers=2)
    assert asked(log) == [f"c{i}" for i in range(5)]
    elsewhere = fill(disk=LocalDisk(tmp_path / "other machine"))
    assert len(asked(log)) == 5
    assert not (tmp_path / "other machine" / "cases").exists()
    for mine, again, other in zip(made, elsewhere, by_path, strict=True):
        assert (mine.case, mine.group, mine.source) == (other.case, other.group, other.source)
        assert mine.lesions == again.lesions == other.lesions
        same_arrays(mine, other)
        same_arrays(again, other)


def test_the_store_holds_shards_and_no_claim_and_no_name_of_a_user(
    fill, url, dataset, plan, tmp_path
):
    fill()
    key = cache_key(dataset, plan)
    names = [file.path for file in (RemoteFolder(url) / key).list()]
    assert [name.partition(".")[2] for name in sorted(names)] == ["json.gz", "tar"]
    tar = next(name for name in names if name.endswith("tar"))
    (RemoteFolder(url) / key).get({tar: tmp_path / "shard.tar"})
    with tarfile.open(tmp_path / "shard.tar") as members:
        parts = members.getmembers()
    assert len(parts) == 5 * 4
    assert {(part.uname, part.uid, part.mtime) for part in parts} == {("", 0, 0)}


def test_full_shards_are_sent_while_others_are_filled(dataset, plan, url, tmp_path, monkeypatch):
    small = partial(shards.ShardCache, shard_bytes=12_000)  # a case takes some 9 KB
    monkeypatch.setattr("lesionseg.data.cache.fill.ShardCache", small)
    disk = LocalDisk(tmp_path / "disk")
    made = fill_cache(dataset, dataset.cases, plan, url, read=read_toy, disk=disk, workers=1)
    assert len({cached.origin.name for cached in made}) == 3


def test_changed_files_are_made_again_and_only_those(fill, dataset, log):
    before = fill()[1]
    dataset.cases[1].images[0].write_text("77")
    after = fill()[1]
    assert asked(log) == ["c0", "c1", "c1", "c2", "c3", "c4"]
    assert after.folder != before.folder
    assert not np.array_equal(after.image, before.image)


def test_an_interrupted_filling_keeps_what_it_had_made(fill, log):
    def fails(files):
        if files.case == "c3":
            raise ContentError("Broken.", where=files.case)
        return read_toy(files, log)

    with pytest.raises(ContentError, match="c3"):
        fill(read=fails, workers=1)
    assert asked(log) == ["c0", "c1", "c2"]
    assert len(fill()) == 5
    assert asked(log) == [f"c{i}" for i in range(5)]


def test_copies_stay_within_their_bound_and_come_again_when_wanted(fill, by_path, tmp_path):
    one = sum(f.stat().st_size for f in by_path[0].folder.iterdir())
    disk = LocalDisk(tmp_path / "small disk", most_bytes=int(2.5 * one))
    cases = fill(disk=disk)
    for _ in range(2):
        for mine, other in zip(cases, by_path, strict=True):
            same_arrays(mine, other)
            assert len(list(disk.folder.glob("cases/*/*/*"))) <= 2


def test_the_longest_unused_copy_goes_first(fill, by_path, tmp_path):
    one = sum(f.stat().st_size for f in by_path[0].folder.iterdir())
    disk = LocalDisk(tmp_path / "small disk", most_bytes=int(2.5 * one))
    a, b, c, *_ = fill(disk=disk)
    for case in (a, b, a, c):
        assert case.image is not None
    assert [case.folder.exists() for case in (a, b, c)] == [True, False, True]


def test_the_same_tiles_come_from_a_folder_and_a_url_with_any_number_of_workers(
    fill, by_path, tmp_path
):
    # a store that worker processes can read too
    url = f"file://{tmp_path}/store"
    disk = LocalDisk(tmp_path / "tile disk", most_bytes=20_000)
    remote = fill_at(fill, url, disk)
    tiles, small = [], fill.args[2].with_(tile_shape=(4, 4, 4))
    for cases, workers in ((by_path, 0), (remote, 0), (remote, 2)):
        dataset = TileDataset(cases, small, SamplingSettings(), None, n_tiles=8, seed=0)
        loader = DataLoader(dataset, workers, batch_size=2, sampler=range(8))
        tiles.append([batch["image"].clone() for batch in loader])
    for first, second, third in zip(*tiles, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def fill_at(fill, url, disk):
    dataset, cases, plan, _ = fill.args
    return fill_cache(dataset, cases, plan, url, read=read_toy, disk=disk)


def test_a_case_at_a_url_travels_as_a_few_numbers(fill):
    cached = fill()[0]
    assert len(pickle.dumps(cached)) < 5000


def test_a_damaged_table_and_a_missing_shard_are_named(fill, url, dataset, plan, tmp_path):
    cases = fill(disk=LocalDisk(tmp_path / "a"))
    store = RemoteFolder(url) / cache_key(dataset, plan)
    lost = fill(disk=LocalDisk(tmp_path / "b"))[0]
    store.remove(cases[0].origin.name)
    with pytest.raises(ReadError, match=r"\.tar"):
        _ = lost.image
    store.create("broken.json.gz", b"nonsense")
    with pytest.raises(ReadError, match=r"broken\.json\.gz"):
        fill()


def test_a_table_that_names_another_folder_is_refused(fill, url, dataset, plan, tmp_path):
    store = RemoteFolder(url) / cache_key(dataset, plan)
    table = {"cases": [{"case": "a", "source": "../../elsewhere"}]}
    store.create("evil.json.gz", gzip.compress(json.dumps(table).encode()))
    with pytest.raises(ReadError, match=r"evil\.json\.gz.*elsewhere"):
        fill(disk=LocalDisk(tmp_path / "a"))


def test_a_web_server_gives_what_is_there_and_takes_nothing(fill, web, plan, dataset, tmp_path):
    root, site = web
    bucket = f"file://{root}/cache"
    fill_at(fill, bucket, LocalDisk(tmp_path / "a"))
    found = fill_at(fill, f"{site}/cache", LocalDisk(tmp_path / "b"))
    assert found[4].image.shape == (1, *SHAPE)
    dataset.cases[0].images[0].write_text("55")
    with pytest.raises(OutputError, match="reading only"):
        fill_at(fill, f"{site}/cache", LocalDisk(tmp_path / "c"))


def work(dataset, plan, place, log, disk):
    made = fill_cache(
        dataset, dataset.cases, plan, place, read=partial(slow_toy, log=log), disk=disk, workers=2
    )
    assert [cached.image.shape for cached in made] == [(1, *SHAPE)] * len(dataset.cases)


def slow_toy(files, log):
    import time

    time.sleep(0.05)
    return read_toy(files, log)


@pytest.mark.parametrize("kind", ["a folder", "a URL"])
def test_two_processes_fill_one_cache_and_make_each_case_once(dataset, plan, log, tmp_path, kind):
    place = tmp_path / "shared" if kind == "a folder" else f"file://{tmp_path}/shared"
    context = get_context("fork")
    helpers = [
        context.Process(
            target=work, args=(dataset, plan, place, log, LocalDisk(Path(f"{tmp_path}/disk{i}")))
        )
        for i in range(2)
    ]
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join(60)
    assert [helper.exitcode for helper in helpers] == [0, 0]
    assert set(asked(log)) == {f"c{i}" for i in range(5)}
    # to both at once in the same moment is allowed, twice over is not
    assert len(asked(log)) <= 6
