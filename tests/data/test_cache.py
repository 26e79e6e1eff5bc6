import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Labels, Reference, Volume
from lesionseg.data.cache import (
    LesionIndex,
    cache_key,
    fill_cache,
    read_cached_case,
    source_hash,
)
from lesionseg.errors import ContentError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.plan.plan import Normalisation

GEOMETRY = Geometry.from_spacing((9, 10, 11), (1, 1, 1))


@pytest.fixture
def dataset(tmp_path, rng):
    cases = []
    for i in range(3):
        image, mask = tmp_path / f"c{i}.nii", tmp_path / f"m{i}.nii"
        write_volume(image, Volume(rng.normal(size=(1, 9, 10, 11)).astype(np.float32), GEOMETRY))
        labels = np.zeros((1, 9, 10, 11), np.uint8)
        labels[0, 2:4, 3:5, 6:9], labels[0, 7, 8, 9] = 1, i > 0
        write_volume(mask, Volume(labels, GEOMETRY))
        cases.append(CaseFiles(f"c{i}", (image,), mask, group=f"g{i}"))
    return Dataset("toy", tmp_path, "manifest", 3, ("T1",), Labels.of({1: "lesion"}), tuple(cases))


@pytest.fixture
def asked():
    """The cases that were read."""
    return []


@pytest.fixture
def fill(dataset, plan, asked, tmp_path):
    """Fill the cache with cases as they are `changed` once read."""

    def filled(plan=plan, changed=lambda case: case, cases=dataset.cases, **settings):
        def read(files):
            asked.append(files.case)
            return changed(read_case(files, dataset))

        return fill_cache(dataset, cases, plan, tmp_path / "cache", read=read, **settings)

    return filled


def test_a_case_comes_back_as_it_was_prepared_and_travels_without_its_arrays(fill, dataset):
    cached, case = fill()[1], read_case(dataset.cases[1], dataset)
    assert (cached.case, cached.group, cached.shape) == ("c1", "g1", (9, 10, 11))
    image, labels = case.image.array, case.reference.labels
    scaled = (image - image.mean()) / image.std()
    np.testing.assert_allclose(cached.image, scaled, atol=2e-3, rtol=1e-3)
    assert cached.image.dtype == np.float16
    assert not cached.image.flags.writeable
    assert not cached.image.flags.owndata
    np.testing.assert_array_equal(cached.labels, labels)
    np.testing.assert_array_equal(cached.instances > 0, labels > 0)
    assert cached.valid is None
    assert cached.lesions.voxels.tolist() == [12, 1]
    assert cached.lesions.boxes[0].tolist() == [2, 3, 6, 4, 5, 9]
    assert (cached.instances[tuple(cached.lesions.seeds_of(0).T)] == 1).all()
    sent = pickle.dumps(cached)
    assert len(sent) < 5000
    np.testing.assert_array_equal(pickle.loads(sent).image, cached.image)


@pytest.mark.parametrize("workers", [None, 1])
def test_filling_reports_progress_and_a_second_time_reads_nothing(fill, asked, workers):
    told = []
    first = fill(progress=lambda *seen: told.append(seen), workers=workers)
    assert [cached.case for cached in first] == ["c0", "c1", "c2"]
    assert [seen[1:] for seen in told] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(seen[0] for seen in told) == ["c0", "c1", "c2"]
    again = fill(workers=workers)
    assert len(asked) == 3
    assert again[2].lesions.to_json() == first[2].lesions.to_json()


