import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Reference, Volume
from lesionseg.data.cache import LesionTable, cache_key, file_states, fill_cache, source_hash
from lesionseg.data.prepare import PreparedReference
from lesionseg.errors import ContentError, ReadError
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
    """Reads the toy files and counts how often it is asked to; `changed(case)` instead if given."""

    one_at_a_time = Lock()  # np.load is not safe in threads: see `cache._layout`

    def read_toy(files, changed=lambda case: case):
        read_toy.asked.append(files.case)
        geometry = Geometry.from_spacing((9, 10, 11), (1, 1, 1))
        with one_at_a_time:
            labels, image = np.load(files.reference), np.load(files.images[0])
        reference = Reference(geometry, labels=labels)
        return changed(Case(files.case, Volume(image, geometry), reference, files.group))

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
    assert cached.lesions.voxels.tolist() == [12, 1]
    assert cached.lesions.boxes[0].tolist() == [2, 3, 6, 4, 5, 9]
    assert (cached.instances[tuple(cached.lesions.seeds_of(0).T)] == 1).all()


@pytest.mark.parametrize("workers", [None, 1])
def test_filling_reports_progress_and_a_second_time_reads_nothing(fill, read, workers):
    told = []
    first = fill(progress=lambda *seen: told.append(seen), workers=workers)
    assert [cached.case for cached in first] == ["c0", "c1", "c2"]
    assert [seen[1:] for seen in told] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(seen[0] for seen in told) == ["c0", "c1", "c2"]
    again = fill(workers=workers)
    assert len(read.asked) == 3
    assert again[2].lesions.to_json() == first[2].lesions.to_json()


HARMS = {
    "image.npy": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "instances.npy": lambda path: np.save(path, np.zeros((2, 2, 2), np.uint8)),
    "labels.npy": Path.unlink,
    "case.json": lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_entry_is_made_again(fill, read, name, caplog):
    HARMS[name](fill()[1].folder / name)
    read.asked.clear()
    assert fill()[1].labels.sum() == 13
    assert read.asked == ["c1"]
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
            raise ContentError(f"Broken: {files.case}.")
        return read(files)

    with pytest.raises(ContentError, match="c2"):
        fill(read=fails_at_last, workers=1)
    read.asked.clear()
    fill()
    assert read.asked == ["c2"]
    folder = tmp_path / "cache" / cache_key(dataset, plan)
    assert sorted(p.name for p in folder.glob("??/*")) == ["c0", "c1", "c2"]
    assert not [*folder.glob("??/.*")]


def test_a_case_without_a_reference_is_an_error(fill, read):
    unmarked = partial(read, changed=lambda case: Case(case.case, case.image))
    with pytest.raises(ContentError, match=r"c\d"):
        fill(read=unmarked)


def test_two_who_fill_one_cache_make_each_case_once(fill, read):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: fill(workers=1), range(2)))
    assert sorted(read.asked) == ["c0", "c1", "c2"]
    assert [c.folder for c in both[0]] == [c.folder for c in both[1]]


def test_a_cached_case_travels_without_its_arrays(fill):
    cached = fill()[0]
    assert cached.image is not None
    sent = pickle.dumps(cached)
    assert len(sent) < 5000
    np.testing.assert_array_equal(pickle.loads(sent).image, cached.image)


def test_values_beyond_float16_are_held_at_its_end(dataset, plan, read, tmp_path):
    def brightened(case):
        case.image.array[0, 0, 0, 0] = 1e9
        return case

    raw, bright = (
        plan.with_(normalisation=(Normalisation("dataset"),)),
        partial(read, changed=brightened),
    )
    cached = fill_cache(dataset, dataset.cases[:1], raw, tmp_path / "c", read=bright)[0]
    assert cached.image[0, 0, 0, 0] == 65504


