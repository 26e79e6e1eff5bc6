"""facts.json: a case is read once, and again after one of its files has changed."""

import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from threading import Barrier, Lock

import numpy as np
import pytest

from lesionseg.core import Labels
from lesionseg.data import case_statistics
from lesionseg.data.case_statistics import STATISTICS_FILE, read_records
from lesionseg.errors import DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.io.text import read_json
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan.fingerprint import measure_case

OLD = 1_600_000_000


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Write three simulated scans."""
    root = tmp_path_factory.mktemp("scans")
    write_mri_phantoms(root, 3, seed=0, lesion_free_share=0, shape=(40, 40, 40), n_lesions=(2, 4))
    return root


@pytest.fixture
def dataset(scans, tmp_path):
    """Copy the scans, so that a test may change them. Their files have an old date."""
    root = tmp_path / "data"
    shutil.copytree(scans, root)
    for file in root.rglob("*"):
        os.utime(file, (OLD, OLD))
    return read_dataset(root)


@pytest.fixture
def read(dataset, tmp_path):
    return partial(read_records, dataset, tmp_path / "facts", lambda *_: None)


def read_entries(dataset, folder):
    """Read the entries of facts.json by case."""
    stored = read_json(folder / "facts" / STATISTICS_FILE)
    images = {files.case: str(files.images[0]) for files in dataset.cases}
    return {case: stored[image] for case, image in images.items() if image in stored}


def check_equal(records, others):
    """Check that the records of the cases in `records` are those in `others`."""
    for case, (statistics, source) in records.items():
        other, other_source = others[case]
        np.testing.assert_equal(asdict(statistics), asdict(other))
        assert source == other_source


def test_records_are_remembered_until_a_file_changes(dataset, read, monkeypatch):
    first = read()
    case = read_case(dataset.cases[0], dataset)
    stated = (measure_case(case, case.reference), first[case.case][1])
    check_equal({case.case: stated}, first)
    with monkeypatch.context() as patch:
        patch.setattr(case_statistics, "read_case", lambda *_: 1 / 0)
        check_equal(first, read())
    files, _, bad = dataset.cases
    files.images[0].write_bytes(bytes(files.images[0].stat().st_size))
    os.utime(files.images[0], (OLD, OLD))  # the size and the date of before
    bad.images[0].write_bytes(b"no scan")
    with pytest.raises(DatasetError, match="2 cases cannot be used"):
        read()


def test_copied_files_are_read_again_but_keep_their_source(dataset, read):
    """Prepared cases are found by the source, so they are not made again."""
    first = read()
    for files in dataset.cases:
        copy = shutil.copy2(files.images[0], files.images[0].with_suffix(".copy"))
        copy.replace(files.images[0])
    check_equal(first, read())


def test_entries_of_new_files_and_of_other_labels_are_not_used(dataset, read, tmp_path):
    dataset.cases[0].images[0].touch()
    read()
    before = read_entries(dataset, tmp_path)
    assert set(before) == {c.case for c in dataset.cases[1:]}
    merged = replace(dataset, labels=Labels((1, 2), ("a", "b")).merge())
    read_records(merged, tmp_path / "facts", lambda *_: None)
    assert all(read_entries(dataset, tmp_path)[case] != entry for case, entry in before.items())


@pytest.mark.parametrize("text", ["", "no JSON", "[1]"])
def test_cases_are_read_again_if_the_file_is_damaged_or_cannot_be_written(
    dataset, read, tmp_path, text
):
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / STATISTICS_FILE).write_text(text)
    first = read()
    (tmp_path / "file").write_text("a file")
    check_equal(first, read_records(dataset, tmp_path / "file", lambda *_: None))
    assert len(read_entries(dataset, tmp_path)) == 3


def test_interrupted_reading_keeps_the_entries_of_finished_cases(dataset, tmp_path):
    def interrupt(case, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_records(dataset, tmp_path / "facts", interrupt)
    assert dataset.cases[0].case in read_entries(dataset, tmp_path)


@pytest.mark.parametrize("budget", [1, 2**40])
def test_cases_are_read_together_only_if_they_fit_into_memory(read, monkeypatch, budget):
    """The first case shows how much memory a case needs, so it is always read alone."""
    fits = budget > 1
    together = Barrier(2)
    n_reading = Counter()
    maximum = []
    lock = Lock()

    def read_slowly(files, dataset):
        with lock:
            is_first = not maximum
            n_reading["now"] += 1
            maximum.append(n_reading["now"])
        if fits and not is_first:
            together.wait(timeout=600)  # an error if the two are not read at the same time
        case = read_case(files, dataset)
        time.sleep(0.05)  # for further cases to begin
        with lock:
            n_reading["now"] -= 1
        return case

    monkeypatch.setattr(case_statistics, "cores", lambda: 3)
    monkeypatch.setattr(case_statistics, "default_budget", lambda: budget)
    monkeypatch.setattr(case_statistics, "read_case", read_slowly)
    assert len(read()) == 3
    assert max(maximum) == (2 if fits else 1)
