import csv
from dataclasses import replace

from lesionseg.core import InputCheckResult
from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.tables import write_scores
from tests.evaluation.hand_cases import HAND_CASES, evaluated, make_prediction, make_reference


def tables(folder, results, labels=None):
    write_scores(folder, results, {}, labels)
    return [
        list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))
        for name in ("cases", "lesions", "candidates")
    ]


def test_a_line_for_each_result(tmp_path):
    results = [evaluated(c) for c in HAND_CASES]
    cases, lesions, candidates = tables(tmp_path, results, {1: "metastasis"})
    assert [row["case"] for row in cases] == [r.case for r in results]
    assert len(lesions) == sum(len(r.lesions) for r in results)
    assert len(candidates) == sum(len(r.candidates) for r in results)
    assert sum(int(row["n_detected"]) for row in cases) == sum(r.n_detected for r in results)
    first = lesions[0]
    assert (first["label"], first["detected"], first["volume_ml"]) == ("metastasis", "true", "")
    assert [first[f"start_{axis}_vox"] for axis in "zyx"] == ["", "1.0", "1.0"]
    assert [first[f"centre_{axis}_mm"] for axis in "xyz"] == ["1.5", "1.5", ""]
    assert tables(tmp_path, []) == [[], [], []]
    assert (tmp_path / "lesions.csv").read_text().startswith("case,group,lesion,label,diameter_mm")


def test_a_warning_of_the_scan_is_in_its_row(tmp_path):
    hand, said = HAND_CASES[0], InputCheckResult(2.5, "Another grid.")
    prediction = replace(make_prediction(hand), input=said)
    result = evaluate_case(make_reference(hand), prediction, PRESETS["lesionseg"], case="=a")
    (row,), *_ = tables(tmp_path, [result])
    assert (row["warning"], row["input_score"]) == ("Another grid.", "2.5")
    assert row["case"] == "'=a"  # no spreadsheet runs it
