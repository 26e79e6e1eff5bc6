"""cases.csv, lesions.csv and candidates.csv: their rows as types, from results and from text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from lesionseg.evaluation.results import CandidateResult, CaseResult, LesionResult
from lesionseg.evaluation.table_row import Point, Row, TableRow

_OF_REGION = ("dice", "n_lesions", "n_detected")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseRow(TableRow):
    """One line of cases.csv; None where a number is not defined."""

    more: ClassVar[Mapping[str, Any]] = {
        "dice_.+": float | None,
        "n_lesions_.+": int | None,
        "n_detected_.+": int | None,
    }

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
    warning: str = ""
    input_score: float | None = None
    slice_spacing_mm: float | None = None
    annotated_share: float = 1.0

    @property
    def failed(self) -> bool:
        """Whether the case has no prediction to judge."""
        return self.status not in ("", "ok")


@dataclass(frozen=True, kw_only=True, slots=True)
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
    start_vox: Point
    stop_vox: Point
    centre_mm: Point = ()
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
    zone: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
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
    start_vox: Point
    stop_vox: Point
    centre_mm: Point = ()
    accepted: bool
    outcome: str
    lesion: int | None = None
    iou: float | None = None
    touches_lesion: bool = False
    outcome_any: str = ""
    zone: str = ""


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


def case_rows(results: Sequence[CaseResult]) -> Iterator[Row]:
    """One row per case; what is undefined is None."""
    return ({**_case(result).to_csv(), **_regions(result)} for result in results)


def lesion_rows(results: Sequence[CaseResult], labels: Mapping[int, str]) -> Iterator[Row]:
    """One row per reference lesion; `labels` names label values."""
    return (
        LesionRow(**_shared(LesionRow, result, lesion, labels)).to_csv()
        for result in results
        for lesion in result.lesions
    )


def candidate_rows(results: Sequence[CaseResult], labels: Mapping[int, str]) -> Iterator[Row]:
    """One row per retained candidate."""
    return (
        CandidateRow(**_shared(CandidateRow, result, candidate, labels)).to_csv()
        for result in results
        for candidate in result.candidates
    )


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
    kind: type[TableRow],
    result: CaseResult,
    item: LesionResult | CandidateResult,
    labels: Mapping[int, str],
) -> Row:
    own = {one.name: getattr(item, one.name) for one in fields(kind) if hasattr(item, one.name)}
    label = labels.get(item.label, str(item.label))
    return {**own, "label": label, "case": result.case, "group": result.group}