HARMS = {
    "image.npy": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "instances.npy": lambda path: np.save(path, np.zeros((2, 2, 2), np.uint8)),
    "labels.npy": Path.unlink,
    "case.json": lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_entry_is_made_again(fill, asked, name, caplog):
    HARMS[name](fill()[1].folder / name)
    asked.clear()
    assert fill()[1].labels.sum() == 13
    assert asked == ["c1"]
    assert "damaged" in caplog.text


def test_changed_files_make_the_entry_again_and_changed_plans_another(fill, asked, dataset, plan):
    first, path = fill()[0], dataset.cases[0].reference
    labels = read_volume(path).array.copy()
    labels[0, 0, 0, 0] = 1
    write_volume(path, Volume(labels, GEOMETRY))
    asked.clear()
    changed = fill()[0]
    assert asked == ["c0"]
    assert len(changed.lesions) == 2
    assert len(read_cached_case(first.folder).lesions) == 1  # who trains on it is not disturbed
    files = dataset.cases[0]
    for change in ({"group": "other"}, {"columns": {"pixel_mm": "0.2"}}):
        assert source_hash(files) != source_hash(replace(files, **change))
    with pytest.raises(ReadError, match="absent"):
        source_hash(replace(files, images=(path.with_name("absent.nii"),)))
    for other in (
        plan.with_(spacing_mm=(2.0, 1.0, 1.0)),
        plan.with_(normalisation=(Normalisation("range"),)),
        plan.with_(labels=Labels((2,), ("lesion",))),
        plan.with_(prepare_extra=({"_target_": "monai.transforms.Flipd", "keys": "image"},)),
    ):
        assert cache_key(dataset, other) != cache_key(dataset, plan)
    assert cache_key(dataset, plan.with_(batch_size=7)) == cache_key(dataset, plan)
    assert cache_key(replace(dataset, labels=Labels.of({1: "node"})), plan) != cache_key(
        dataset, plan
    )


def test_an_error_leaves_what_was_made_and_no_half_entry(fill, asked, dataset, plan, tmp_path):
    def unmarked_at_last(case):
        return case if case.case != "c2" else Case(case.case, case.image)

    with pytest.raises(ContentError, match="c2"):  # without a reference
        fill(changed=unmarked_at_last, workers=1)
    asked.clear()
    fill()
    assert asked == ["c2"]
    folder = tmp_path / "cache" / cache_key(dataset, plan)
    assert len([*folder.glob("??/*")]) == 3
    assert not [*folder.glob("??/.*")]


def test_two_who_fill_one_cache_make_each_case_once(fill, asked):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: fill(workers=1), range(2)))
    assert sorted(asked) == ["c0", "c1", "c2"]
    assert [c.folder for c in both[0]] == [c.folder for c in both[1]]


def test_values_beyond_float16_are_held_at_its_end(fill, plan):
    def brightened(case):
        case.image.array[0, 0, 0, 0] = 1e9
        return case

    raw = plan.with_(normalisation=(Normalisation("dataset"),))
    assert fill(raw, brightened)[0].image[0, 0, 0, 0] == 65504


def test_places_to_teach_are_of_all_kinds(fill, plan):
    ignored = np.zeros((1, 512, 512), bool)
    ignored[0, 0, 0] = True
    geometry = Geometry.from_spacing(ignored.shape, (1, 1, 1))
    nothing = Reference(geometry, ignored.astype(np.uint8) * 0, None, (1,), ignore=ignored)
    image = Volume(np.zeros((1, 1, 512, 512), np.float32), geometry)
    seeds = np.array(
        fill(changed=lambda case: replace(case, image=image, reference=nothing))[0].valid_seeds
    )
    assert (np.histogram2d(*seeds[:, 1:].T, bins=4)[0] > 0).all()  # not on a diagonal


def test_an_entry_knows_where_to_teach_and_whether_a_lesion_has_parts(fill, plan):
    whole = fill()[0]
    assert (whole.is_mixed, whole.valid_seeds) == (False, None)

    def with_parts(case):
        labels, ignore = case.reference.labels.copy(), np.zeros(GEOMETRY.shape, bool)
        ids, ignore[5:] = (labels > 0).astype(np.int32), True
        labels[2] *= 2
        return replace(case, reference=Reference(GEOMETRY, labels, ids, (1,), ignore=ignore))

    regions = plan.with_(labels=Labels((1, 2), ("a", "b"), ((1, 2), (2,))))
    cached = fill(regions, with_parts)[0]
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
    table = LesionIndex.of(instances, (1, 1, 2))
    again = LesionIndex.from_json(3, **json.loads(json.dumps(table.to_json())))
    for found in (table, again):
        places = found.seeds_of(0)[:, 2].astype(int)
        assert (len(places), places[0], places[-1], np.diff(places).max()) == (32, 20, 119, 4)
        assert found.seeds_of(1).tolist() == [[0, 0, 150], [0, 0, 151]]
        assert (found.ids.tolist(), found.labels.tolist()) == ([1, 3], [1, 2])
        assert found.voxels.tolist() == [100, 2]
        assert found.boxes.tolist() == [[0, 0, 20, 1, 1, 120], [0, 0, 150, 1, 1, 152]]
        assert found.label_of_id().tolist() == [0, 1, 0, 2]
    nothing = np.zeros((1, 1, 200), np.uint8)
    empty = LesionIndex.of(nothing.astype(np.int32), ())
    assert (len(empty), empty.boxes.shape, empty.label_of_id().tolist()) == (0, (0, 6), [0])
    with pytest.raises(ValueError, match="fit together"):
        LesionIndex.from_json(3, **{**table.to_json(), "labels": [1]})
