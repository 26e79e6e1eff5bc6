"""cases.csv, lesions.csv and candidates.csv: results as rows."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lesionseg.evaluation.results import CandidateResult, CaseResult, LesionResult

CASE_COLUMNS = (
    "case",
    "group",
    "role",
    "status",
    "n_lesions",
    "n_candidates",
    "n_detected",
    "n_missed",
    "n_false_positive",
    "n_ignored",
    "dice",
    "surface_dice",
    "hd95_mm",
    "reference_ml",
    "predicted_ml",
    "false_positive_ml",
    "splits",
    "merges",
    "case_score",
    "seconds",
    "iou",
    "volume_error_ml",
)
LESION_COLUMNS = (
    "case",
    "group",
    "lesion",
    "label",
    "volume_ml",
    "diameter_mm",
    "voxels",
    "slices",
    "long_axis_mm",
    "short_axis_mm",
    "near_resolution",
    "start_vox",
    "stop_vox",
    "centre_mm",
    "detected",
    "detected_at",
    "candidate",
    "iou",
    "any_overlap",
    "iou50",
    "centre_distance",
    "why_missed",
    "dice",
    "contrast",
)
CANDIDATE_COLUMNS = (
    "case",
    "group",
    "candidate",
    "label",
    "score",
    "probability",
    "diameter_mm",
    "volume_ml",
    "start_vox",
    "stop_vox",
    "centre_mm",
    "accepted",
    "outcome",
    "lesion",
    "iou",
    "touches_lesion",
    "outcome_any",
)

# columns of cases.csv that a result has under the same name
_SAME_NAME = (
    "case",
    "group",
    "role",
    "status",
    "n_detected",
    "dice",
    "surface_dice",
    "hd95_mm",
    "reference_ml",
    "predicted_ml",
    "false_positive_ml",
    "splits",
    "merges",
    "case_score",
    "iou",
    "volume_error_ml",
)

_OF_REGION = ("dice", "n_lesions", "n_detected")

Row = dict[str, Any]


def region_names(results: Sequence[CaseResult]) -> list[str]:
    """The regions that some case was judged by, in their order."""
    return list(dict.fromkeys(name for result in results for name in result.regions))


def case_columns(results: Sequence[CaseResult]) -> tuple[str, ...]:
    """The columns of cases.csv: three more a region, its name with `_` for anything but letters."""
    more = (f"{what}_{_word(name)}" for name in region_names(results) for what in _OF_REGION)
    return (*CASE_COLUMNS, *more)


def case_rows(results: Sequence[CaseResult]) -> list[Row]:
    """One row a case; what is undefined is None."""
    return [_plain(_case(result)) for result in results]


def lesion_rows(results: Sequence[CaseResult], labels: Mapping[int, str]) -> list[Row]:
    """One row a reference lesion; `labels` names label values."""
    return [_row(r, lesion, LESION_COLUMNS, labels) for r in results for lesion in r.lesions]


def candidate_rows(results: Sequence[CaseResult], labels: Mapping[int, str]) -> list[Row]:
    """One row a retained candidate."""
    return [_row(r, found, CANDIDATE_COLUMNS, labels) for r in results for found in r.candidates]


def _case(result: CaseResult) -> Row:
    return {
        **{name: getattr(result, name) for name in _SAME_NAME},
        "n_lesions": len(result.lesions),
        "n_candidates": len(result.candidates),
        "n_missed": len(result.lesions) - result.n_detected,
        "n_false_positive": result.n_outcome("false_positive"),
        "n_ignored": result.n_outcome("ignored"),
        "seconds": round(result.seconds, 4),
        **{
            f"{what}_{_word(name)}": value
            for name, part in result.regions.items()
            for what, value in zip(
                _OF_REGION, (part.dice, len(part.lesions), part.n_detected), strict=True
            )
        },
    }


def _word(name: str) -> str:
    """A name as part of a column's."""
    return re.sub(r"\W+", "_", name.strip())


def _row(
    result: CaseResult,
    item: LesionResult | CandidateResult,
    columns: Sequence[str],
    labels: Mapping[int, str],
) -> Row:
    own = {name: getattr(item, name) for name in columns if hasattr(item, name)}
    names = {"label": labels.get(item.label, str(item.label))}
    return _plain({**own, **names, "case": result.case, "group": result.group})


def _plain(row: Row) -> Row:
    """Cells as text that other programs read: true and false, numbers separated by spaces."""
    return {key: _cell(value) for key, value in row.items()}


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(f"{round(number, 4):.12g}" for number in value)
    return value
