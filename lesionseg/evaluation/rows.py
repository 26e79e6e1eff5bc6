"""cases.csv, lesions.csv and candidates.csv: their rows as types, from results and from text."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self, get_type_hints

from lesionseg.evaluation.results import CandidateResult, CaseResult, LesionResult

_OF_REGION = ("dice", "n_lesions", "n_detected")
Row = dict[str, Any]


class TableRow:
    """Base of dataclasses that are one line of a table, one field a column, in order."""

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(one.name for one in fields(cls))  # type: ignore[arg-type]

    @classmethod
    def from_csv(cls, row: Mapping[str, str]) -> Self:
        """Read a line; columns of fields with a default may be missing, others are passed over.

        Raises `ValueError` naming the column that is missing or cannot be read.
        """
        kinds, values = get_type_hints(cls), dict[str, Any]()
        for one in fields(cls):  # type: ignore[arg-type]
            if one.name in row:
                values[one.name] = _read(row[one.name], kinds[one.name], one.name)
            elif one.default is MISSING:
                raise ValueError(f"no column {one.name}")
        return cls(**values)

    def to_csv(self) -> Row:
        """The cells: true and false, numbers separated by spaces, None for what is undefined."""
        return {name: _cell(getattr(self, name)) for name in self.columns()}


@dataclass(frozen=True, kw_only=True)
class CaseRow(TableRow):
    """One line of cases.csv; None where a number is not defined."""

    case: str
    group: str = ""
    role: str = ""
    status: str = ""
    n_lesions: int
    n_candidates: int = 0
    n_detected: int
    n_missed: int
    n_false_positive: int
    n_ignored: int = 0
    dice: float | None = None
    surface_dice: float | None = None
    hd95_mm: float | None = None
    reference_ml: float | None = None
    predicted_ml: float | None = None
    false_positive_ml: float | None = None
    splits: int = 0
    merges: int = 0
    case_score: float | None = None
    seconds: float | None = None
    iou: float | None = None
    volume_error_ml: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the case has no prediction to judge."""
        return self.status not in ("", "ok")


@dataclass(frozen=True, kw_only=True)
class LesionRow(TableRow):
    """One line of lesions.csv: a reference lesion; the fields are those of `LesionResult`."""

    case: str
    group: str = ""
    lesion: int
    label: str = ""
    volume_ml: float | None = None
    diameter_mm: float
    voxels: int | None = None
    slices: int | None = None
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None
    near_resolution: bool = False
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    centre_mm: tuple[float, ...] = ()
    detected: bool
    detected_at: float | None = None
    candidate: int | None = None
    iou: float | None = None
    any_overlap: bool = False
    iou50: bool = False
    centre_distance: bool = False
    why_missed: str = ""
    dice: float | None = None
    contrast: float | None = None
    iou10: bool = False
    split: bool = False
    merged: bool = False


@dataclass(frozen=True, kw_only=True)
class CandidateRow(TableRow):
    """One line of candidates.csv: a retained candidate; fields as those of `CandidateResult`."""

    case: str
    group: str = ""
    candidate: int
    label: str = ""
    score: float | None = None
    probability: float | None = None
    diameter_mm: float
    volume_ml: float | None = None
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    centre_mm: tuple[float, ...] = ()
    accepted: bool
    outcome: str
    lesion: int | None = None
    iou: float | None = None
    touches_lesion: bool = False
    outcome_any: str = ""


CASE_COLUMNS = CaseRow.columns()
LESION_COLUMNS = LesionRow.columns()
CANDIDATE_COLUMNS = CandidateRow.columns()


def region_names(results: Sequence[CaseResult]) -> list[str]:
    """The regions that some case was judged by, in their order."""
    return list(dict.fromkeys(name for result in results for name in result.regions))


def case_columns(results: Sequence[CaseResult]) -> tuple[str, ...]:
    """The columns of cases.csv, three more per region: its name, `_` for all but letters."""
    more = (_column(what, name) for name in region_names(results) for what in _OF_REGION)
    return (*CASE_COLUMNS, *more)


