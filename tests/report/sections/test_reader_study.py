"""The tables of a reader study hold every lesion, rating and false positive once."""

from dataclasses import replace
from pathlib import Path

from lesionseg.io.atomic import read_csv
from lesionseg.report import write_report
from lesionseg.report.result_tables import read_tables
from lesionseg.report.sections.reader_sheets import write_reader_study
from lesionseg.report.write import Options
from tests.report.conftest import Evaluation


def test_each_lesion_is_in_the_truth_and_each_found_one_has_a_rating(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    one = read_tables(evaluation.write(tmp_path / "one"))
    reader = replace(
        one,
        lesions=tuple(replace(row, detected_at=None) for row in one.lesions),
        candidates=tuple(replace(row, score=None) for row in one.candidates),
        cases=tuple(replace(row, case_score=None) for row in one.cases),
    )
    write_reader_study(tmp_path / "out", {"net": one, "reader": reader})
    truth = read_csv(tmp_path / "out" / "TRUTH.csv")
    assert sum(row["LesionID"] != "0" for row in truth) == len(one.lesions)
    assert {row["CaseID"] for row in truth} == {str(i + 1) for i in range(len(one.cases))}
    weights = [float(row["Weight"]) for row in truth if row["CaseID"] == truth[0]["CaseID"]]
    assert abs(sum(weights) - 1) < 1e-6 or weights == [0]
    hits = read_csv(tmp_path / "out" / "TP.csv")
    of_reader = [row for row in hits if row["ModalityID"] == "reader"]
    assert len(of_reader) == sum(row.detected for row in one.lesions)
    assert {float(row["TP_Rating"]) for row in of_reader} == {1.0}
    false = read_csv(tmp_path / "out" / "FP.csv")
    n_false = sum((r.outcome_any or r.outcome) == "false_positive" for r in one.candidates)
    assert len(false) == 2 * n_false
    scans = read_csv(tmp_path / "out" / "imrmc.csv")
    assert len(scans) == 3 * len(one.cases)
    ill = {row["caseID"] for row in scans if row["readerID"] == "truth" and row["score"] == "1"}
    assert ill == {row["CaseID"] for row in truth if row["LesionID"] != "0"}


def test_a_report_of_two_writes_them_without_real_names(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    folder = evaluation.write(tmp_path / "one")
    out = tmp_path / "out"
    write_report(folder, out, compare=folder, options=Options(names=("net", "reader")))
    assert {row["ModalityID"] for row in read_csv(out / "reader_study" / "TP.csv")} == {
        "net",
        "reader",
    }
    write_report(folder, tmp_path / "alone")
    assert not (tmp_path / "alone" / "reader_study").exists()
