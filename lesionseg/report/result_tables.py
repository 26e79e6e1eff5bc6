"""What `evaluate` and `train` wrote: scores.json, the tables beside it, the training's history."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lesionseg.errors import ContentError, ReadError
from lesionseg.evaluation.rows import CandidateRow, CaseRow, LesionRow
from lesionseg.evaluation.score_sections import Details, Scores
from lesionseg.evaluation.scores import READ_VERSIONS, SCHEMA_VERSION
from lesionseg.evaluation.statistics.detection import ThresholdSweep
from lesionseg.evaluation.table_row import RowType, read_table
from lesionseg.io.atomic import read_csv, read_json

Part = TypeVar("Part", Scores, Details)
AGAIN = "run evaluate again with this version."


@dataclass(frozen=True)
class Tables:
    """Everything a report is made of, pictures aside.

    `patients_stated`: False where no group is known but the cases' own names.
    """

    folder: Path
    scores: Scores
    cases: tuple[CaseRow, ...]
    lesions: tuple[LesionRow, ...]
    candidates: tuple[CandidateRow, ...]
    details: Details
    patients_stated: bool = True

    @cached_property
    def sweep(self) -> ThresholdSweep | None:
        """What every threshold gives; None without scores, an operating point or lesions."""
        if self.scores.operating_point.score is None:
            return None
        return ThresholdSweep.of_rows(
            self.lesions, self.candidates, sum(case.annotated_share for case in self.cases)
        )


@dataclass(frozen=True)
class HistoryCurve:
    """One column of the training's history against the optimiser step."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_tables(folder: Path) -> Tables:
    """Read scores.json, cases.csv, lesions.csv and candidates.csv of one evaluation.

    Raises `ReadError` when one is missing, `ContentError` when a key or column is missing or
    unreadable or when the tables count other lesions than scores.json.
    """
    scores = read_scores(folder / "scores.json")
    cases = _rows(folder / "cases.csv", CaseRow)
    tables = Tables(
        folder,
        scores,
        cases,
        _rows(folder / "lesions.csv", LesionRow),
        _rows(folder / "candidates.csv", CandidateRow),
        _parse(Details.from_json, scores.raw, folder / "scores.json", "A detail of the scores"),
        any(case.group not in ("", case.case) for case in cases),
    )
    _check_same_evaluation(tables)
    return tables


def read_scores(path: Path) -> Scores:
    """Read a scores.json.

    Raises `ReadError` when the file is missing and `ContentError` when it is of another version
    or lacks a key that the contract promises.
    """
    if not path.is_file():
        raise ReadError(
            "There are no scores to report.",
            where=path,
            expected="a scores.json",
            remedy="run evaluate first, and give its output folder.",
        )
    raw = read_json(path)
    if not isinstance(raw, Mapping) or raw.get("schema_version", 1) not in READ_VERSIONS:
        raise ContentError(
            "This is no scores.json that can be read here.",
            where=path,
            seen=raw.get("schema_version") if isinstance(raw, Mapping) else type(raw).__name__,
            expected=f"schema_version {' or '.join(map(str, READ_VERSIONS))}",
            remedy=AGAIN,
        )
    return _parse(Scores.from_json, raw, path, "Something that a report needs")


def read_history(path: Path) -> tuple[HistoryCurve, ...]:
    """The loss columns of a metrics.csv, blanks and non-numbers left out; `()` without any."""
    if not path.is_file():
        raise ReadError("The training's history is missing.", where=path, expected="a metrics.csv")
    rows = read_csv(path)
    names = [name for name in (rows[0] if rows else {}) if "loss" in name.lower()]
    curves = (_curve(name, rows) for name in names)
    return tuple(curve for curve in curves if curve.steps)


def _curve(name: str, rows: list[dict[str, str]]) -> HistoryCurve:
    points = [
        (step, value)
        for at, row in enumerate(rows)
        if math.isfinite(value := _number(row.get(name, "")))
        and math.isfinite(step := _number(row.get("step", str(at))))
    ]
    return HistoryCurve(name, tuple(p[0] for p in points), tuple(p[1] for p in points))


def _number(cell: str) -> float:
    return math.nan if cell.strip().lower() in ("", "none", "null") else float(cell)


def _parse(
    read: Callable[[Mapping[str, Any]], Part], raw: Mapping[str, Any], path: Path, what: str
) -> Part:
    try:
        return read(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContentError(
            f"{what} is missing or cannot be read.",
            where=path,
            seen=f"{type(error).__name__}: {error}",
            expected=f"the keys of scores.json, schema_version {SCHEMA_VERSION}",
            remedy=AGAIN,
        ) from error


def _rows(path: Path, kind: type[RowType]) -> tuple[RowType, ...]:
    if not path.is_file():
        raise ReadError(
            "A table of the evaluation is missing.",
            where=path,
            remedy="run evaluate again; it writes all tables into one folder.",
        )
    return read_table(path, kind)


def _check_same_evaluation(tables: Tables) -> None:
    scores, lesions = tables.scores, tables.lesions
    expected = (scores.n_lesions, scores.n_detected)
    listed = (len(lesions), sum(lesion.detected for lesion in lesions))
    if expected != listed:
        raise ContentError(
            "lesions.csv and scores.json do not belong together.",
            where=tables.folder,
            seen=f"{listed[1]} of {listed[0]} lesions found in lesions.csv",
            expected=f"{expected[1]} of {expected[0]} as scores.json says",
            remedy="run evaluate again; it writes all tables into one folder.",
        )
