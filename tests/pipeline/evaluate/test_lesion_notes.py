"""A user's table of lesions: what it divides by, and lines that are about none."""

import csv

import pytest

from lesionseg.errors import DatasetError
from lesionseg.pipeline.evaluate.recipe import evaluate
from tests.pipeline.evaluate.test_evaluate_recipe import folders, rows

__all__ = ["folders"]  # a fixture


def written(folder, name, *lines):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def test_sensitivity_by_what_a_table_says_of_each_lesion(folders, tmp_path):
    first = evaluate(*folders, replicates=20).scores
    lines = rows(folders[2] / "lesions.csv")
    places = {("a", "1"): "left", ("a", "2"): "right", ("b", "1"): "left", ("b", "3"): "right"}
    for row in lines:  # a copy of lesions.csv with one column more; a lesion is not stated
        row["location"] = places.get((row["case"], row["lesion"]), "")
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    found = evaluate(*folders, replicates=20, lesion_columns=tmp_path / "mine.csv").scores
    groups = {g["value"]: g for g in found["subgroups"]}
    assert {g["by"] for g in groups.values()} == {"location"}
    naive = {
        place: [r["detected"] == "true" for r in lines if (r["location"] or "not stated") == place]
        for place in groups
    }
    assert {k: (g["n_lesions"], g["detected"]) for k, g in groups.items()} == {
        k: (len(v), sum(v)) for k, v in naive.items()
    }
    assert sum(g["n_lesions"] for g in groups.values()) == first["n_lesions"]
    assert groups["left"]["n_cases"] == 2
    assert groups["left"]["false_positives_per_case"] is groups["left"]["dice"] is None
    assert groups["left"]["reason"] == "fewer than 5 groups are too few for an interval"


def test_a_lesion_may_be_named_by_its_centre(folders, tmp_path):
    evaluate(*folders, replicates=20)
    heads = ("centre_x_mm", "centre_y_mm", "centre_z_mm")
    lines = [
        ",".join([r["case"], *(f"{float(r[h]) + 0.4:g}" for h in heads), "yn"[i % 2]])
        for i, r in enumerate(rows(folders[2] / "lesions.csv"))
    ]
    table = written(tmp_path, "t.csv", ",".join(["case", *heads, "enhancing"]), *lines)
    found = evaluate(*folders, replicates=20, lesion_columns=table, subgroups=["enhancing"])
    assert [g["n_lesions"] for g in found.scores["subgroups"]] == [2, 3]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("case,lesion,site", "a,1,left", "z,1,left"), "line 3"),
        (("case,lesion,site", "a,7,left"), "a lesion of the case: 1, 2"),
        (("case,lesion,site", "c,1,left"), "has no lesion"),
        (("case,lesion,site", "a,1,left", "a,1,right"), "line 3"),
        (("case,lesion,site", "a,one,left"), "line 2"),
        (("case,centre_x_mm,centre_y_mm,centre_z_mm,site", "a,90,0,0,left"), "centre"),
        (("case,lesion,diameter_mm", "a,1,4"), "more columns"),
        (("case,site", "a,left"), "lesion"),
    ],
)
def test_lines_about_no_lesion_are_refused(folders, tmp_path, lines, said):
    table = written(tmp_path, "t.csv", *lines)
    with pytest.raises(DatasetError, match=said):
        evaluate(*folders, replicates=20, lesion_columns=table)
    assert not (folders[2] / "scores.json").exists()
