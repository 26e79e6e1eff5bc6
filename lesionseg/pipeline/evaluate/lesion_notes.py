"""A user's table with a row per reference lesion: what is known of it beside its size."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lesionseg.errors import DatasetError
from lesionseg.evaluation import CaseResult
from lesionseg.evaluation.results import LesionResult
from lesionseg.evaluation.rows import LESION_COLUMNS
from lesionseg.evaluation.statistics.subgroups import LesionColumns
from lesionseg.evaluation.table_row import Point, TableRow
from lesionseg.io.atomic import read_csv


@dataclass(frozen=True, kw_only=True)
class LesionKey(TableRow):
    """Which lesion a line is about: its id, or its centre, as lesions.csv has them."""

    case: str
    lesion: int | None = None
    centre_mm: Point = ()


@dataclass(frozen=True)
class LesionNotes:
    """The lines of the table: where each stands, which lesion it is about, and what it says."""

    rows: Sequence[tuple[str, LesionKey, Mapping[str, str]]]

    def columns_of(self, results: Sequence[CaseResult]) -> LesionColumns:
        """What the table says, by case and lesion id; lines on cases not judged are passed over.

        Raises `DatasetError` for a line about no lesion of its case, or one named before.
        """
        by_case = {r.case: r for r in results}
        noted: dict[tuple[str, int], Mapping[str, str]] = {}
        for where, key, columns in self.rows:
            if key.case not in by_case:
                continue
            lesion = _named(key, by_case[key.case].lesions, where)
            if (key.case, lesion) in noted:
                raise DatasetError(
                    "Two lines are about one lesion.", where=where, seen=f"{key.case}, {lesion}"
                )
            noted[key.case, lesion] = columns
        return noted


def read_lesion_notes(path: Path, cases: Collection[str]) -> LesionNotes:
    """Read a CSV file with `case`, and `lesion` or the `centre_*_mm`, of every lesion.

    All columns that lesions.csv does not have say something of the lesion. `cases`: all there are.
    Raises `DatasetError` for a table without these columns, and for a line that names none of
    the cases.
    """
    rows = read_csv(path)
    given = set(rows[0]) if rows else set()
    if "case" not in given or not {"lesion", "centre_x_mm"} & given or given <= {*LESION_COLUMNS}:
        raise DatasetError(
            "The table tells nothing of lesions.",
            where=path,
            seen=", ".join(sorted(given)) or "no line",
            expected="case, lesion (or centre_x_mm, centre_y_mm, centre_z_mm), and more columns",
            remedy="write these columns beside those of lesions.csv, which evaluate wrote.",
        )
    return LesionNotes(list(_lines(path, rows, cases)))


def _lines(
    path: Path, rows: Sequence[Mapping[str, str]], cases: Collection[str]
) -> Iterator[tuple[str, LesionKey, Mapping[str, str]]]:
    for line, row in enumerate(rows, start=2):
        where = f"{path}, line {line}"
        try:
            key = LesionKey.from_csv(row)
        except ValueError as error:
            raise DatasetError("The line names no lesion.", where=where, seen=str(error)) from error
        if key.case not in cases:
            raise DatasetError(
                "There is no such case.",
                where=where,
                seen=key.case,
                expected=min(cases, default=""),
            )
        yield where, key, {name: row[name] for name in row if name not in LESION_COLUMNS}


def _named(key: LesionKey, lesions: Sequence[LesionResult], where: str) -> int:
    """The id of the lesion that a line names, or in which its centre lies."""
    if key.lesion is not None:
        near = [x for x in lesions if x.lesion == key.lesion]
    else:
        by_distance = sorted((_distance(key, x), i) for i, x in enumerate(lesions))
        near = [lesions[i] for mm, i in by_distance[:1] if mm <= _reach(lesions[i])]
    if not near:
        seen = key.lesion if key.lesion is not None else f"centre {key.centre_mm}"
        ids = ", ".join(str(x.lesion) for x in lesions[:20])
        raise DatasetError(
            "The case has no such lesion.",
            where=where,
            seen=f"case {key.case}, lesion {seen}",
            expected=f"a lesion of the case: {ids}" if ids else "no line: the case has no lesion",
            remedy="take lesion or centre from the lesions.csv that evaluate writes.",
        )
    return near[0].lesion


def _distance(key: LesionKey, lesion: LesionResult) -> float:
    """From centre to centre; infinite where one has other axes."""
    if len(key.centre_mm) != len(lesion.centre_mm):
        return float("inf")
    return float(np.linalg.norm(np.subtract(key.centre_mm, lesion.centre_mm)))


def _reach(lesion: LesionResult) -> float:
    """Half the lesion's longest side: farther off is no longer its centre."""
    return max(lesion.diameter_mm, lesion.long_axis_mm or 0.0) / 2
