"""The cache of prepared cases: round trips, damaged entries, and changes of files and plans."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Labels, Reference, Volume
from lesionseg.data.cache import LesionIndex, cache_key, fill_cache, read_cached_case
from lesionseg.errors import ContentError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.contents import case_digest
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.plan.plan import Normalisation

GEOMETRY = Geometry.from_spacing((9, 10, 11), (1, 1, 1))


@pytest.fixture
def dataset(tmp_path, rng):
    cases = []
    for i in range(3):
        image = rng.normal(size=(1, *GEOMETRY.shape)).astype(np.float32)
        labels = np.zeros(image.shape, np.uint8)
        labels[0, 2:4, 3:5, 6:9] = 1
        labels[0, 7, 8, 9] = i > 0
        for name, array in (("c", image), ("m", labels)):
            write_volume(tmp_path / f"{name}{i}.nii", Volume(array, GEOMETRY))
        files = (tmp_path / f"c{i}.nii",)
        cases.append(CaseFiles(f"c{i}", files, tmp_path / f"m{i}.nii", group=f"g{i}"))
    return Dataset("toy", tmp_path, "manifest", 3, ("T1",), Labels.of({1: "lesion"}), tuple(cases))


@pytest.fixture
def ids_read():
    """Collect the ids of the cases that `fill` reads."""
    return []


@pytest.fixture
def fill(dataset, plan, ids_read, tmp_path):
    """Fill the cache with the cases. `change` is applied to each case after it is read."""

    def fill_with(plan=plan, change=lambda case: case, **settings):
        def read(files, dataset):
            ids_read.append(files.case)
            return change(read_case(files, dataset))

        with patch("lesionseg.data.cache.read_case", read):
            return fill_cache(dataset, dataset.cases, plan, tmp_path / "cache", **settings)

    return fill_with


def test_cached_case_equals_the_prepared_case(fill, dataset):
    cached = fill()[1]
    case = read_case(dataset.cases[1], dataset)
    assert (cached.case, cached.group, cached.shape) == ("c1", "g1", (9, 10, 11))
    image = case.image.array
    scaled = (image - image.mean()) / image.std()
    np.testing.assert_allclose(cached.image, scaled, atol=2e-3, rtol=1e-3)
    flags = cached.image.flags
    assert (cached.image.dtype, flags.writeable, flags.owndata) == (np.float16, False, False)
    np.testing.assert_array_equal(cached.labels, case.reference.labels)
    np.testing.assert_array_equal(cached.instances > 0, cached.labels > 0)
    assert cached.valid is None
    assert cached.lesions.voxels.tolist() == [12, 1]
    assert cached.lesions.boxes[0].tolist() == [2, 3, 6, 4, 5, 9]
    assert (cached.instances[tuple(cached.lesions.seeds_of(0).T)] == 1).all()


def test_pickle_of_a_cached_case_does_not_contain_its_arrays(fill):
    cached = fill()[1]
    content = pickle.dumps(cached)
    assert len(content) < 5000
    np.testing.assert_array_equal(pickle.loads(content).image, cached.image)


@pytest.mark.parametrize("workers", [None, 1])
def test_filling_reports_progress_and_a_second_time_reads_no_case(fill, ids_read, workers):
    reports = []
    first = fill(progress=lambda *report: reports.append(report), workers=workers)
    assert [cached.case for cached in first] == ["c0", "c1", "c2"]
    assert [report[1:] for report in reports] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(report[0] for report in reports) == ["c0", "c1", "c2"]
    again = fill(workers=workers)
    assert len(ids_read) == 3
    assert again[2].lesions.to_json() == first[2].lesions.to_json()


DAMAGES = {
    "image.npy": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "instances.npy": lambda path: np.save(path, np.zeros((2, 2, 2), np.uint8)),
    "labels.npy": Path.unlink,
    "case.json": lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_entry_is_made_again(fill, ids_read, name, caplog):
    DAMAGES[name](fill()[1].folder / name)
    ids_read.clear()
    assert fill()[1].labels.sum() == 13
    assert ids_read == ["c1"]
    assert "damaged" in caplog.text


def test_entry_of_a_changed_file_is_made_again(fill, ids_read, dataset):
    first = fill()[0]
    path = dataset.cases[0].reference
    labels = read_volume(path).array.copy()
    labels[0, 0, 0, 0] = 1
    write_volume(path, Volume(labels, GEOMETRY))
    ids_read.clear()
    assert len(fill()[0].lesions) == 2
    assert ids_read == ["c0"]
    assert len(read_cached_case(first.folder).lesions) == 1  # a running training keeps its entry


def test_hash_of_the_source_depends_on_all_facts_of_a_case(dataset):
    files = dataset.cases[0]
    for change in ({"group": "other"}, {"columns": {"pixel_mm": "0.2"}}):
        assert case_digest(files) != case_digest(replace(files, **change))
    with pytest.raises(ReadError, match="absent"):
        case_digest(replace(files, images=(dataset.root / "absent.nii",)))


def test_key_of_the_cache_depends_on_the_preparation_only(dataset, plan):
    flip = {"_target_": "monai.transforms.Flipd", "keys": "image"}
    keys = {
        cache_key(dataset, plan),
        cache_key(dataset, plan.with_(spacing_mm=(2.0, 1.0, 1.0))),
        cache_key(dataset, plan.with_(normalisation=(Normalisation("range"),))),
        cache_key(dataset, plan.with_(labels=Labels((2,), ("lesion",)))),
        cache_key(dataset, plan.with_(prepare_extra=(flip,))),
        cache_key(replace(dataset, labels=Labels.of({1: "node"})), plan),
    }
    assert len(keys) == 6
    assert cache_key(dataset, plan.with_(batch_size=7)) in keys


def test_error_keeps_finished_entries_and_leaves_no_incomplete_entry(
    fill, ids_read, dataset, plan, tmp_path
):
    with pytest.raises(ContentError, match="c2"):
        fill(change=lambda c: c if c.case != "c2" else Case(c.case, c.image), workers=1)
    ids_read.clear()
    fill()
    assert ids_read == ["c2"]
    folder = tmp_path / "cache" / cache_key(dataset, plan)
    assert len([*folder.glob("??/*")]) == 3
    assert not [*folder.glob("??/.*")]


def test_two_threads_that_fill_one_cache_make_each_case_once(fill, ids_read):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: fill(workers=1), range(2)))
    assert sorted(ids_read) == ["c0", "c1", "c2"]
    assert [c.folder for c in both[0]] == [c.folder for c in both[1]]


def test_values_beyond_float16_are_clipped_to_its_largest_value(fill, plan):
    def brighten(case):
        case.image.array[0, 0, 0, 0] = 1e9
        return case

    raw = plan.with_(normalisation=(Normalisation("dataset"),))
    assert fill(raw, brighten)[0].image[0, 0, 0, 0] == 65504


def test_seeds_of_valid_voxels_are_spread_over_the_image(fill):
    ignored = np.zeros((1, 512, 512), bool)
    ignored[0, 0, 0] = True
    geometry = Geometry.from_spacing(ignored.shape, (1, 1, 1))
    nothing = Reference(geometry, np.zeros(ignored.shape, np.uint8), None, (1,), ignore=ignored)
    image = Volume(np.zeros((1, *ignored.shape), np.float32), geometry)
    cached = fill(change=lambda case: replace(case, image=image, reference=nothing))[0]
    seeds = np.array(cached.valid_seeds)
    assert (np.histogram2d(*seeds[:, 1:].T, bins=4)[0] > 0).all()  # not on a diagonal


def test_entry_states_valid_seeds_and_if_a_lesion_has_several_values(fill, plan):
    whole = fill()[0]
    assert (whole.is_mixed, whole.valid_seeds) == (False, None)

    def add_parts_and_ignored_voxels(case):
        labels = case.reference.labels.copy()
        ids = (labels > 0).astype(np.int32)
        labels[2] *= 2
        ignore = np.zeros(GEOMETRY.shape, bool)
        ignore[5:] = True
        return replace(case, reference=Reference(GEOMETRY, labels, ids, (1,), ignore=ignore))

    regions = plan.with_(labels=Labels((1, 2), ("a", "b"), ((1, 2), (2,))))
    cached = fill(regions, add_parts_and_ignored_voxels)[0]
    assert cached.folder != whole.folder
    assert cached.is_mixed
    assert np.unique(cached.labels).tolist() == [0, 1, 2]
    seeds = np.array(cached.valid_seeds)
    assert (len(seeds), seeds[:, 0].max()) == (512, 4)  # of 538 valid voxels
    assert not cached.instances[tuple(seeds.T)].any()


def test_table_of_lesions_with_at_most_32_seeds_each_survives_a_round_trip():
    instances = np.zeros((1, 1, 200), np.int32)
    instances[0, 0, 20:120] = 1
    instances[0, 0, 150:152] = 3
    table = LesionIndex.of(instances, (1, 1, 2))
    stated = json.loads(json.dumps(table.to_json()))
    for found in (table, LesionIndex.from_json(3, **stated)):
        places = found.seeds_of(0)[:, 2].astype(int)
        assert (len(places), places[0], places[-1], np.diff(places).max()) == (32, 20, 119, 4)
        assert found.seeds_of(1).tolist() == [[0, 0, 150], [0, 0, 151]]
        assert (found.ids.tolist(), found.labels.tolist()) == ([1, 3], [1, 2])
        assert found.voxels.tolist() == [100, 2]
        assert found.boxes.tolist() == [[0, 0, 20, 1, 1, 120], [0, 0, 150, 1, 1, 152]]
        assert found.label_of_id().tolist() == [0, 1, 0, 2]
    with pytest.raises(ValueError, match="fit together"):
        LesionIndex.from_json(3, **{**stated, "labels": [1]})


def test_table_without_lesions_is_empty():
    empty = LesionIndex.of(np.zeros((1, 1, 200), np.int32), ())
    assert (len(empty), empty.boxes.shape, empty.label_of_id().tolist()) == (0, (0, 6), [0])
