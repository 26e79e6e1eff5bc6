import csv
from pathlib import Path

from lesionseg.io.atomic import write_csv
from lesionseg.report.result_tables import Tables, read_tables
from lesionseg.report.sections.reader_sheets import COLUMNS, write_adjudication
from tests.report.conftest import Evaluation


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_false_positive_waits_for_a_verdict(scores_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "adjudicate.csv"
    assert write_adjudication(path, read_tables(scores_dir)) == 2
    rows = rows_of(path)
    assert [(row["case"], row["candidate"]) for row in rows] == [("c", "1"), ("b", "7")]
    assert [row["score"] for row in rows] == ["0.9", "0.7"]
    assert all(row["verdict"] == row["reader"] == row["comment"] == "" for row in rows)


def test_verdicts_of_a_person_are_never_lost(scores_dir: Path, tmp_path: Path) -> None:
    path, tables = tmp_path / "adjudicate.csv", read_tables(scores_dir)
    write_adjudication(path, tables)
    rows = rows_of(path)
    rows[0]["verdict"], rows[1]["comment"] = "lesion", "artefact?"
    gone = {**rows[0], "candidate": "99"}
    write_csv(path, [*rows, gone], COLUMNS)
    write_adjudication(path, tables)
    again = rows_of(path)
    assert [row["candidate"] for row in again] == ["1", "7", "99"]
    assert [row["verdict"] for row in again] == ["lesion", "", "lesion"]
    assert again[1]["comment"] == "artefact?"


def test_nothing_to_judge_leaves_no_file(tmp_path: Path) -> None:
    tables: Tables = read_tables(Evaluation().write(tmp_path / "s"))
    assert write_adjudication(tmp_path / "adjudicate.csv", tables) == 0
    assert not (tmp_path / "adjudicate.csv").exists()


def test_verdicts_in_the_columns_of_earlier_versions_are_kept(
    scores_dir: Path, tmp_path: Path
) -> None:
    path, tables = tmp_path / "adjudicate.csv", read_tables(scores_dir)
    (row,) = (row for row in tables.candidates if (row.case, row.candidate) == ("c", 1))
    box = [" ".join(f"{v:g}" for v in end) for end in (row.start_vox, row.stop_vox)]
    old = "case,candidate,start_vox,stop_vox,verdict\n"
    path.write_text(f"{old}c,1,{box[0]},{box[1]},lesion\n")
    write_adjudication(path, tables)
    assert [cells["verdict"] for cells in rows_of(path)] == ["lesion", ""]
