"""Tables for others to work with: false positives to be judged, and two readers' studies."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.evaluation.readers.adjudication import AdjudicationRow
from lesionseg.evaluation.readers.reader_agreement import KEY_TABLE, SHEETS, KeyRow, SheetRow
from lesionseg.evaluation.rows import CandidateRow
from lesionseg.evaluation.table_row import read_table, write_table
from lesionseg.io.atomic import private_files, read_csv, write_csv
from lesionseg.report.result_tables import Tables

Readings = Mapping[str, Tables]  # by the name of the reader or model
TRUTH = ("CaseID", "LesionID", "Weight")
HITS = ("ReaderID", "ModalityID", "CaseID", "LesionID", "TP_Rating")
FALSE = ("ReaderID", "ModalityID", "CaseID", "FP_Rating")
SEED = 0
SCANS = ("readerID", "caseID", "modalityID", "score")


def write_reader_study(folder: Path, readings: Readings) -> None:
    """Write TRUTH.csv, TP.csv and FP.csv of JAFROC's format, and imrmc.csv of iMRMC's.

    Each of JAFROC is a sheet of RJafroc's workbook (Chakraborty & Berbaum 2004), with cases and
    lesions numbered from 1 and lesion 0 for a scan without any; imrmc.csv has one score per scan
    (Gallas et al. 2009). The readers are one, the readings are modalities. Ratings are scores: a
    lesion's the highest at which it is found, a scan's that of its highest candidate; a reading
    without scores rates what it accepts 1, as a yes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(readings.values()))
    numbers = {case.case: i for i, case in enumerate(first.cases, start=1)}
    _write(folder / "TRUTH.csv", TRUTH, _truth(first, numbers))
    _write(folder / "TP.csv", HITS, _hits(readings, numbers))
    _write(folder / "FP.csv", FALSE, _false(readings, numbers))
    _write(folder / "imrmc.csv", SCANS, _scans(readings, numbers))


Cells = tuple[object, ...]


def _write(path: Path, columns: Sequence[str], rows: Iterator[Cells]) -> None:
    write_csv(path, [dict(zip(columns, row, strict=True)) for row in rows], tuple(columns))


def _truth(tables: Tables, numbers: Mapping[str, int]) -> Iterator[Cells]:
    for case in tables.cases:
        lesions = [row for row in tables.lesions if row.case == case.case]
        if not lesions:
            yield numbers[case.case], 0, 0
        for at, _ in enumerate(lesions, start=1):
            yield numbers[case.case], at, 1 / len(lesions)


def _hits(readings: Readings, numbers: Mapping[str, int]) -> Iterator[Cells]:
    for name, tables in readings.items():
        seen: dict[str, int] = {}
        for row in tables.lesions:
            seen[row.case] = seen.get(row.case, 0) + 1
            rating = row.detected_at if row.detected_at is not None else 1.0 * row.detected
            if rating:
                yield 1, name, numbers[row.case], seen[row.case], rating


def _false(readings: Readings, numbers: Mapping[str, int]) -> Iterator[Cells]:
    for name, tables in readings.items():
        for row in tables.candidates:
            if (row.outcome_any or row.outcome) == "false_positive":
                rating = 1.0 if row.score is None else row.score
                yield 1, name, numbers[row.case], rating


def _scans(readings: Readings, numbers: Mapping[str, int]) -> Iterator[Cells]:
    for case in next(iter(readings.values())).cases:
        yield "truth", numbers[case.case], "truth", int(case.n_lesions > 0)
    for name, tables in readings.items():
        called = {row.case for row in tables.candidates if row.accepted}
        for case in tables.cases:
            plain = int(case.case in called)
            yield 1, numbers[case.case], name, plain if case.case_score is None else case.case_score


_log = logging.getLogger(__name__)
COLUMNS = AdjudicationRow.columns()
# What a person fills in; nothing of it is ever overwritten.
FILLED = ("verdict", "reader", "comment")
# A candidate is the same one when all of these are.
SAME = ("case", "candidate", *(name for name in COLUMNS if name.endswith("_vox")))


def write_adjudication(path: Path, tables: Tables) -> int:
    """Write one row a false positive, by descending score; returns how many there are.

    Verdicts that a person has filled in before are kept: with their candidate, or below the others
    when it is no longer among them. No file is written where there is nothing to judge.
    """
    false = [row for row in tables.candidates if row.outcome == "false_positive"]
    false.sort(key=lambda row: (-(row.score or 0.0), row.case, row.candidate))
    left = {_identity(row): row for row in _filled(path)}

    def judged(row: CandidateRow) -> Mapping[str, Any]:
        cells = _row(row).to_csv()
        before = left.pop(_identity(cells), {})
        return {**cells, **{key: before.get(key, "") for key in FILLED}}

    if false or left:  # a row at a time: there may be a million
        write_csv(path, chain(map(judged, false), left.values()), COLUMNS)
    if left:
        _log.warning("%d verdicts in %s are of candidates no longer there; kept.", len(left), path)
    return len(false)


def write_blinded(folder: Path, tables: Tables, shown: Tables) -> list[CandidateRow]:
    """Write a key and, for two readers, a sheet each of all false positives in an order of its own.

    The sheets hold no score, and call cases as `shown` does, which is what the page shows. Returns
    the false positives by item, none where sheets have verdicts: then all stays as it is.
    """
    if any(row.verdict for name in SHEETS for row in _sheet(folder / name)):
        _log.warning("The sheets in %s have verdicts; all there is left as it is.", folder)
        return []
    rng = np.random.default_rng(SEED)
    false = [i for i, row in enumerate(tables.candidates) if row.outcome == "false_positive"]
    order = list(enumerate(rng.permutation(false).tolist(), start=1))
    key = [KeyRow(item=item, **vars(_row(tables.candidates[i]))) for item, i in order]
    lines = [_sheet_row(item, shown.candidates[i]) for item, i in order]
    folder.mkdir(parents=True, exist_ok=True)
    with private_files():  # who has it knows the scores
        write_table(folder / KEY_TABLE, key, KeyRow)
    for name in SHEETS:
        write_table(folder / name, [lines[i] for i in rng.permutation(len(lines))], SheetRow)
    return [shown.candidates[i] for _, i in order]


def _sheet(path: Path) -> tuple[SheetRow, ...]:
    return read_table(path, SheetRow) if path.is_file() else ()


def _sheet_row(item: int, row: CandidateRow) -> SheetRow:
    mm = round(row.diameter_mm, 1)
    return SheetRow(item=item, case=row.case, diameter_mm=mm, centre_mm=row.centre_mm)


def _filled(path: Path) -> list[Mapping[str, str]]:
    rows = map(AdjudicationRow.upgrade, read_csv(path)) if path.is_file() else ()
    kept = [{key: row.get(key, "") for key in COLUMNS} for row in rows]
    return [row for row in kept if any(row[key] for key in FILLED)]


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[key] or "") for key in SAME)


def _row(row: CandidateRow) -> AdjudicationRow:
    return AdjudicationRow(
        case=row.case,
        candidate=row.candidate,
        label=row.label,
        score=None if row.score is None else float(f"{row.score:.6g}"),
        diameter_mm=round(row.diameter_mm, 2),
        centre_mm=row.centre_mm,
        start_vox=row.start_vox,
        stop_vox=row.stop_vox,
        touches_lesion=row.touches_lesion,
    )
