"""scores.json and labels.csv: keys, version, provenance; the score table on the terminal.

Every number is a row (`intervals.Estimate`), which is found by its name. The rows with a value of
`at` are the points of curves: recall at a rate of false positives, average precision at an IoU,
recall by size, share of true positives by probability. An undefined number is None (`null` in the
file), and `reason` states why. docs/evaluation.md describes the numbers.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lesionseg.errors import ContentError, ReadError, describe_misfits, format_score
from lesionseg.evaluation.box_precision import IOUS
from lesionseg.evaluation.criteria import Preset
from lesionseg.evaluation.intervals import CI, Estimate
from lesionseg.evaluation.operating_points import PointInUse
from lesionseg.evaluation.tables import COLUMNS, Tables, write_tables
from lesionseg.io.text import read_json, write_csv, write_json

SCHEMA_VERSION = 4
SCORES_FILE = "scores.json"
SECOND_MODEL = "compare"  # folder of a second model's scores, in that of the first one's
DEVELOPMENT_ROLES = ("train", "validation")
PERCENT_OF_WIDTH = "% of the image width"  # the unit of sizes if an image has no pixel size
# columns of labels.csv; `n_detected` is called so as in cases.csv
LABEL_COLUMNS = (
    *("n_cases", "n_lesions", "n_detected", "n_false_positive", "dice", "lesion_recall"),
    *("lesion_precision", "false_positives_per_case", "average_precision"),
    *("box_ap_40_75", "box_ap_50_95"),
)
# rows of the table that the terminal prints
_PRINTED_COUNTS = {
    "cases": "n_cases",
    "of them lesion-free": "n_lesion_free_cases",
    "lesions": "n_lesions",
    "found": "n_true_positive",
}
_PRINTED = {
    "lesion recall": "lesion_recall",
    "false positives per case": "false_positives_per_case",
    "lesion precision": "lesion_precision",
    "Dice, mean": "dice",
    "Dice, median": "dice_median",
    "surface Dice, mean": "surface_dice",
    "average precision": "average_precision",
    "CPM": "cpm",
}
_PRINTED_OF_BOXES = {
    "box AP, IoU 0.4 (VinDr-CXR)": "box_ap_40",
    "box AP, IoU 0.4 to 0.75 (RSNA)": "box_ap_40_75",
    "box AP, IoU 0.5": "box_ap_50",
    "box AP, IoU 0.5 to 0.95 (COCO)": "box_ap_50_95",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A number of two models on the same cases, and their difference `one − other`.

    Attributes:
        one: The number of the first model.
        other: The number of the second model.
        difference: The difference.
        ci95: Its interval.
        reason: The reason why the difference or its interval is None.
        p_value: The p-value. None if the difference is undefined, or if fewer than 5 groups
            contribute.
        p_holm: The p-value, corrected for the number of all secondary measures that have one
            (Holm). None for the primary measure.
        primary: True for the primary measure, whose p-value is not corrected.
        margin: The margin of the primary measure.
        not_inferior: True if the interval of the primary measure is above `−margin`. None without
            a margin or an interval.
    """

    one: float | None = None
    other: float | None = None
    difference: float | None = None
    ci95: CI | None = None
    reason: str | None = None
    p_value: float | None = None
    p_holm: float | None = None
    primary: bool = False
    margin: float | None = None
    not_inferior: bool | None = None


@dataclass(frozen=True)
class ComparedProgram:
    """A compared program: a name, which is that of its folder, and its operating point."""

    name: str
    operating_point: PointInUse


