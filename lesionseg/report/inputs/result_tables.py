"""The tables beside scores.json as rows: cases, lesions, candidates and the training's history."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.atomic import read_csv
from lesionseg.report.inputs.score_details import Details, read_details
from lesionseg.report.inputs.scores_file import Scores, read_scores

Row = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class CaseRow:
    """One line of cases.csv; None where a number is not defined."""

    case: str
    group: str
    role: str
    status: str
    n_lesions: int
    n_detected: int
    n_missed: int
    n_false_positive: int
    n_ignored: int
    dice: float | None
    surface_dice: float | None
    hd95_mm: float | None
    reference_ml: float | None
    predicted_ml: float | None
    case_score: float | None

    @property
    def failed(self) -> bool:
        """Whether the case has no prediction to judge."""
        return self.status not in ("", "ok")


@dataclass(frozen=True)
class LesionRow:
    """One line of lesions.csv: a reference lesion, its size, and whether it was found."""

    case: str
    group: str
    lesion: int
    label: str
    diameter_mm: float
    volume_ml: float | None
    near_resolution: bool
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    detected: bool
    detected_at: float | None
    iou: float | None
    any_overlap: bool
    iou50: bool
    centre_distance: bool
    why_missed: str


@dataclass(frozen=True)
class CandidateRow:
    """One line of candidates.csv: a predicted instance and what became of it."""

    case: str
    group: str
    candidate: int
    label: str
    score: float | None
    diameter_mm: float
    volume_ml: float | None
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    centre_mm: tuple[float, ...]
    probability: float | None
    accepted: bool
    outcome: str
    outcome_any: str
    touches_lesion: bool


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


@dataclass(frozen=True)
class HistoryCurve:
    """One column of the training's history against the optimiser step."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_tables(folder: Path) -> Tables:
    """Read scores.json, cases.csv, lesions.csv and candidates.csv of one evaluation.

    Raises `ReadError` when one is missing, `ContentError` when a column is missing or unreadable
    or when the tables count other lesions than scores.json.
    """
    scores = read_scores(folder / "scores.json")
    cases = _rows(folder / "cases.csv", _case)
    tables = Tables(
        folder,
        scores,
        cases,
        _rows(folder / "lesions.csv", _lesion),
        _rows(folder / "candidates.csv", _candidate),
        _details(scores, folder / "scores.json"),
        any(case.group not in ("", case.case) for case in cases),
    )
    _check_same_evaluation(tables)
    return tables


def read_history(path: Path) -> tuple[HistoryCurve, ...]:
    """The loss columns of a metrics.csv, blanks and non-numbers left out; `()` without any."""
    if not path.is_file():
        raise ReadError("The training's history is missing.", where=path, expected="a metrics.csv")
    rows = read_csv(path)
    names = [name for name in (rows[0] if rows else {}) if "loss" in name.lower()]
    curves = (_curve(name, rows) for name in names)
    return tuple(curve for curve in curves if curve.steps)


def _details(scores: Scores, path: Path) -> Details:
    try:
        return read_details(scores.raw)
    except (KeyError, TypeError, ValueError) as error:
        raise ContentError(
            "A detail of the scores cannot be read.",
            where=path,
            seen=f"{type(error).__name__}: {error}",
            remedy="run evaluate again with this version.",
        ) from error


def _curve(name: str, rows: list[dict[str, str]]) -> HistoryCurve:
    points = [
        (step, value)
        for at, row in enumerate(rows)
        if (value := _number(row.get(name, ""))) is not None
        and (step := _number(row.get("step", "")) if "step" in row else float(at)) is not None
    ]
    return HistoryCurve(name, tuple(p[0] for p in points), tuple(p[1] for p in points))


