"""Sections by patient, by scan and of the lesion load."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lesionseg.errors import ContentError
from lesionseg.evaluation.rows import CaseRow
from lesionseg.report import text, write_report
from lesionseg.report.figures.detail_figures import draw_load, draw_patients, sum_patients
from lesionseg.report.figures.froc_figure import froc_curve
from lesionseg.report.result_tables import Tables, read_tables
from lesionseg.report.sections.clinical_sections import make_clinical_sections
from lesionseg.report.text import clinical_words as words
from lesionseg.report.write import Options
from tests.report.conftest import Evaluation


def number(value: float | None, *ends: float) -> dict[str, Any]:
    return {"value": value, "ci95": list(ends) or None, "reason": "few"}


NUMBERS: dict[str, Any] = {
    "case_table": {
        "true_positive": 7,
        "false_negative": 1,
        "false_positive": 2,
        "true_negative": 11,
        "predictive_values": [
            {"prevalence": 0.01, "ppv": number(0.05, 0.02, 0.2), "npv": number(0.999, 0.99, 1.0)},
            {"prevalence": 0.5, "ppv": number(0.86), "npv": number(None)},
        ],
    },
    "lesion_load": {
        key: {
            "n": 3,
            "bias": number(-1.0, -2.0, 0.5),
            "lower_limit": number(-3.0, -5.0, -2.0),
            "upper_limit": number(1.0, 0.0, 3.0),
            "icc": number(0.9, 0.7, 0.97),
        }
        for key in ("volume_ml", "n_lesions")
    },
}


@pytest.fixture
def tables(evaluation: Evaluation, tmp_path: Path) -> Tables:
    evaluation.changes = NUMBERS
    return read_tables(evaluation.write(tmp_path / "s"))


def test_the_page_has_the_sections_and_links_them(tables: Tables, tmp_path: Path) -> None:
    page = write_report(tables.folder, tmp_path / "out").read_text()
    for key in ("patients", "scans", "load"):
        assert f'<section id="{key}">' in page
        assert f'<a href="#{key}">' in page
    for said in ("5\xa0% (2 to 20\xa0%)", "<td>86\xa0%</td>", "not defined: few"):
        assert said in page
    assert "-1.00 (95 % CI -2.00 to 0.50)" in page


def test_an_evaluation_without_the_numbers_has_the_patients_alone(scores_dir: Path) -> None:
    sections = make_clinical_sections(read_tables(scores_dir))
    assert [one.key for one in sections] == ["patients"]


def test_scans_of_a_patient_are_summed_and_the_heaviest_comes_first(tables: Tables) -> None:
    rows = tables.cases
    together = [replace(row, group="p", n_lesions=2, n_detected=1) for row in rows[:2]]
    alone = replace(rows[2], group="q", n_lesions=1, n_detected=1)
    patients = sum_patients([alone, *together])
    assert [(one.name, one.n_scans, one.n_lesions, one.n_detected) for one in patients] == [
        ("p", 2, 4, 2),
        ("q", 1, 1, 1),
    ]
    sentence = make_clinical_sections(replace(tables, cases=(alone, *together)))[0].sentences[0]
    assert "All lesions were found in 1 of 2 patients with lesions, no lesion in 0." in sentence
    assert text.percent(0.8) in sentence


def test_dots_and_lines_are_drawn(tables: Tables) -> None:
    figure = Figure()
    patients = sum_patients(tables.cases)
    draw_patients(figure, patients)
    shares, counts, false = figure.axes
    assert len(shares.lines[0].get_xdata()) == sum(one.n_lesions > 0 for one in patients)
    assert len(counts.lines[0].get_xdata()) == len(false.lines[0].get_xdata()) == len(patients)
    figure = Figure()
    cases = [replace(row, reference_ml=2.0, predicted_ml=3.0) for row in tables.cases]
    draw_load(figure, cases, {"bias": 1.0, "lower_limit": None, "upper_limit": 2.0})
    assert set(figure.axes[0].lines[0].get_ydata()) == {1.0}
    assert len(figure.axes[0].lines) == 3


def test_an_acceptance_test_prints_pass_or_fail_with_its_hash(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    plan = tmp_path / "acceptance.yaml"
    row = "{{number: lesion_recall, at_least: {}, expected: 0.9}}"
    for limit, word in ((0.2, "pass"), (0.5, "fail")):
        plan.write_text(f"stated_on: 2025-03-01\ncriteria:\n  - {row.format(limit)}\n")
        scores = evaluation.write(tmp_path / "s")
        options = Options(acceptance=plan)
        page = write_report(scores, tmp_path / "out", options=options).read_text()
        assert f"Result: {word}." in page
        assert hashlib.sha256(plan.read_bytes()).hexdigest() in page
        assert f"at least {limit}" in page


def test_a_second_reader_stands_beside_the_model(evaluation: Evaluation, tmp_path: Path) -> None:
    sizes = evaluation.scores()["recall_by_size"]
    halves = [
        {"from_mm": low, "to_mm": high, "n": 10, "detected": n, "recall": n / 10, "ci95": ends}
        for low, high, n, ends in ((0.0, 5.0, 3, [0.1, 0.6]), (5.0, None, 9, [0.6, 1.0]))
    ]
    evaluation.changes = {
        "second_reader": {
            "n_cases": 2,
            "lesion_recall": number(0.6, 0.4, 0.8),
            "false_positives_per_case": number(0.5, 0.2, 1.1),
            "recall_by_size": sizes,
            "recall_by_half": halves,
        }
    }
    tables = read_tables(evaluation.write(tmp_path / "s"))
    assert text.second_reader_sentence(tables.scores) == (
        "A second reader finds 90\xa0% (9/10; 95 % CI 60 to 100\xa0%) at ≥ 5 mm equivalent "
        "diameter, 30\xa0% (3/10; 95 % CI 10 to 60\xa0%) below, at 0.5 false positives per scan "
        "(95 % CI 0.2 to 1.1), on 2 of 3 scans."
    )
    page = write_report(tables.folder, tmp_path / "out").read_text()
    for said in (text.second_reader_sentence(tables.scores), *text.HEADINGS_READER, "Square:"):
        assert said in page
    figure = Figure()
    froc_curve(figure, tables.scores)
    square = next(line for line in figure.axes[0].lines if line.get_marker() == "s")
    assert (square.get_xdata(), square.get_ydata()) == ([0.5], [0.6])


def test_scans_of_one_kind_have_no_table_of_predictive_values(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    table = NUMBERS["case_table"]
    none = [{"prevalence": 0.01, "ppv": number(None), "npv": number(None)}]
    evaluation.changes = {**NUMBERS, "case_table": {**table, "predictive_values": none}}
    tables = read_tables(evaluation.write(tmp_path / "s"))
    scans = next(one for one in make_clinical_sections(tables) if one.key == "scans")
    assert len(scans.tables) == 1
    assert "PPV and NPV are not given" in scans.sentences[0]


def test_one_patient_is_said_in_the_singular() -> None:
    (one,) = sum_patients(
        [CaseRow(case="a", n_lesions=2, n_detected=1, n_missed=1, n_false_positive=0)]
    )
    assert words.patients_sentence([one]) == (
        "All lesions were found in 0 of 1 patient with lesions, no lesion in 0. "
        "No false positive in 1 of 1 patient."
    )


def test_other_scans_of_the_same_model_stand_beside(evaluation: Evaluation, tmp_path: Path) -> None:
    rates = {"lesion_recall": number(0.5, 0.4, 0.6), "case_sensitivity": number(None)}
    evaluation.changes = rates
    there = evaluation.write(tmp_path / "there")
    evaluation.changes = {**rates, "lesion_recall": number(0.8, 0.7, 0.9), "n_cases": 4}
    here = evaluation.write(tmp_path / "here")
    page = write_report(here, tmp_path / "out", options=Options(elsewhere=there)).read_text()
    table = page.split('<table id="elsewhere-1"')[1].split("</table>")[0]
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in table.split("</tr>")]
    cells = {row[0]: row[1:] for row in rows if row}
    assert cells["Scans"] == ["4", "3", ""]
    assert cells["Sensitivity, all lesions"][2] == "+0.30 (95 % CI +0.16 to +0.44)"
    assert not any("Scan-level sensitivity" in name for name in cells)  # not defined
    evaluation.changes = {"match_rule": "lesionseg 1"}
    options = Options(elsewhere=evaluation.write(tmp_path / "old"))
    with pytest.raises(ContentError, match="same rule"):
        write_report(here, tmp_path / "out", options=options)
