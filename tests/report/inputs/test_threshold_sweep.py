import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lesionseg.evaluation.statistics.detection import ThresholdSweep
from lesionseg.report.result_tables import read_tables
from lesionseg.report.sections import optional_sections
from lesionseg.report.sections.optional_sections import slider_json
from tests.report.conftest import Blob, Evaluation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lesions and false positives of many scores on three scans."""
    rng = np.random.default_rng(0)
    place = (20, 60, 50)
    lesions = [
        Blob("ab"[i % 2], i + 1, place, float(rng.uniform(1, 30)), bool(s > 0.5), float(s))
        for i, s in enumerate(rng.random(40))
    ]
    false = [Blob("abc"[i % 3], 50 + i, place, 4.0, score=float(rng.random())) for i in range(30)]
    return Evaluation(lesions, false).write(tmp_path)


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def sweep_of(folder: Path) -> ThresholdSweep:
    sweep = read_tables(folder).sweep
    assert sweep is not None
    return sweep


def test_every_threshold_equals_the_columns_counted_one_by_one(folder: Path) -> None:
    sweep = sweep_of(folder)
    lesions, marks = read(folder, "lesions.csv"), read(folder, "candidates.csv")
    for threshold in sweep.observed:
        found = [x for x in lesions if x["detected_at"] and float(x["detected_at"]) >= threshold]
        false = [
            m
            for m in marks
            if m["outcome_any"] == "false_positive" and float(m["score"]) >= threshold
        ]
        assert sweep.n_detected(threshold) == len(found)
        assert sweep.n_false_positive(threshold) == len(false)


def test_operating_point_gives_the_numbers_of_the_scores(folder: Path) -> None:
    sweep, scores = sweep_of(folder), json.loads((folder / "scores.json").read_text())
    start = json.loads(slider_json(read_tables(folder)))["start"]
    assert start == scores["operating_point"]["score"]
    assert sweep.n_detected(start) == scores["n_true_positive"]


def test_curve_rises_from_nothing_and_never_falls(folder: Path) -> None:
    rates, recall = sweep_of(folder).curve()
    assert (rates[0], recall[0]) == (0, 0)
    assert (np.diff(rates) >= 0).all()
    assert (np.diff(recall) >= 0).all()
    assert rates[-1] == 30 / 3


def test_script_gets_numbers_to_the_last_digit_and_no_markup(folder: Path) -> None:
    sweep = sweep_of(folder)
    columns = slider_json(read_tables(folder))
    content = json.loads(columns)
    assert "<" not in columns
    assert [-np.inf if x[0] is None else x[0] for x in content["lesions"]] == [*sweep.detected_at]
    assert content["false"] == [*sweep.false_score]
    assert content["free_cases"] == 1


@pytest.mark.parametrize(
    "changes", [{"operating_point": {"score": None}}, {"operating_point": None}]
)
def test_no_sweep_without_an_operating_point(tmp_path: Path, changes: dict[str, object]) -> None:
    one = Evaluation([Blob("a", 1, (9, 9, 9), 4.0)], changes=changes)
    tables = read_tables(one.write(tmp_path))
    assert tables.sweep is None
    assert slider_json(tables) == ""


def test_the_page_does_not_carry_more_than_it_should(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional_sections, "MOST_MOVED", 10)
    assert slider_json(read_tables(folder)) == ""


def test_no_sweep_without_lesions(tmp_path: Path) -> None:
    assert read_tables(Evaluation().write(tmp_path)).sweep is None
