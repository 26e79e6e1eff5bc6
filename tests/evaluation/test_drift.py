"""Drift of a model in use: values by hand, ties, several models, and cases that are gone."""

from dataclasses import replace
from datetime import date, timedelta

import pytest

from lesionseg.evaluation.drift import N_EXTREMES, N_FIRST, WatchedValue, watch
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow, row_fields
from lesionseg.io.text import write_json


def make_rows(scores, model="m1", begin=0):
    """Make a row for each input score, one per day from 2026-01-01 on."""
    rows = []
    for number, score in enumerate(scores, start=begin):
        day = date(2026, 1, 1) + timedelta(number)
        row = CaseRow(f"c{number:03d}", status="done", bundle=model, digest=f"d{number}")
        rows.append(replace(row, acquired=str(day), input_score=score, n_accepted=2))
    return rows


def write_rows(folder, rows):
    """Write the candidate file of each row."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        write_json(folder / f"{row.case}_candidates.json", {**row_fields(row), "candidates": []})


FIRST = [*[0.01] * N_EXTREMES, 1, 2, *[99] * N_EXTREMES]  # the usual range is 1 to 2


def find_runs(scores, first, in_a_row):
    """Find the drifts of scores that follow first ones."""
    rows = make_rows([*first, *scores])
    value = WatchedValue("input_score", rows, [row.case for row in rows[: len(first)]])
    return value.find_drifts(in_a_row)


@pytest.mark.parametrize(
    ("later", "runs"),
    [
        ([3, 4, 5], [[3, 4, 5]]),
        ([3, 4, 2, 5], []),  # 2 is within the range
        ([0, 0, 0], [[0, 0, 0]]),
        ([3, 3, 0, 3], []),  # both sides
        ([3, 3, 3, 1.5, 0.5, 0.5, 0.5, 0.5], [[3, 3, 3], [0.5] * 4]),
        ([3, None, 3, 3], [[3, 3, 3]]),
    ],
)
def test_drift_is_a_number_of_scans_in_a_row_on_one_side_of_the_usual_range(later, runs):
    drifts = find_runs([1, *later], FIRST, in_a_row=3)
    assert [[row.input_score for row in drift.rows] for drift in drifts] == runs


def test_sentence_states_number_days_value_and_range():
    (drift,) = find_runs([1, *[2.5] * 9], FIRST, in_a_row=9)
    assert drift.sentence == (
        "9 scans in a row, 2026-01-12 to 2026-01-20: the difference from the training scans "
        "(input_score) is above the usual range of the first scans, 1 to 2."
    )


@pytest.mark.parametrize("first", [[], [1] * 2 * N_EXTREMES])
def test_without_enough_first_scans_nothing_drifts(first):
    assert find_runs([1, 9, 9, 9], first, in_a_row=2) == []


def test_fewer_than_thirty_scans_are_not_compared(tmp_path):
    write_rows(tmp_path, make_rows([0.1] * (N_FIRST - 1)))
    assert [value.first for value in watch(PredictionFolder(tmp_path))] == [[], []]
    assert not (tmp_path / "first_scans.json").exists()


def test_each_model_is_compared_with_its_own_first_scans(tmp_path):
    new = make_rows([0.9] * N_FIRST, "m2", begin=N_FIRST)
    write_rows(tmp_path, [*make_rows([0.1] * N_FIRST), *new])
    scores, _, new_scores, _ = watch(PredictionFolder(tmp_path))
    assert (scores.low, scores.high) == (0.1, 0.1)
    assert (new_scores.low, new_scores.high) == (0.9, 0.9)
    assert scores.find_drifts() == new_scores.find_drifts() == []


def test_first_scans_are_the_first_by_day_and_stay_the_first(tmp_path):
    rows = make_rows([0.1] * N_FIRST, begin=10)
    write_rows(tmp_path, rows)
    watch(PredictionFolder(tmp_path))
    write_rows(tmp_path, make_rows([5.0] * 9))  # of earlier days, predicted later
    scores, _ = watch(PredictionFolder(tmp_path))
    assert [row.case for row in scores.first] == [row.case for row in rows]
    assert len(scores.find_drifts()) == 1


def test_first_scan_that_is_gone_is_not_replaced(tmp_path):
    rows = make_rows([0.1] * (N_FIRST + 5))
    write_rows(tmp_path, rows)
    watch(PredictionFolder(tmp_path))
    (tmp_path / f"{rows[3].case}_candidates.json").unlink()
    scores, _ = watch(PredictionFolder(tmp_path))
    assert [row.case for row in scores.first] == [
        row.case for row in rows[:N_FIRST] if row != rows[3]
    ]


def test_latest_model_is_the_last(tmp_path):
    write_rows(tmp_path, [*make_rows([0.1] * 2, "new", begin=5), *make_rows([0.1] * 3, "old")])
    models = [value.rows[0].bundle for value in watch(PredictionFolder(tmp_path))]
    assert models == ["old", "old", "new", "new"]
