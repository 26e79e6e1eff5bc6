import csv
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.report.inputs.origin import make_pseudonyms, names_in, rename
from lesionseg.report.result_tables import read_tables
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Evaluation

REAL = {"a": "PAT0815_visit2", "b": "MEIER_1961", "c": "19990101-77"}


@pytest.fixture
def named(evaluation: Evaluation, tmp_path: Path) -> Path:
    """The same evaluation with names that tell something, and an origin with paths and hashes."""
    evaluation.cases = tuple(REAL[case] for case in evaluation.cases)
    evaluation.lesions = [replace(b, case=REAL[b.case]) for b in evaluation.lesions]
    evaluation.false_positives = [replace(b, case=REAL[b.case]) for b in evaluation.false_positives]
    origin = {
        "data_sha256": hashlib.sha256(b"scans").hexdigest(),
        "git_commit": "0123456789ab",
        "root": "/oldtown/archive",
        "reader": {"folder": "C:\\oldtown\\reader"},
    }
    evaluation.changes = {"provenance": origin, "missing_predictions": [REAL["c"]]}
    return evaluation.write(tmp_path / "scores")


def test_page_names_no_case_no_path_and_no_hash(named: Path, tmp_path: Path) -> None:
    page = write_report(named, tmp_path / "out").read_text()
    words = re.sub(r"data:image/[^\"']*", "", page)
    for name in REAL.values():
        assert name not in words
        assert hashlib.sha256(name.encode()).hexdigest() not in words
        assert hashlib.md5(name.encode()).hexdigest() not in words
    assert "oldtown" not in words
    assert str(tmp_path) not in words
    assert not re.search(r"\b[0-9a-f]{32,}\b", words)
    assert "0123456789ab" in words, "the version of the program names nobody"
    assert "case 2" in words


def test_mapping_lies_beside_the_page_in_table_order(named: Path, tmp_path: Path) -> None:
    write_report(named, tmp_path / "out")
    with (tmp_path / "out" / "pseudonyms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pseudonym"] for row in rows] == ["case 1", "case 2", "case 3"]
    assert [row["case"] for row in rows] == list(REAL.values())
    assert rows[1]["patient_pseudonym"] == "patient 2"
    assert rows[1]["group"] == "group MEIER_1961"


def test_real_names_are_printed_when_asked_for(named: Path, tmp_path: Path) -> None:
    page = write_report(named, tmp_path / "out", options=Options(identifiers=True)).read_text()
    assert all(name in page for name in REAL.values())
    assert not (tmp_path / "out" / "pseudonyms.csv").exists()


def test_name_in_a_title_is_warned_about(
    named: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_report(named, tmp_path / "out", options=Options(title="Follow-up of MEIER_1961"))
    assert "The page names MEIER_1961" in caplog.text


def test_renamed_tables_can_be_led_back(named: Path) -> None:
    tables = read_tables(named)
    names = make_pseudonyms(tables)
    shown = rename(tables, names)
    assert [names.real_case(row.case) for row in shown.cases] == [row.case for row in tables.cases]
    assert {row.case for row in shown.lesions} <= set(names.cases.values())
    assert names_in("case 1 and PAT0815_visit2x", names) == ()
