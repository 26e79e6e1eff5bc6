"""cases.csv, lesions.csv, candidates.csv and labels.csv: one line per result. Read any table.

A field that ends with `_vox` has one column per array axis (`start_z_vox` …). A point in mm has
one column per RAS axis (`centre_x_mm` …). z is empty in 2-D. The columns of other tuples are
numbered from 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lesionseg.core import Problem
from lesionseg.errors import ContentError, ReadError, format_score
from lesionseg.evaluation.box_precision import IOUS
from lesionseg.evaluation.case_results import CandidateResult, CaseResult, LesionResult
from lesionseg.evaluation.measures import column_names
from lesionseg.evaluation.scores import SCORES_FILE, LabelScores, Scores
from lesionseg.io.files import plain_text, write_csv, write_json

if TYPE_CHECKING:
    from pandas import DataFrame

CASE_COLUMNS = (
    *("case", "group", "role", "status", "n_lesions", "n_candidates", "n_detected", "n_missed"),
    *("n_false_positive", "n_ignored", "dice", "surface_dice", "hd95_mm", "reference_ml"),
    *("predicted_ml", "false_positive_ml", "splits", "merges", "case_score", "seconds", "warning"),
    *("input_score", "slice_spacing_mm", "annotated_share", "message"),
)
LABEL_COLUMNS = (
    *("label", "n_cases", "n_lesions", "n_detected", "n_false_positive", "dice", "lesion_recall"),
    *("lesion_precision", "false_positives_per_case", "average_precision"),
    *(f"box_ap_{100 * iou:.0f}" for iou in IOUS),  # per cent of IoU
    *("box_ap_40_75", "box_ap_50_95"),
)
# columns of our tables that contain text, also if it looks like a number
TEXT_COLUMNS = (
    *("case", "group", "label", "zone", "role", "status", "message", "warning", "why_missed"),
    *("outcome", "outcome_any", "path", "visit", "earlier", "bundle", "key", "state", "digest"),
    *("study_uid", "series_uid", "instance_uid", "finished"),
)
# columns that are compared with the operating point; pandas 2 may read another last digit
_EXACT = ("score", "detected_at")
FAILED = "failed"  # the status of a case that could not be scored
_POINTS = {"start_vox": "zyx", "stop_vox": "zyx", "centre_mm": "xyz"}
Row = dict[str, Any]
Item = TypeVar("Item")


def write_scores(
    folder: Path,
    results: Sequence[CaseResult],
    scores: Scores,
    labels: Mapping[int, str] | None = None,
    failed: Sequence[Problem] = (),
) -> None:
    """Write the four tables, then scores.json, each atomically.

    An earlier scores.json is removed first, because its numbers do not belong to the new tables.

    Args:
        folder: The folder to write to.
        results: The results of the scored cases.
        scores: The content of scores.json.
        labels: The names of label values.
        failed: Cases that could not be scored. Each has a row with the reason in cases.csv, and is
            not counted in any score.
    """
    regions = list(dict.fromkeys(name for result in results for name in result.regions))
    column_of = column_names(regions)
    region_columns = []
    for column in column_of.values():
        region_columns += [f"dice_{column}", f"n_lesions_{column}"]
    (folder / SCORES_FILE).unlink(missing_ok=True)
    case_rows = [_case_row(result, column_of) for result in results]
    for problem in failed:
        case_rows.append({"case": problem.case, "status": FAILED, "message": problem.message})
    write_csv(folder / "cases.csv", case_rows, (*CASE_COLUMNS, *region_columns))
    names = labels or {}
    lesion_rows = (_item_row(r, lesion, names) for r in results for lesion in r.lesions)
    lesion_columns = ("case", "group", *columns_of(LesionResult))
    write_csv(folder / "lesions.csv", lesion_rows, lesion_columns)
    candidate_rows = (_item_row(r, one, names) for r in results for one in r.candidates)
    candidate_columns = ("case", "group", *columns_of(CandidateResult))
    write_csv(folder / "candidates.csv", candidate_rows, candidate_columns)
    label_rows = [label_row(name, one) for name, one in scores.per_label.items()]
    write_csv(folder / "labels.csv", label_rows, LABEL_COLUMNS)
    write_json(folder / SCORES_FILE, scores.to_json())


def remove_scores(folder: Path) -> None:
    """Remove the files of an earlier `write_scores` from a folder, which need not exist."""
    for name in (SCORES_FILE, "cases.csv", "lesions.csv", "candidates.csv", "labels.csv"):
        (folder / name).unlink(missing_ok=True)


def read_table(path: Path) -> "DataFrame":
    """Read a table that a command wrote.

    Returns:
        The table. Texts stay text, even if they look like a number or a missing value (007, NA).
        Empty cells are missing values.

    Raises:
        ReadError: if the file does not exist.
        ContentError: if it cannot be read.
    """
    import pandas

    if not path.is_file():
        raise ReadError(f"{path}: the table does not exist.")
    try:
        names = pandas.read_csv(path, nrows=0).columns
        texts = names.intersection(TEXT_COLUMNS)
        exact = names.intersection(_EXACT)
        # a case may have the name "NA"; a number that is not defined is empty or "nan"
        missing = {name: [""] if name in texts else ["", "nan"] for name in names}
        types = dict.fromkeys((*texts, *exact), str)
        table = pandas.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
        for name in exact:
            table[name] = table[name].map(float, na_action="ignore").astype("float64")
    except ValueError as error:  # also the errors of pandas' parser
        raise ContentError(
            f"{path}: this table cannot be read ({error}). Run the command that wrote it again."
        ) from error
    for name in texts:
        column = table[name]
        # the type of text, which `map` changes if all cells are empty
        table[name] = column.map(plain_text, na_action="ignore").astype(column.dtype)
    return table


def _item_row(
    result: CaseResult, item: LesionResult | CandidateResult, labels: Mapping[int, str]
) -> Row:
    """Return the line of a lesion or candidate. Its label is written by name, if it has one."""
    row: Row = {"case": result.case, "group": result.group}
    row |= cells_of(item)
    row["label"] = labels.get(item.label, str(item.label))
    return row


def label_row(name: str, scores: LabelScores) -> Row:
    """Return the line of a label, or of a region, in labels.csv."""
    boxes = scores.box_precision
    curve = boxes.average_precision
    if not curve:  # the candidates have no scores
        curve = (None,) * len(boxes.iou)
    row: Row = {
        "label": name,
        "n_cases": scores.n_cases,
        "n_lesions": scores.n_lesions,
        "n_detected": scores.n_true_positive,
        "n_false_positive": scores.n_false_positive,
        "dice": scores.dice.mean,
        "lesion_recall": scores.lesion_recall.value,
        "lesion_precision": scores.lesion_precision.value,
        "false_positives_per_case": scores.false_positives_per_case.value,
        "average_precision": scores.average_precision.value,
        "box_ap_40_75": boxes.ap_40_75.value,
        "box_ap_50_95": boxes.ap_50_95.value,
    }
    at_iou = zip(boxes.iou, curve, strict=True)
    return row | {f"box_ap_{100 * iou:.0f}": value for iou, value in at_iou}


def scores_table(by_role: Mapping[str, Scores]) -> list[list[str]]:
    """Return a table of the most important numbers as text, with one column per role.

    An undefined number is a dash. A number that is undefined for all roles has no row. The table is
    empty if there are no roles.
    """
    if not by_role:
        return []
    columns = [_format_numbers(scores) for scores in by_role.values()]
    table = [["", *by_role]]
    for name in columns[0]:
        cells = [column[name] for column in columns]
        if set(cells) != {"–"}:
            table.append([name, *cells])
    return table


def _format_numbers(scores: Scores) -> dict[str, str]:
    """Return the most important numbers as text, by name."""
    point = scores.operating_point.score
    return {
        "cases": str(scores.n_cases),
        "of them lesion-free": str(scores.n_lesion_free_cases),
        "lesions": str(scores.n_lesions),
        "found": str(scores.n_true_positive),
        "lesion recall": _format_decimals(scores.lesion_recall.value),
        "false positives per case": _format_decimals(scores.false_positives_per_case.value),
        "lesion precision": _format_decimals(scores.lesion_precision.value),
        "Dice, mean": _format_decimals(scores.dice.mean),
        "Dice, median": _format_decimals(scores.dice.median),
        "surface Dice, mean": _format_decimals(scores.surface_dice.mean),
        "average precision": _format_decimals(scores.average_precision.value),
        "CPM": _format_decimals(scores.cpm.value),
        **_format_box_numbers(scores),
        "accepted from score": "–" if point is None else format_score(point),
    }


def _format_box_numbers(scores: Scores) -> dict[str, str]:
    """Return the average precision of boxes as text, dashes for masks of three axes."""
    boxes = scores.box_precision
    numbers = {
        "box AP, IoU 0.4 (VinDr-CXR)": boxes.ap_40.value,
        "box AP, IoU 0.4 to 0.75 (RSNA)": boxes.ap_40_75.value,
        "box AP, IoU 0.5": boxes.ap_50.value,
        "box AP, IoU 0.5 to 0.95 (COCO)": boxes.ap_50_95.value,
    }
    return {
        name: _format_decimals(value if scores.has_boxes else None)
        for name, value in numbers.items()
    }


def _format_decimals(value: float | None) -> str:
    """Return a number with three decimals, or a dash. Only 1 becomes 1.000."""
    if value is None:
        return "–"
    return ">0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def write_rows(path: Path, rows: Sequence[Item], kind: type[Item]) -> None:
    """Write rows of one dataclass atomically. Without rows, write only the header."""
    write_csv(path, map(cells_of, rows), tuple(columns_of(kind, rows)))


def columns_of(kind: type, rows: Sequence[Any] = ()) -> Iterator[str]:
    """Yield the columns of a dataclass.

    A tuple has as many numbered columns as the longest one in `rows` has items.
    """
    for one in fields(kind):
        name = one.name
        if name in _POINTS:
            yield from (_axis_column(name, axis) for axis in _POINTS[name])
        elif str(one.type).startswith("tuple"):
            most = max((len(getattr(row, name)) for row in rows), default=1)
            yield from (f"{name}_{i + 1}" for i in range(max(most, 1)))
        else:
            yield name


def cells_of(item: Any) -> Row:
    """Return the cells of a dataclass by column; None for an undefined value.

    A point of two numbers belongs to a 2-D image, whose z columns stay empty.
    """
    cells: Row = {}
    for one in fields(item):
        name = one.name
        value = getattr(item, name)
        if name in _POINTS:
            axes = _POINTS[name]
            if len(value) == 2:
                axes = axes.replace("z", "")
            pairs = zip(axes, value, strict=True)
            cells |= {_axis_column(name, axis): round(number, 4) for axis, number in pairs}
        elif isinstance(value, tuple):
            cells |= {f"{name}_{i}": number for i, number in enumerate(value, 1)}
        elif isinstance(value, bool):
            cells[name] = str(value).lower()
        else:
            cells[name] = value
    return cells


def _axis_column(name: str, axis: str) -> str:
    """Return the column of one axis of a field: `start_vox`, z gives `start_z_vox`."""
    stem, _, unit = name.rpartition("_")
    return f"{stem}_{axis}_{unit}"


def _case_row(result: CaseResult, column_of: Mapping[str, str]) -> Row:
    """Return the line of a case in cases.csv.

    The columns that are neither counts nor regions are attributes of `CaseResult`. Those of a
    region are called `dice_` and `n_lesions_` with `column_of[region]`.
    """
    counts = {
        "n_lesions": len(result.lesions),
        "n_candidates": len(result.candidates),
        "n_missed": len(result.lesions) - result.n_detected,
        "n_false_positive": result.n_outcome("false_positive"),
        "n_ignored": result.n_outcome("ignored"),
        "seconds": round(result.seconds, 4),
    }
    row = {name: counts.get(name, getattr(result, name, None)) for name in CASE_COLUMNS}
    for name, part in result.regions.items():
        row[f"dice_{column_of[name]}"] = part.dice
        row[f"n_lesions_{column_of[name]}"] = len(part.lesions)
    return row
