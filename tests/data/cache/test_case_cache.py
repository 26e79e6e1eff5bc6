import gc
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Reference, Volume
from lesionseg.data.cache.cached_case import _map_array
from lesionseg.data.cache.case_cache import Cache, cache_key, source_hash
from lesionseg.data.cache.fill import fill_cache
from lesionseg.data.cache.lesion_table import LesionTable, find_lesions
from lesionseg.data.prepared_reference import PreparedReference
from lesionseg.errors import ContentError, ReadError
from lesionseg.io.remote.local_disk import partial_name, sweep
from lesionseg.plan.plan import Normalisation


@pytest.fixture
def dataset(tmp_path):
    cases = []
    for i in range(3):
        image, mask = tmp_path / f"c{i}.npy", tmp_path / f"m{i}.npy"
        np.save(image, np.random.default_rng(i).normal(size=(1, 9, 10, 11)).astype(np.float32))
        labels = np.zeros((9, 10, 11), np.uint8)
        labels[2:4, 3:5, 6:9] = 1
        labels[7, 8, 9] = i > 0
        np.save(mask, labels)
        cases.append(CaseFiles(f"c{i}", (image,), mask, group=f"g{i}"))
    return Dataset("toy", tmp_path, "manifest", 3, ("T1",), {1: "lesion"}, tuple(cases))


@pytest.fixture
def read():
    """Reads the toy files and counts how often it is asked to."""

    one_at_a_time = Lock()  # np.load is not safe in threads: see `cached_case._layout`

    def read_toy(files):
        read_toy.asked.append(files.case)
        geometry = Geometry.from_spacing((9, 10, 11), (1, 1, 1))
        with one_at_a_time:
            labels, image = np.load(files.reference), np.load(files.images[0])
        reference = Reference(geometry, labels=labels)
        return Case(files.case, Volume(image, geometry), reference, files.group)

    read_toy.asked = []
    return read_toy


@pytest.fixture
def fill(dataset, plan, read, tmp_path):
    return partial(fill_cache, dataset, dataset.cases, plan, tmp_path / "cache", read=read)


def test_a_case_comes_back_as_it_was_prepared(fill, dataset):
    cached = fill()[1]
    assert (cached.case, cached.group, cached.shape) == ("c1", "g1", (9, 10, 11))
    image = np.load(dataset.cases[1].images[0])
    np.testing.assert_allclose(
        cached.image, (image - image.mean()) / image.std(), atol=2e-3, rtol=1e-3
    )
    assert cached.image.dtype == np.float16
    assert not cached.image.flags.writeable
    assert not cached.image.flags.owndata
    np.testing.assert_array_equal(cached.labels, np.load(dataset.cases[1].reference))
    np.testing.assert_array_equal(cached.labels > 0, cached.instances > 0)
    assert cached.valid is None
    assert [lesion.voxels for lesion in cached.lesions] == [12, 1]
    assert cached.lesions[0].start == (2, 3, 6)
    assert cached.lesions[0].stop == (4, 5, 9)
    assert all(cached.instances[seed] == 1 for seed in cached.lesions[0].seeds)


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_filling_reports_progress_and_a_second_time_reads_nothing(fill, read, workers):
    told = []
    first = fill(progress=lambda *seen: told.append(seen), workers=workers)
    assert [cached.case for cached in first] == ["c0", "c1", "c2"]
    assert [seen[1:] for seen in told] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(seen[0] for seen in told) == ["c0", "c1", "c2"]
    again = fill(workers=workers)
    assert len(read.asked) == 3
    assert again[2].lesions == first[2].lesions


@pytest.fixture
def hurried():
    """Threads that change places as often as they can."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)


def test_arrays_are_mapped_in_many_threads_at_once(tmp_path, hurried):
    """NumPy's own reader of headers fails here on Python 3.11.7 within a second."""
    paths = [tmp_path / f"{i}.npy" for i in range(400)]
    for i, path in enumerate(paths):
        np.save(path, np.full((2, i), i, np.float16))
    with ThreadPoolExecutor(8) as pool:
        for i, mapped in enumerate(pool.map(_map_array, paths)):
            assert mapped.shape == (2, i)
            assert mapped.dtype == np.float16
            assert (mapped == i).all()