def case_rows(results: Sequence[CaseResult]) -> list[Row]:
    """One row per case; what is undefined is None."""
    return [{**_case(result).to_csv(), **_regions(result)} for result in results]


def lesion_rows(results: Sequence[CaseResult], labels: Mapping[int, str]) -> list[Row]:
    """One row per reference lesion; `labels` names label values."""
    return [
        LesionRow(**_shared(LESION_COLUMNS, result, lesion, labels)).to_csv()
        for result in results
        for lesion in result.lesions
    ]


def candidate_rows(results: Sequence[CaseResult], labels: Mapping[int, str]) -> list[Row]:
    """One row per retained candidate."""
    return [
        CandidateRow(**_shared(CANDIDATE_COLUMNS, result, candidate, labels)).to_csv()
        for result in results
        for candidate in result.candidates
    ]


@dataclass(frozen=True)
class RowCounts:
    """Lesions of some rows, those found, and false positives per case (None without a case)."""

    n_lesions: int
    n_detected: int
    false_positives_per_case: float | None


def without_failed(cases: Sequence[CaseRow], lesions: Sequence[LesionRow]) -> RowCounts:
    """The counts over the cases that have a prediction to judge."""
    judged = [case for case in cases if not case.failed]
    names = {case.case for case in judged}
    detected = [lesion.detected for lesion in lesions if lesion.case in names]
    false = sum(case.n_false_positive for case in cases)  # a failed case has none
    return RowCounts(len(detected), sum(detected), false / len(judged) if judged else None)


def _case(result: CaseResult) -> CaseRow:
    same = {name: getattr(result, name) for name in CASE_COLUMNS if hasattr(result, name)}
    counts = {
        "n_lesions": len(result.lesions),
        "n_candidates": len(result.candidates),
        "n_missed": len(result.lesions) - result.n_detected,
        "n_false_positive": result.n_outcome("false_positive"),
        "n_ignored": result.n_outcome("ignored"),
        "seconds": round(result.seconds, 4),
    }
    return CaseRow(**same | counts)


def _regions(result: CaseResult) -> Row:
    return {
        _column(what, name): value
        for name, part in result.regions.items()
        for what, value in zip(
            _OF_REGION, (part.dice, len(part.lesions), part.n_detected), strict=True
        )
    }


def _column(what: str, region: str) -> str:
    word = re.sub(r"\W+", "_", region.strip())
    return f"{what}_{word}"


def _shared(
    columns: Sequence[str],
    result: CaseResult,
    item: LesionResult | CandidateResult,
    labels: Mapping[int, str],
) -> Row:
    own = {name: getattr(item, name) for name in columns if hasattr(item, name)}
    label = labels.get(item.label, str(item.label))
    return {**own, "label": label, "case": result.case, "group": result.group}


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(f"{round(number, 4):.12g}" for number in value)
    return value


def _read(cell: str, kind: Any, column: str) -> Any:
    try:
        return _READERS[kind](cell.strip())
    except ValueError as error:
        raise ValueError(f"{cell!r} in column {column}") from error


def _number(cell: str) -> float | None:
    """A finite number, or None for an empty or undefined cell."""
    if cell.lower() in ("", "none", "null", "nan"):
        return None
    value = float(cell)
    return value if math.isfinite(value) else None


def _whole(cell: str) -> int | None:
    value = _number(cell)
    return None if value is None else int(value)


_READERS: Mapping[Any, Callable[[str], Any]] = {
    str: str,
    float: float,
    int: lambda cell: int(float(cell)) if cell else 0,
    bool: lambda cell: cell.lower() in ("true", "1", "1.0", "yes"),
    float | None: _number,
    int | None: _whole,
    tuple[float, ...]: lambda cell: tuple(map(float, cell.split())),
}