def test_a_name_of_any_id_is_escaped_or_hashed_where_too_long(dataset, plan, read, tmp_path):
    cases = [replace(dataset.cases[0], case=case) for case in ("a b/ä", "扫" * 65, "扫" * 66)]
    cached = fill_cache(dataset, cases, plan, tmp_path / "cache", read=read)
    names = [one.folder.name for one in cached]
    assert (names[0], len(set(names))) == ("a b%2F%C3%A4", 3)
    assert max(map(len, names)) < 256


def test_the_state_of_a_file_that_just_changed_is_unknown(tmp_path):
    file = tmp_path / "a.nii"
    file.write_bytes(bytes(376))
    assert file_states([file]) is None
    assert file_states([tmp_path / "gone.nii"]) is None
    os.utime(file, (1, 1))
    assert file_states([file]) == ((str(file), 376, 10**9),)


def test_the_hash_follows_content_and_annotations(dataset):
    files = dataset.cases[0]
    before = source_hash(files)
    assert before == source_hash(files)
    assert before != source_hash(CaseFiles(files.case, files.images, files.reference))
    with pytest.raises(ReadError, match="absent"):
        source_hash(CaseFiles("x", (files.images[0].with_name("absent.npy"),)))


def test_an_entry_knows_where_to_teach_and_whether_a_lesion_has_parts(
    fill, dataset, plan, read, tmp_path
):
    whole = fill()[0]
    assert (whole.is_mixed, whole.valid_seeds) == (False, None)

    def with_parts(case):
        labels = case.reference.labels
        ids = (labels > 0).astype(np.int32)
        labels[2] *= 2
        ignore = np.zeros(labels.shape, bool)
        ignore[5:] = True
        return replace(
            case, reference=Reference(case.image.geometry, labels, ids, (1,), ignore=ignore)
        )

    regions = plan.with_(label_values=(1, 2), label_names=("a", "b"), regions=((1, 2), (2,)))
    parts = partial(read, changed=with_parts)
    cached = fill_cache(dataset, dataset.cases[:1], regions, tmp_path / "cache", read=parts)[0]
    assert cached.folder != whole.folder
    assert cached.is_mixed
    assert np.unique(cached.labels).tolist() == [0, 1, 2]
    seeds = np.array(cached.valid_seeds)
    assert len(seeds) == min(512, 5 * 10 * 11 - 12)
    assert seeds[:, 0].max() < 5
    assert (cached.instances[tuple(seeds.T)] == 0).all()


def test_a_table_of_lesions_has_at_most_32_seeds_each_and_comes_back_from_json():
    instances = np.zeros((1, 1, 200), np.int32)
    instances[0, 0, 20:120] = 1
    instances[0, 0, 150:152] = 3
    labels = (instances > 0).astype(np.uint8)
    table = LesionTable.of(PreparedReference(labels, instances, (1, 1, 2), None))
    again = LesionTable.from_json(3, **json.loads(json.dumps(table.to_json())))
    for found in (table, again):
        places = found.seeds_of(0)[:, 2]
        assert (len(places), places[0], places[-1]) == (32, 20, 119)
        assert np.diff(places.astype(int)).max() == 4
        assert found.seeds_of(1).tolist() == [[0, 0, 150], [0, 0, 151]]
        assert (found.ids.tolist(), found.labels.tolist()) == ([1, 3], [1, 2])
        assert found.voxels.tolist() == [100, 2]
        assert found.boxes.tolist() == [[0, 0, 20, 1, 1, 120], [0, 0, 150, 1, 1, 152]]
        assert found.label_of_id().tolist() == [0, 1, 0, 2]
    nothing = np.zeros((1, 1, 200), np.uint8)
    empty = LesionTable.of(PreparedReference(nothing, nothing.astype(np.int32), (), None))
    assert (len(empty), empty.boxes.shape, empty.label_of_id().tolist()) == (0, (0, 6), [0])
    with pytest.raises(ValueError, match="fit together"):
        LesionTable.from_json(3, **{**table.to_json(), "labels": [1]})