@pytest.mark.parametrize("shape", [(), (3,), (1, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.bool_, np.uint8, np.uint16, np.uint32])
def test_every_array_that_the_cache_writes_is_mapped(tmp_path, shape, dtype):
    array = np.arange(60)[: int(np.prod(shape))].reshape(shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    mapped = _map_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(mapped, array, strict=True)


@pytest.mark.parametrize("harm", ["cut short", "other shape", "no table", "bad table", "no labels"])
def test_a_damaged_entry_is_made_again(fill, read, harm, caplog):
    folder = fill()[1].folder
    if harm == "cut short":
        path = folder / "image.npy"
        path.write_bytes(path.read_bytes()[:-10])
    elif harm == "other shape":
        np.save(folder / "instances.npy", np.zeros((2, 2, 2), np.uint8))
    elif harm == "no table":
        (folder / "case.json").unlink()
    elif harm == "bad table":
        (folder / "case.json").write_text("{")
    else:
        (folder / "labels.npy").unlink()
    read.asked.clear()
    cached = fill()[1]
    assert read.asked == ["c1"]
    assert cached.labels.sum() == 13
    assert "damaged" in caplog.text


def test_changed_files_make_the_entry_again_and_changed_plans_another(fill, read, dataset, plan):
    first = fill()[0]
    labels = np.load(dataset.cases[0].reference)
    labels[0, 0, 0] = 1
    np.save(dataset.cases[0].reference, labels)
    read.asked.clear()
    changed = fill()[0]
    assert read.asked == ["c0"]
    assert len(changed.lesions) == 2
    assert changed.folder == first.folder
    for other in (
        plan.with_(spacing_mm=(2.0, 1.0, 1.0)),
        plan.with_(normalisation=(Normalisation("range"),)),
        plan.with_(label_values=(2,)),
    ):
        assert cache_key(dataset, other) != cache_key(dataset, plan)
    assert cache_key(dataset, plan.with_(batch_size=7)) == cache_key(dataset, plan)


def test_an_error_leaves_what_was_made_and_no_half_entry(fill, read, dataset, plan, tmp_path):
    def fails_at_last(files):
        if files.case == "c2":
            raise ContentError("Broken.", where=files.case)
        return read(files)

    with pytest.raises(ContentError, match="c2"):
        fill(read=fails_at_last, workers=1)
    read.asked.clear()
    fill()
    assert read.asked == ["c2"]
    folder = tmp_path / "cache" / cache_key(dataset, plan)
    assert sorted(p.name for p in folder.glob("??/*")) == ["c0", "c1", "c2"]
    assert not [*folder.glob(".*"), *folder.glob("claims/*")]


def test_a_case_without_a_reference_is_refused(fill, read):
    def unmarked(files):
        case = read(files)
        return Case(case.case, case.image)

    with pytest.raises(ContentError, match=r"in c\d"):
        fill(read=unmarked)


def test_opening_what_is_not_there_says_where(tmp_path):
    with pytest.raises(ReadError, match="nothing"):
        Cache(tmp_path, "key").open("nothing")


def test_a_cached_case_travels_without_its_arrays(fill):
    cached = fill()[0]
    assert cached.image is not None
    sent = pickle.dumps(cached)
    assert len(sent) < 5000
    np.testing.assert_array_equal(pickle.loads(sent).image, cached.image)
    json.loads((cached.folder / "case.json").read_text())


def test_values_beyond_float16_are_held_at_its_end(fill, read, dataset, plan, tmp_path):
    def bright(files):
        case = read(files)
        case.image.array[0, 0, 0, 0] = 1e9
        return case

    raw = plan.with_(normalisation=(Normalisation("dataset"),))
    cached = fill_cache(dataset, dataset.cases[:1], raw, tmp_path / "c", read=bright)[0]
    assert cached.image[0, 0, 0, 0] == 65504


def test_the_hash_follows_content_and_annotations(dataset):
    files = dataset.cases[0]
    before = source_hash(files)
    assert before == source_hash(files)
    assert before != source_hash(CaseFiles(files.case, files.images, files.reference))
    with pytest.raises(ReadError, match="absent"):
        source_hash(CaseFiles("x", (files.images[0].with_name("absent.npy"),)))


def test_seeds_are_at_most_32_and_spread_over_the_lesion():
    instances = np.zeros((1, 1, 200), np.int32)
    instances[0, 0, 20:120] = 1
    instances[0, 0, 150:152] = 3
    reference = PreparedReference((instances > 0).astype(np.uint8), instances, (1, 1, 2), None)
    first, second = find_lesions(reference)
    places = [seed[2] for seed in first.seeds]
    assert len(places) == 32
    assert (places[0], places[-1], max(np.diff(places))) == (20, 119, 4)
    assert (second.id, second.label, len(second.seeds)) == (3, 2, 2)
    empty = PreparedReference(instances.astype(np.uint8) * 0, instances * 0, (), None)
    assert find_lesions(empty) == ()


def test_a_packed_table_gives_back_the_lesions_it_was_made_of():
    instances = np.zeros((1, 9, 300), np.int32)
    instances[0, 0, 20:290] = 1
    instances[0, 5:7, 5] = 2
    lesions = find_lesions(PreparedReference(instances.astype(np.uint8), instances, (2, 1), None))
    table = LesionTable(lesions, dims=3)
    assert tuple(table) == lesions == table[:]
    assert table == lesions
    assert table[-1] == lesions[1]
    assert (table.labels.tolist(), table.voxels.tolist()) == ([2, 1], [270, 2])
    assert table.boxes.tolist() == [[0, 0, 20, 1, 1, 290], [0, 5, 5, 1, 7, 6]]
    assert table.seeds(1).tolist() == [[0, 5, 5], [0, 6, 5]]
    assert table.nbytes < 500
    with pytest.raises(IndexError):
        table[2]
    empty = LesionTable((), dims=2)
    assert (len(empty), tuple(empty), empty.boxes.shape) == (0, (), (0, 4))


def test_an_entry_knows_where_to_teach_and_whether_a_lesion_has_parts(fill, dataset, plan, read):
    whole = fill()[0]
    assert (whole.is_mixed, whole.valid_seeds) == (False, None)

    def read_parts(files):
        case = read(files)
        labels = case.reference.labels
        ids = (labels > 0).astype(np.int32)
        labels[2] *= 2
        ignore = np.zeros(labels.shape, bool)
        ignore[5:] = True
        parts = Reference(
            case.image.geometry, labels=labels, instances=ids, instance_labels=(1,), ignore=ignore
        )
        return replace(case, reference=parts)

    regions = plan.with_(label_values=(1, 2), label_names=("a", "b"), regions=((1, 2), (2,)))
    cached = fill_cache(
        dataset, dataset.cases, regions, whole.folder.parent.parent, read=read_parts
    )[0]
    assert cached.folder != whole.folder
    assert cached.is_mixed
    assert np.unique(cached.labels).tolist() == [0, 1, 2]
    seeds = np.array(cached.valid_seeds)
    assert len(seeds) == min(512, 5 * 10 * 11 - 12)
    assert seeds[:, 0].max() < 5
    assert (cached.instances[tuple(seeds.T)] == 0).all()


def test_what_a_killed_process_left_goes_at_once_and_what_a_live_one_makes_stays(
    tmp_path: Path,
) -> None:
    ours, theirs = tmp_path / partial_name(), tmp_path / partial_name()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    theirs = tmp_path / theirs.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    elsewhere = tmp_path / f"{theirs.name}.other"  # the same number on another machine
    old = tmp_path / f"{elsewhere.name}.old"
    for folder in (ours, theirs, elsewhere, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    sweep(tmp_path)
    assert [f.exists() for f in (ours, theirs, elsewhere, old)] == [True, False, True, False]
