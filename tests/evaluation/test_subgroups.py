from dataclasses import replace

import pytest

from lesionseg.errors import ConfigError
from lesionseg.evaluation.subgroups import divide_by
from tests.evaluation.test_scores import many, summarise

CASES = [f"case{i}" for i in range(12)]
TABLE = {
    case: {"site": "AB"[i % 2], "age": str(20 + i), "id": case, "sex": "", "scanner": "one"}
    for i, case in enumerate(CASES)
}


def test_every_dividing_column_gives_subgroups_with_the_numbers_of_their_cases_alone():
    results = many()
    found = summarise(results, columns=TABLE)["subgroups"]
    assert {row["by"] for row in found} == {"site", "age"}
    for row in summarise(results, columns=TABLE, subgroups=["site"])["subgroups"]:
        own = [r for r in results if TABLE[r.case]["site"] == row["value"]]
        alone = summarise(own)
        assert row["n_cases"] == len(own) == 6
        assert row["n_detected"] == alone["n_true_positive"]
        for name in ("n_lesions", "lesion_recall", "false_positives_per_case"):
            assert row[name] == alone[name]
        assert row["dice"] == pytest.approx(alone["dice"]["mean"])


def test_numbers_are_divided_into_quantiles_and_empty_cells_stand_apart():
    for name in ("site", "age", "sex", "id"):  # every case once
        members = divide_by(CASES, TABLE, name).values()
        assert sorted(case for own in members for case in own) == sorted(CASES)
    groups = divide_by(CASES, {**TABLE, "case11": {"age": ""}}, "age")
    assert [len(members) for members in groups.values()] == [3, 2, 3, 3, 1]
    assert (next(iter(groups)), list(groups)[-1]) == ("20 to 22.5", "not stated")
    assert list(divide_by(CASES, TABLE, "sex")) == ["not stated"]
    with pytest.raises(ConfigError, match="sight"):  # not there
        divide_by(CASES, TABLE, "sight")
    crowd = [f"case{i}" for i in range(30)]
    with pytest.raises(ConfigError):
        divide_by(crowd, {c: {"id": c} for c in crowd}, "id")


def test_thick_and_thin_slices_are_subgroups_without_any_table():
    spacings = [1.0] * 6 + [5.0] * 6
    results = [replace(r, slice_spacing_mm=mm) for r, mm in zip(many(), spacings, strict=True)]
    found = summarise(results)["subgroups"]
    assert [(row["by"], row["value"]) for row in found] == [("slice_spacing_mm", c) for c in "15"]
    assert sum(row["n_lesions"] for row in found) == sum(len(r.lesions) for r in results)
    stated = {r.case: {"slice_spacing_mm": "thin"} for r in results}
    assert summarise(results, columns=stated)["subgroups"] == []  # what a table says goes first
