"""Facts of cases: read once, known until a file changes."""

import os
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Dataset
from lesionseg.errors import LesionsegError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.phantoms.head_mri import write_mri_phantoms
from lesionseg.pipeline.dataset import case_facts
from lesionseg.pipeline.dataset.case_facts import FactsFolder, KeptFacts, look_at_all
from lesionseg.plan.fingerprint import facts_of, voxels_per_case

OLD = 1_600_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("facts") / "data"
    write_mri_phantoms(root, 3, seed=0, lesion_free_share=0, shape=(40, 40, 40))
    return root


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Dataset:
    root = tmp_path / "data"
    shutil.copytree(made, root)
    for file in root.rglob("*"):
        os.utime(file, (OLD, OLD))
    return read_dataset(root)


def refuse(*_: object) -> None:
    raise AssertionError("a known case was opened")


def same(one: KeptFacts, other: KeptFacts) -> bool:
    assert one.facts is not None
    assert other.facts is not None
    pairs = zip(asdict(one.facts).values(), asdict(other.facts).values(), strict=True)
    return one.source == other.source and all(np.array_equal(a, b) for a, b in pairs)


def test_what_is_known_is_not_read_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FactsFolder(tmp_path / "facts", dataset)
    first = [folder.look(files) for files in dataset.cases]
    monkeypatch.setattr(case_facts, "source_hash", refuse)
    again = FactsFolder(tmp_path / "facts", dataset)
    for files, facts in zip(dataset.cases, first, strict=True):
        known = again.known(files)
        assert known is not None
        assert same(known, facts)
        assert again.source(files) == facts.source


def test_facts_are_those_of_the_case(dataset: Dataset, tmp_path: Path) -> None:
    files = dataset.cases[0]
    case = read_case(files, dataset)
    assert case.reference is not None
    kept = FactsFolder(tmp_path / "facts", dataset).look(files)
    assert same(kept, KeptFacts(facts_of(case, case.reference), kept.source, kept.images))


def test_a_changed_file_is_read_again(dataset: Dataset, tmp_path: Path) -> None:
    folder = FactsFolder(tmp_path / "facts", dataset)
    files, other = dataset.cases[:2]
    before = folder.look(files)
    shutil.copy(other.images[0], files.images[0])
    os.utime(files.images[0], (OLD + 1, OLD + 1))
    assert folder.known(files) is None
    after = folder.look(files)
    assert before.source != after.source
    assert not same(before, after)


def test_a_file_of_this_second_is_not_relied_on(dataset: Dataset, tmp_path: Path) -> None:
    folder = FactsFolder(tmp_path / "facts", dataset)
    dataset.cases[0].images[0].touch()
    folder.look(dataset.cases[0])
    assert folder.known(dataset.cases[0]) is None


def test_another_reading_of_the_same_files_is_another_fact(
    dataset: Dataset, tmp_path: Path
) -> None:
    FactsFolder(tmp_path / "facts", dataset).look(dataset.cases[0])
    merged = FactsFolder(tmp_path / "facts", replace(dataset, merged_values=(1, 2)))
    assert merged.known(dataset.cases[0]) is None


@pytest.mark.parametrize("text", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_facts_are_read_again(dataset: Dataset, tmp_path: Path, text: bytes) -> None:
    folder = FactsFolder(tmp_path / "facts", dataset)
    before = folder.look(dataset.cases[0])
    (file,) = (tmp_path / "facts").rglob("*.safetensors")
    file.write_bytes(text)
    assert folder.known(dataset.cases[0]) is None
    assert same(folder.look(dataset.cases[0]), before)


def test_where_nothing_can_be_kept_cases_are_read(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "facts").write_text("a file")
    kept = FactsFolder(tmp_path / "facts", dataset).look(dataset.cases[0])
    assert same(kept, FactsFolder(None, dataset).look(dataset.cases[0]))


@pytest.mark.parametrize(("workers", "threshold"), [(1, 64), (2, 64), (2, 1)])
def test_any_number_of_workers_gives_the_same_in_order(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, workers: int, threshold: int
) -> None:
    monkeypatch.setattr(case_facts, "_CASES_FOR_PROCESSES", threshold)
    folder = FactsFolder(None, dataset)
    dataset.cases[1].images[0].write_bytes(b"no scan")
    found = list(look_at_all(folder, dataset.cases, 100, workers))
    assert isinstance(found[1], LesionsegError)
    for i in (0, 2):
        kept, alone = found[i], folder.look(dataset.cases[i])
        assert isinstance(kept, KeptFacts)
        assert alone.facts is not None
        assert same(kept, KeptFacts(alone.facts.thinned(100), alone.source, alone.images))


def test_samples_of_many_cases_stay_within_bounds() -> None:
    assert voxels_per_case(0) == voxels_per_case(512) == 8192
    assert voxels_per_case(10**6) == 64


def test_what_travels_to_a_process_does_not_grow_with_the_cases(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Each share of cases carries it: a list of all of them would make a first start quadratic."""
    many = replace(dataset, cases=dataset.cases * 100)
    sizes = [len(pickle.dumps(FactsFolder(tmp_path, d).alone())) for d in (dataset, many)]
    assert sizes[0] == sizes[1]
