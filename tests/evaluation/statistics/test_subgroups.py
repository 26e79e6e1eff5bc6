import dataclasses

import numpy as np
import pytest

from lesionseg.core import Geometry, Reference
from lesionseg.errors import ConfigError
from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from lesionseg.evaluation.statistics.subgroups import dividing_columns, make_subgroups
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
    assert dividing_columns(CASES, TABLE) == ["site", "age"]
    assert {row["by"] for row in scores()["subgroups"]} == {"site", "age"}


def test_a_subgroup_has_the_numbers_of_its_cases_alone():
    results = many()
    for row in scores(["site"], results)["subgroups"]:
        own = [r for r in results if TABLE[r.case]["site"] == row["value"]]
        alone = summarise(own, PRESET, evaluated_on="test", replicates=0)
        assert row["n_cases"] == len(own) == 6
        assert row["n_lesions"] == alone["n_lesions"]
        assert row["detected"] == alone["n_true_positive"]
        assert row["recall"] == alone["lesion_recall"]["value"]
        assert row["ci95"] == alone["lesion_recall"]["ci95"]
        assert row["false_positives_per_case"] == alone["false_positives_per_case"]
        assert row["dice"] == pytest.approx(alone["dice"]["mean"])


def test_a_subgroup_is_set_against_all_other_lesions():
    few = many()
    more = [dataclasses.replace(r, case=f"{r.case}+", group=f"{r.group}+") for r in few]
    results, sites = [*few, *more], {f"{case}+": row for case, row in TABLE.items()}
    found = summarise(
        results, PRESET, evaluated_on="test", replicates=0, columns={**TABLE, **sites}
    )["subgroups"]
    rows = [row for row in found if row["by"] == "site"]
    assert rows[0]["recall_difference"] == pytest.approx(rows[0]["recall"] - rows[1]["recall"])
    assert rows[1]["recall_difference"] == -rows[0]["recall_difference"]
    low, high = rows[0]["difference_ci95"]
    assert rows[1]["difference_ci95"] == pytest.approx([-high, -low])
    assert all(row["difference_ci95"] is None for row in scores(["age"], few)["subgroups"])
    everyone = scores(["scanner"], few)["subgroups"]
    assert [row["recall_difference"] for row in everyone] == [None]


def test_subgroups_of_a_column_hold_every_case_once():
    for name in ("site", "age", "sex", "id"):
        groups = make_subgroups(CASES, TABLE, name)
        assert sorted(case for g in groups for case in g.members) == sorted(CASES)


def test_numbers_are_divided_into_quantiles_and_empty_cells_stand_apart():
    table = {**TABLE, "case11": {"age": ""}}
    groups = make_subgroups(CASES, table, "age")
    assert [len(g.members) for g in groups] == [3, 2, 3, 3, 1]
    assert groups[0].value == "20 to 22.5"
    assert groups[-1].value == "not stated"
    assert make_subgroups(CASES, TABLE, "sex")[0].value == "not stated"


def test_few_numbers_are_taken_as_words():
    table = {case: {"grade": str(1 + i % 3)} for i, case in enumerate(CASES)}
    assert [g.value for g in make_subgroups(CASES, table, "grade")] == ["1", "2", "3"]


def test_columns_that_are_not_there_or_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="has a column 'sight'"):
        scores(["sight"])
    crowd = [f"case{i}" for i in range(30)]
    with pytest.raises(ConfigError, match="30 different words"):
        make_subgroups(crowd, {c: {"id": c} for c in crowd}, "id")


def test_without_a_table_there_is_a_reason():
    found = summarise(many(), PRESET, evaluated_on="test", replicates=0)
    assert found["subgroups"] == []
    assert "table" in found["reasons"]["subgroups"]


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


@pytest.mark.parametrize(
    ("spacing_mm", "expected"), [((4.96, 0.8, 0.8), 5.0), ((1, 1, 1), 1.0), ((0.2, 0.2), None)]
)
def test_slice_spacing_is_the_largest_of_a_volume(spacing_mm, expected):
    grid = Geometry.from_spacing((4,) * len(spacing_mm), spacing_mm)
    reference = Reference(grid, np.zeros(grid.shape, np.uint8))
    result = evaluate_case(reference, None, PRESET, case="a")
    assert result.slice_spacing_mm == expected


def test_recall_in_cells_of_size_and_contrast():
    results = [
        dataclasses.replace(
            r,
            lesions=tuple(
                dataclasses.replace(x, contrast=c)
                for x, c in zip(r.lesions, (-0.5, 2.0, None), strict=False)
            ),
        )
        for r in many()
    ]
    cells = scores(results=results)["recall_by_size_and_contrast"]
    known = [x for r in results for x in r.lesions if x.contrast is not None]
    assert len(cells) == 5 * 3
    assert sum(cell["n"] for cell in cells) == len(known)
    low = [c for c in cells if (c["contrast_from"], c["contrast_to"]) == (0.0, 1.0)]
    assert sum(c["detected"] for c in low) == sum(x.detected for x in known if x.contrast == -0.5)
    assert cells[-1]["contrast_to"] is None
    assert scores()["recall_by_size_and_contrast"] == []


def test_sensitivity_and_specificity_of_cases_by_hand():
    results = many()
    found = scores()
    ill = [r for r in results if r.lesions]
    free = [r for r in results if not r.lesions]
    called = [any(c.accepted for c in r.candidates) for r in ill]
    clean = [not any(c.accepted for c in r.candidates) for r in free]
    assert found["case_sensitivity"]["value"] == pytest.approx(sum(called) / len(ill))
    assert found["case_specificity"]["value"] == pytest.approx(sum(clean) / len(free))
    assert (found["case_sensitivity"]["n"], found["case_specificity"]["n"]) == (9, 3)
    assert found["case_sensitivity"]["ci95"] is not None
    assert found["case_specificity"]["ci95"] is None  # three groups
