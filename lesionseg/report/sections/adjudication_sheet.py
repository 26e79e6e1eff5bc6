"""adjudicate.csv: the false positives, for a person to say which of them are lesions."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lesionseg.evaluation.adjudication import AdjudicationRow
from lesionseg.evaluation.rows import CandidateRow
from lesionseg.io.atomic import read_csv, write_csv
from lesionseg.report.inputs.result_tables import Tables

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
    rows = [_row(row) for row in false]
    before = {_identity(row): row for row in _filled(path)}
    for row in rows:
        row.update({key: before.get(_identity(row), {}).get(key, "") for key in FILLED})
    left = [row for key, row in before.items() if key not in {_identity(row) for row in rows}]
    if left:
        _log.warning("%d verdicts in %s are of candidates no longer there; kept.", len(left), path)
    if rows or left:
        write_csv(path, [*rows, *left], COLUMNS)
    return len(rows)


def _filled(path: Path) -> list[Mapping[str, str]]:
    rows = map(AdjudicationRow.upgrade, read_csv(path)) if path.is_file() else ()
    kept = [{key: row.get(key, "") for key in COLUMNS} for row in rows]
    return [row for row in kept if any(row[key] for key in FILLED)]


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[key] or "") for key in SAME)


def _row(row: CandidateRow) -> dict[str, Any]:
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
    ).to_csv()
