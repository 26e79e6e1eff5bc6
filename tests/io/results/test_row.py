"""Case files: what they state of a scan, with any number of candidates, and failures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.errors import ContentError
from lesionseg.io.results import row as row_module
from lesionseg.io.results.case import write_candidates
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow, failed_file, read_failures, read_row, write_failures
from lesionseg.io.text import read_json, write_json

GRID = Geometry.from_spacing((4, 5, 6), (1, 1, 1))
ROW = CaseRow(
    "a",
    status="warned",
    n_candidates=2,
    n_accepted=0,
    volume_ml=0.0,
    key="k",
    warning='Unlike: "candidates": [',
    path="p/a.nii",
    series_uid="1.2",
    digest="d",
    amounts={"count_lesion": 0},
)


def make_prediction(n):
    one = Candidate.from_voxels(1, 1, 0.5, np.zeros((1, 3), np.int64), GRID)
    candidates = tuple(replace(one, id=number) for number in range(1, n + 1))
    return Prediction("a", GRID, candidates, None)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a_candidates.json"


@pytest.mark.parametrize("n", [0, 3])
def test_row_of_a_case_file_is_what_was_written(file, n, monkeypatch):
    of_run = {"seconds": 2.5, "peak_memory_mb": 7, "state": "s", "finished": "now"}
    write_candidates(file, make_prediction(n), row=replace(ROW, **of_run))
    content = read_json(file)
    assert content["source"] == {"digest": "d", "series_uid": "1.2"}
    assert not {*of_run, "digest", "key"} & content["row"].keys()
    monkeypatch.setattr(row_module, "read_json", lambda _: pytest.fail("the candidates are read"))
    assert read_row(file) == ROW


def test_row_of_a_file_with_another_order_of_keys_is_the_same(file):
    write_candidates(file, make_prediction(3), names="nnunet", row=ROW)
    content = read_json(file)
    file.write_text(json.dumps(dict(reversed(content.items())), indent=1))
    assert read_row(file) == replace(ROW, names="nnunet")


def test_file_of_another_program_states_no_scan(file):
    file.write_text('{"candidates": []}')
    assert read_row(file) == CaseRow("a")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"row": {"n_candidates": "many"}}, "n_candidates: many must be"),
        ({"source": {"digest": [1]}}, "digest: "),
        ({"key": 3}, "key: 3 must be text"),
        ({"names": "mine"}, "names: mine must be"),
        ({"row": ["status"]}, "row or source"),
        ({"source": 1}, "row or source"),
    ],
)
def test_wrong_key_of_a_row_is_named(content, named, file):
    write_json(file, {"candidates": [], **content})
    with pytest.raises(ContentError, match=rf"a_candidates.json: {named}.* predict the case again"):
        read_row(file)


def test_failures_of_one_id_survive_a_round_trip_and_end_one_by_one(tmp_path):
    results = PredictionFolder(tmp_path)
    first = CaseRow("a", status="failed", message="cut", path="a.nii", digest="1", finished="t")
    clash = replace(first, path="a.mha", digest="2")
    # another file at the path of the first one
    other = replace(first, key=CaseRow.CONFLICT, digest="3")
    for row in (first, clash, other):
        results.update_failures(row)
    assert PredictionFolder(tmp_path).failures("a") == [clash, other]
    for done, left in ((first, [clash, other]), (replace(other, key="k"), [clash])):
        results.update_failures(replace(done, status="done"))
        assert results.failures("a") == left
    results.forget_failures(lambda row: row.digest == "2")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("case", ["../a", "a\nb", "x" * 300])
def test_failures_of_an_id_that_cannot_be_a_file_name_are_recorded(tmp_path, case):
    file = failed_file(tmp_path, case)
    row = CaseRow(case, status="failed", message="no id")
    write_failures(file, [row])
    assert file.parent == tmp_path
    assert read_failures(file) == [row]
    file.write_text("{")  # damaged
    assert read_failures(file) == []


@pytest.mark.parametrize(
    ("acquired", "finished", "day"),
    [
        ("2026-01-07", "2026-03-02T02:15:00+01:00", "2026-01-07"),
        ("", "2026-03-02T02:15:00+01:00", "2026-03-02"),
        ("spring", "2026-03-02T02:15:00+01:00", "2026-03-02"),
        ("", "", ""),
    ],
)
def test_day_is_that_of_the_acquisition_otherwise_of_the_prediction(acquired, finished, day):
    assert CaseRow("a", acquired=acquired, finished=finished).day == day
