import dataclasses

import pytest

from lesionseg.errors import ConfigError
from lesionseg.evaluation import PRESETS, summarise
from lesionseg.evaluation.subgroups import divide_by
from tests.evaluation.test_scores import many

PRESET = PRESETS["lesionseg"]
CASES = [f"case{i}" for i in range(12)]
TABLE = {
    case: {"site": "AB"[i % 2], "age": str(20 + i), "id": case, "sex": "", "scanner": "one"}
    for i, case in enumerate(CASES)
}


def scores(by=None, results=None):
    return summarise(
        many() if results is None else results,
        PRESET,
        evaluated_on="test",
        replicates=20,
        columns=TABLE,
        subgroups=by,
    )


def test_every_dividing_column_is_taken_and_no_other():
    assert {row["by"] for row in scores()["subgroups"]} == {"site", "age"}


def test_a_subgroup_has_the_numbers_of_its_cases_alone():
    results = many()
    for row in scores(["site"], results)["subgroups"]:
        own = [r for r in results if TABLE[r.case]["site"] == row["value"]]
        alone = summarise(own, PRESET, evaluated_on="test", replicates=0)
        assert row["n_cases"] == len(own) == 6
        assert row["n_lesions"] == alone["n_lesions"]
        assert row["n_detected"] == alone["n_true_positive"]
        assert row["lesion_recall"] == alone["lesion_recall"]
        assert (
            row["false_positives_per_case"]["value"] == alone["false_positives_per_case"]["value"]
        )
        assert row["dice"] == pytest.approx(alone["dice"]["mean"])


def test_subgroups_of_a_column_hold_every_case_once():
    for name in ("site", "age", "sex", "id"):
        groups = divide_by(CASES, TABLE, name)
        assert sorted(case for members in groups.values() for case in members) == sorted(CASES)


def test_numbers_are_divided_into_quantiles_and_empty_cells_stand_apart():
    table = {**TABLE, "case11": {"age": ""}}
    groups = divide_by(CASES, table, "age")
    assert [len(members) for members in groups.values()] == [3, 2, 3, 3, 1]
    assert next(iter(groups)) == "20 to 22.5"
    assert list(groups)[-1] == "not stated"
    assert list(divide_by(CASES, TABLE, "sex")) == ["not stated"]


def test_columns_that_are_not_there_or_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="sight"):
        scores(["sight"])
    crowd = [f"case{i}" for i in range(30)]
    with pytest.raises(ConfigError):
        divide_by(crowd, {c: {"id": c} for c in crowd}, "id")


def test_thick_and_thin_slices_are_subgroups_without_any_table():
    results = [
        dataclasses.replace(r, slice_spacing_mm=mm)
        for r, mm in zip(many(), [1.0] * 6 + [5.0] * 6, strict=True)
    ]
    found = summarise(results, PRESET, evaluated_on="test", replicates=0)["subgroups"]
    assert [(row["by"], row["value"]) for row in found] == [
        ("slice_spacing_mm", "1"),
        ("slice_spacing_mm", "5"),
    ]
    assert sum(row["n_lesions"] for row in found) == sum(len(r.lesions) for r in results)
    stated = {r.case: {"slice_spacing_mm": "thin"} for r in results}
    found = summarise(results, PRESET, evaluated_on="test", replicates=0, columns=stated)
    assert found["subgroups"] == []  # what a table says goes first