def _rows(path: Path, make: Callable[[Row], T]) -> tuple[T, ...]:
    if not path.is_file():
        raise ReadError(
            "A table of the evaluation is missing.",
            where=path,
            remedy="run evaluate again; it writes all tables into one folder.",
        )
    made = []
    for line, row in enumerate(read_csv(path), start=2):
        try:
            made.append(make(row))
        except (KeyError, ValueError) as error:
            raise ContentError(
                "A line of a table cannot be read.",
                where=f"{path}, line {line}",
                seen=f"{type(error).__name__}: {error}",
                remedy="run evaluate again with this version.",
            ) from error
    return tuple(made)


def _check_same_evaluation(tables: Tables) -> None:
    scores, lesions = tables.scores, tables.lesions
    said = (scores.n_lesions, scores.n_lesions - scores.n_missed)
    listed = (len(lesions), sum(lesion.detected for lesion in lesions))
    if said != listed:
        raise ContentError(
            "lesions.csv and scores.json do not belong together.",
            where=tables.folder,
            seen=f"{listed[1]} of {listed[0]} lesions found in lesions.csv",
            expected=f"{said[1]} of {said[0]} as scores.json says",
            remedy="run evaluate again; it writes all tables into one folder.",
        )


def _case(row: Row) -> CaseRow:
    return CaseRow(
        case=row["case"],
        group=row.get("group", ""),
        role=row.get("role", ""),
        status=row.get("status", ""),
        n_lesions=_count(row["n_lesions"]),
        n_detected=_count(row["n_detected"]),
        n_missed=_count(row["n_missed"]),
        n_false_positive=_count(row["n_false_positive"]),
        n_ignored=_count(row.get("n_ignored", "")),
        dice=_number(row.get("dice", "")),
        surface_dice=_number(row.get("surface_dice", "")),
        hd95_mm=_number(row.get("hd95_mm", "")),
        reference_ml=_number(row.get("reference_ml", "")),
        predicted_ml=_number(row.get("predicted_ml", "")),
        case_score=_number(row.get("case_score", "")),
    )


def _lesion(row: Row) -> LesionRow:
    return LesionRow(
        case=row["case"],
        group=row.get("group", ""),
        lesion=_count(row["lesion"]),
        label=row.get("label", ""),
        diameter_mm=float(row["diameter_mm"]),
        volume_ml=_number(row.get("volume_ml", "")),
        near_resolution=_flag(row.get("near_resolution", "")),
        start_vox=_point(row["start_vox"]),
        stop_vox=_point(row["stop_vox"]),
        detected=_flag(row["detected"]),
        detected_at=_number(row.get("detected_at", "")),
        iou=_number(row.get("iou", "")),
        any_overlap=_flag(row.get("any_overlap", "")),
        iou50=_flag(row.get("iou50", "")),
        centre_distance=_flag(row.get("centre_distance", "")),
        why_missed=row.get("why_missed", ""),
    )


def _candidate(row: Row) -> CandidateRow:
    return CandidateRow(
        case=row["case"],
        group=row.get("group", ""),
        candidate=_count(row["candidate"]),
        label=row.get("label", ""),
        score=_number(row.get("score", "")),
        diameter_mm=float(row["diameter_mm"]),
        volume_ml=_number(row.get("volume_ml", "")),
        start_vox=_point(row["start_vox"]),
        stop_vox=_point(row["stop_vox"]),
        centre_mm=_point(row.get("centre_mm", "")),
        probability=_number(row.get("probability", "")),
        accepted=_flag(row["accepted"]),
        outcome=row["outcome"],
        outcome_any=row.get("outcome_any", ""),
        touches_lesion=_flag(row.get("touches_lesion", "")),
    )


def _number(cell: str) -> float | None:
    """A finite number, or None for an empty or undefined cell."""
    if cell.strip().lower() in ("", "none", "null", "nan"):
        return None
    value = float(cell)
    return value if math.isfinite(value) else None


def _count(cell: str) -> int:
    return int(float(cell)) if cell.strip() else 0


def _flag(cell: str) -> bool:
    return cell.strip().lower() in ("true", "1", "1.0", "yes")


def _point(cell: str) -> tuple[float, ...]:
    return tuple(float(number) for number in cell.split())