class Provenance(BaseModel):
    """The origin of scores: versions, hashes, data and model.

    The fields are the keys that the library uses; files contain more. An empty text is unknown.

    Attributes:
        dataset: The name of the dataset.
        date: The day of the evaluation, such as 2026-01-31.
        model: The architecture.
        why_model: The reason why `model=auto` chose it. Only a run directory states it.
        bundle: The digest of the bundle that made the predictions.
        lesionseg: The version of lesionseg.
        git_commit: The commit of lesionseg.
        scored: The part of the lesions that was scored, empty if all were.
        simulated: True if the scans are simulated.
        training_patients: Number of patients in the training cases.
        training_scans: Number of training cases.
        training_steps: Number of training steps, of all networks together.
        training_minutes: Duration of the training, 0 if it is not stated.
        folds: Number of networks. A cross-validation trains one per fold.
        min_readers: The number of readers who must have marked a reference lesion, None for the
            default.
        annotations: The COCO file of the references if it has another name or place, relative to
            them.
        merge_labels: True if all labels of the references were merged into one.
        preset: The match rule.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    dataset: str = ""
    date: str = ""
    model: str = ""
    why_model: str = ""
    bundle: str = ""
    lesionseg: str = ""
    git_commit: str | None = None
    scored: str = ""
    simulated: bool = False
    training_patients: int | None = None
    training_scans: int | None = None
    training_steps: int | None = None
    training_minutes: float = 0.0
    folds: int = 1
    min_readers: int | None = None
    annotations: str | None = None
    merge_labels: bool = False
    preset: Preset | None = None

    def states(self, key: str) -> bool:
        """Return True if the provenance in scores.json has the key, even if its value is null."""
        return key in self.model_fields_set

    @property
    def of_training(self) -> bool:
        """True if the command `train` wrote the scores, so that numbers of the training exist."""
        return self.states("training_steps") or self.states("folds")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Every number of an evaluation, as in scores.json.

    `scores["lesion_recall"].value` is a number of all cases, `scores["n_lesions"].value` a count.

    Attributes:
        rows: The numbers, and the points of curves.
        evaluated_on: Role of the evaluated cases.
        preset: Name of the match rule.
        image_axes: The numbers of axes that occur among the images, such as `(2,)`.
        size_unit: Unit of the sizes of lesions.
        operating_point: The operating point that decided which candidates were accepted.
        split_is_group_safe: False if a patient has both training and evaluated cases. None if this
            is not known.
        missing_predictions: The cases without a prediction.
        failed_cases: The cases that could not be scored, and the reason of each.
        provenance: Versions, hashes, data and model.
        comparison: Differences between two programs by name. Empty for a single program.
        programs: The two compared programs. Empty for a single program, or if an earlier version
            compared them.
        schema_version: Version of the file's format.
    """

    rows: tuple[Estimate, ...] = ()
    evaluated_on: str = "unknown"
    preset: str = "lesionseg"
    image_axes: tuple[int, ...] = ()
    size_unit: str = "mm"
    operating_point: PointInUse = field(default_factory=PointInUse)
    split_is_group_safe: bool | None = None
    missing_predictions: tuple[str, ...] = ()
    failed_cases: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    comparison: Mapping[str, Difference] = field(default_factory=dict)
    programs: tuple[ComparedProgram, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __getitem__(self, name: str) -> Estimate:
        """Return the row of this name for all cases and labels; see `find`."""
        return self.find(name)

    def find(self, name: str, *, label: str = "", subset: str = "") -> Estimate:
        """Return the row of this name that is not a point of a curve.

        If there is no such row, return an undefined number without a reason.

        Args:
            name: Name of the number, such as `lesion_recall`.
            label: The label or region, empty for all labels together.
            subset: The subset of the cases, such as `site: north`, empty for all cases.
        """
        return self._numbers.get((name, label, subset), Estimate(None))

    def count(self, name: str) -> int:
        """Return a count of all cases such as `n_lesions`; 0 if there is no row of this name."""
        return int(self[name].value or 0)

    def curve(self, name: str, label: str = "") -> tuple[Estimate, ...]:
        """Return the points of a curve such as `froc`, in the order of the rows.

        `label` is a label or region, empty for all labels together. The result is empty if there is
        no such curve.
        """
        return tuple(
            row
            for row in self.rows
            if row.name == name and row.label == label and row.at is not None
        )

    @cached_property
    def _numbers(self) -> dict[tuple[str, str, str], Estimate]:
        """The rows that are not points of curves, by (name, label, subset), for `find`."""
        return {(r.name, r.label, r.subset): r for r in self.rows if r.at is None}

    @property
    def labels(self) -> list[str]:
        """The names of the labels or regions that are scored separately."""
        return [name for name in dict.fromkeys(row.label for row in self.rows) if name]

    @property
    def subgroups(self) -> list[str]:
        """The names of the subgroups of cases and lesions, such as `site: north`."""
        # only subgroups have counts, other subsets (criteria, adjudication) have no `n_groups`
        return [row.subset for row in self.rows if row.name == "n_groups" and row.subset]

    @property
    def has_froc(self) -> bool:
        """True if the FROC is defined: the candidates have scores, and there is a lesion."""
        return any(point.value is not None for point in self.curve("froc"))

    @property
    def is_point_chosen_here(self) -> bool:
        """True if the operating point was chosen on the evaluated cases, so scores are too good.

        False for development cases, on which operating points are meant to be chosen.
        """
        chosen_on = (self.operating_point.chosen_on or "").split("+")  # such as "train+validation"
        # also true if no role is known
        only_development = not any(role and role not in DEVELOPMENT_ROLES for role in chosen_on)
        if only_development or self.evaluated_on in DEVELOPMENT_ROLES:
            return False
        return self.operating_point.optimistic

    @property
    def is_judged_by_boxes(self) -> bool:
        """True if the scores of boxes matter more than the overlap of masks.

        Boxes matter more if all images have two axes, or if there are lesions but no Dice.
        """
        has_no_dice = self.count("n_lesions") > 0 and self["dice"].value is None
        return self.image_axes == (2,) or has_no_dice

    def to_json(self) -> dict[str, Any]:
        """Return the content of scores.json: the fields of the class, `scores` and `curves`.

        `rows` is divided: rows with a value of `at` are in `curves`, all other rows in `scores`.
        """
        rows = [_row_to_json(row) for row in self.rows]
        return {
            **TypeAdapter(type(self)).dump_python(self, mode="json", exclude={"rows"}),
            # keys that the provenance does not state are left out
            "provenance": self.provenance.model_dump(mode="json", exclude_unset=True),
            "scores": [row for row in rows if row["at"] is None],
            "curves": [row for row in rows if row["at"] is not None],
        }

    @classmethod
    def from_json(cls, content: Any, where: str | Path = SCORES_FILE) -> Self:
        """Build scores from the content of a scores.json.

        Args:
            content: The JSON of the file.
            where: The file's name for messages.

        Raises:
            ContentError: If the file has another format, or a value does not fit its key.
        """
        version = _schema_version(content)
        if version != SCHEMA_VERSION:
            what = "this is not a scores.json of evaluate"
            if isinstance(version, int):
                what = f"the schema_version is {version}, but this version reads {SCHEMA_VERSION}"
            raise ContentError(
                f"{where}: {what}. Write the scores again: evaluate reference=REFERENCES "
                "prediction=PREDICTIONS output=SCORES. For a run, start the same train command "
                "again."
            )
        try:
            rows = [_row_from_json(row) for name in ("scores", "curves") for row in content[name]]
        except (KeyError, TypeError, ValueError) as error:
            raise ContentError(
                f"{where}: scores or curves are missing or damaged ({error}). Run evaluate again."
            ) from error
        header = {key: content[key] for key in content if key not in ("scores", "curves")}
        fields = {**header, "rows": rows}
        try:
            return TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            raise ContentError(
                f"{where}: {describe_misfits(error, fields)}. Run evaluate again."
            ) from error


def _schema_version(content: Any) -> Any:
    """Return the `schema_version` in the content of a scores.json; None if it has no version."""
    return content.get("schema_version") if isinstance(content, Mapping) else None


def _row_to_json(row: Estimate) -> dict[str, Any]:
    """Convert an estimate to a row of scores.json. Its interval becomes `low` and `high`."""
    low, high = row.ci95 or (None, None)
    return {
        "name": row.name,
        "label": row.label,
        "subset": row.subset,
        "at": row.at,
        "value": row.value,
        "low": low,
        "high": high,
        "n": row.n,
        "reason": row.reason,
    }


def _row_from_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of scores.json to the fields of an `Estimate`: `low` and `high` to `ci95`."""
    fields = dict(row)
    low = fields.pop("low", None)
    high = fields.pop("high", None)
    return {**fields, "ci95": None if low is None else (low, high)}


def size_column(unit: str) -> str:
    """Return the column of lesions.csv with the diameters in a unit.

    The column is `diameter_percent` for `PERCENT_OF_WIDTH`, otherwise `diameter_mm`. This is also
    the column for pixels ("px"), because an unknown pixel size is set to 1 mm.
    """
    return "diameter_percent" if unit == PERCENT_OF_WIDTH else "diameter_mm"


def read_scores(path: Path) -> Scores:
    """Read a scores.json.

    Args:
        path: The file.

    Returns:
        The scores.

    Raises:
        ReadError: If the file does not exist or is not JSON.
        ContentError: If a value does not fit its key, or the file has another format.
    """
    if not path.is_file():
        raise ReadError(
            f"{path}: this file does not exist. Run evaluate first and give its output."
        )
    return Scores.from_json(read_json(path), path)


def has_current_format(path: Path) -> bool:
    """Return True if a scores.json has the format that this version of lesionseg reads.

    Used to decide if a finished run can be skipped. The file must exist.

    Raises:
        ReadError: If the file is not JSON.
    """
    return bool(_schema_version(read_json(path)) == SCHEMA_VERSION)


def read_provenance(path: Path) -> Provenance:
    """Read only the provenance of a scores.json, of any format.

    The provenance is empty if the file is missing, has no provenance, or has one with other types.

    Raises:
        ReadError: If the file is not JSON.
    """
    content: Any = read_json(path) if path.is_file() else {}
    with suppress(ValidationError, TypeError, KeyError):  # it has another form
        return Provenance.model_validate(content["provenance"])
    return Provenance()


def write_scores(
    folder: Path,
    tables: Tables,
    scores: Scores,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Write the results of an evaluation: the three tables, labels.csv and scores.json.

    Each file is written atomically. scores.json is the last file, so that it exists only if all
    others are complete. An earlier scores.json is removed first, because its numbers do not belong
    to the new tables.

    Args:
        folder: The folder to write to.
        tables: The tables of the scored cases.
        scores: The content of scores.json. Each of its failed cases has a row in cases.csv.
        labels: The names of label values. A label without a name is written as its value.
    """
    (folder / SCORES_FILE).unlink(missing_ok=True)
    write_tables(folder, tables, labels or {}, scores.failed_cases)
    # labels.csv: the average precision at each IoU is inserted before the last two columns
    ious = {f"box_ap_{100 * iou:.0f}": iou for iou in IOUS}
    *first_columns, mean_40_75, mean_50_95 = LABEL_COLUMNS
    rows = []
    for label in scores.labels:
        curve = {point.at: point.value for point in scores.curve("box_average_precision", label)}
        row = {column: curve.get(iou) for column, iou in ious.items()}
        for column in LABEL_COLUMNS:
            # scores.json counts found lesions under another name than labels.csv
            name = "n_true_positive" if column == "n_detected" else column
            row[column] = scores.find(name, label=label).value
        rows.append({"label": label, **row})
    columns = ("label", *first_columns, *ious, mean_40_75, mean_50_95)
    write_csv(folder / "labels.csv", rows, columns)
    write_json(folder / SCORES_FILE, scores.to_json())


def remove_scores(folder: Path) -> None:
    """Remove the files that an earlier `write_scores` wrote to a folder.

    Files that do not exist are skipped, also if the folder does not exist.
    """
    for name in (SCORES_FILE, "labels.csv", *(f"{table}.csv" for table in COLUMNS)):
        (folder / name).unlink(missing_ok=True)


def scores_table(by_role: Mapping[str, Scores]) -> list[list[str]]:
    """Return a table of the most important numbers for the terminal, with one column per role.

    The result is a list of rows of texts. The first row is the header, and the first column has the
    names of the numbers. An undefined number is a dash. A number that is undefined for all roles
    has no row. The table is empty if there are no roles.
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
    """Return the most important numbers of an evaluation as text, by their name in the terminal.

    An undefined number is a dash. So are the scores of boxes unless `is_judged_by_boxes`.
    """
    texts = {printed: str(scores.count(name)) for printed, name in _PRINTED_COUNTS.items()}
    for printed, name in (*_PRINTED.items(), *_PRINTED_OF_BOXES.items()):
        value = scores[name].value
        is_shown = value is not None and (scores.is_judged_by_boxes or printed in _PRINTED)
        texts[printed] = _format_decimals(value if is_shown else None)
    point = scores.operating_point.score
    texts["accepted from score"] = "–" if point is None else format_score(point)
    return texts


def _format_decimals(value: float | None) -> str:
    """Format a number with three decimals; a dash for None.

    A number slightly below 1 becomes `>0.999`, because `1.000` would look perfect.
    """
    if value is None:
        return "–"
    return ">0.999" if 0.9995 <= value < 1 else f"{value:.3f}"
