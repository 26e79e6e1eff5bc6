"""Tables of two readers or models for the programs that analyse reader studies.

Ratings are scores: a lesion's the highest at which it is found, a scan's that of its highest
candidate. A reading without scores rates what it accepts 1, as a yes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lesionseg.io.atomic import write_csv
from lesionseg.report.inputs.result_tables import Tables

Readings = Mapping[str, Tables]  # by the name of the reader or model
TRUTH = ("CaseID", "LesionID", "Weight")
HITS = ("ReaderID", "ModalityID", "CaseID", "LesionID", "TP_Rating")
FALSE = ("ReaderID", "ModalityID", "CaseID", "FP_Rating")
SCANS = ("readerID", "caseID", "modalityID", "score")


def write_reader_study(folder: Path, readings: Readings) -> None:
    """Write TRUTH.csv, TP.csv and FP.csv of JAFROC's format, and imrmc.csv of iMRMC's.

    Each of JAFROC is a sheet of RJafroc's workbook (Chakraborty & Berbaum 2004), with cases and
    lesions numbered from 1 and lesion 0 for a scan without any; imrmc.csv has one score per scan
    (Gallas et al. 2009). The readers are one, the readings are modalities.
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
