"""Columns (name, type, unit, meaning) of cases.csv, lesions.csv and candidates.csv; their parts.

They are the three tables of an evaluation.

Matching writes their rows, and every score is a function of them. `cases.csv`, `lesions.csv` and
`candidates.csv` have the same columns. Each column is declared here, once, with its type, unit and
meaning; the documentation is made from these lines.

In memory, a row belongs to a part. Rows of the part "" count for all labels together and for their
own label. If labels are pooled, a candidate may find lesions of any label: such rows have the part
`POOLED`, and the rows of the same case with each label matched separately have the part
`BY_LABEL`. Rows of a region have the part `region_part(name)`. The files contain the rows of all
labels together.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.errors import ContentError, ReadError
from lesionseg.evaluation.measures import column_names
from lesionseg.io.text import plain_text, write_csv

NEVER_FOUND = -np.inf  # the score at which a lesion is found if no candidate finds it
POOLED = "pooled"
BY_LABEL = "by label"
MISSING = "missing"  # the status of a case without a prediction
FAILED_STATUS = "failed"  # the status of a case that could not be scored
# columns that are empty in the files for a case without a prediction
_OF_RESULT = (
    "n_candidates",
    "n_false_positive",
    "n_ignored",
    "n_outside",
    "n_counted",
    "predicted_ml",
    "false_positive_ml",
    "splits",
    "merges",
)
RowCells = dict[str, Any]


class Column(NamedTuple):
    """A column of a table. `kind` is text, integer, number or flag (true or false)."""

    name: str
    kind: str
    unit: str
    meaning: str


def _declare(text: str) -> tuple[Column, ...]:
    """Parse the declaration of a table: one column per line, as name | kind | unit | meaning."""
    return tuple(Column(*(cell.strip() for cell in line.split("|"))) for line in text.splitlines())


CASE_COLUMNS = _declare("""\
case | text | | Id of the case.
group | text | | Id of the patient.
role | text | | Role of the case, such as test.
status | text | | ok, missing (no prediction) or failed (not scored, see message).
n_lesions | integer | | Number of reference lesions.
n_candidates | integer | | Number of retained candidates.
n_detected | integer | | Number of lesions found at the operating point.
n_missed | integer | | Number of missed lesions.
n_false_positive | integer | | Number of false positives.
n_ignored | integer | | Number of accepted candidates that are neither true nor false positive.
n_outside | integer | | Number of candidates outside `keep_zones` or the grid, which do not count.
dice | number | | Dice of all labels together. Empty without masks or without a lesion.
surface_dice | number | | Surface Dice. Empty in the same cases.
hd95_mm | number | mm | HD95. Empty also if one of the masks is empty.
reference_ml | number | ml | Volume of all lesions. Empty in 2-D and with boxes without voxels.
predicted_ml | number | ml | Volume of the accepted candidates. Empty in 2-D and with bare boxes.
false_positive_ml | number | ml | Volume of the false positives. Empty in 2-D or if one is unknown.
splits | integer | | Number of lesions that several accepted candidates overlap.
merges | integer | | Number of accepted candidates that overlap several lesions.
case_score | number | | Highest score of a candidate that counts, or 0. Empty without scores.
seconds | number | s | Time of matching and evaluation.
warning | text | | Warning of the input check.
input_score | number | | Score of the input check: how unlike the training scans. Above 1: unlike.
slice_spacing_mm | number | mm | Largest spacing of a volume, rounded to 0.1 mm. Empty in 2-D.
annotated_share | number | | Share of the labels that a reader looked for; 0 without a prediction.
message | text | | The reason why the case could not be scored.
axes | integer | | Number of spatial axes.
size_unit | text | | Unit of lengths: mm, mm at the detector, or px without a pixel size.
n_counted | integer | | Number of accepted candidates that are not in an ignored region.
n_pairs | integer | | Number of one-to-one pairs of a lesion and a candidate, for panoptic quality.
pair_iou | number | | Sum of the IoU of these pairs. Empty if one side of a pair has no mask.
n_unpaired | integer | | Number of candidates among n_counted without such a pair.
n_false_iou10 | integer | | Number of false positives by IoU of at least 0.1.
n_false_any_overlap | integer | | Number of false positives by any overlap.
n_false_iou50 | integer | | Number of false positives by IoU of at least 0.5.
n_false_centre_distance | integer | | Number of false positives by the distance of centres.""")

_PLACE = """\
diameter_mm | number | mm | Equivalent diameter. In pixels if the pixel size is unknown.
diameter_percent | number | % | Equivalent diameter relative to the image width. Empty in 3-D.
volume_ml | number | ml | Volume. Empty in 2-D, and for a box without a known volume.
"""
_BOX = """\
start_z_vox | number | voxel | First corner of the box along z. Empty in 2-D.
start_y_vox | number | voxel | First corner of the box along y.
start_x_vox | number | voxel | First corner of the box along x.
stop_z_vox | number | voxel | Last corner of the box along z, exclusive. Empty in 2-D.
stop_y_vox | number | voxel | Last corner of the box along y, exclusive.
stop_x_vox | number | voxel | Last corner of the box along x, exclusive.
centre_x_mm | number | mm | Centre along the RAS axis x.
centre_y_mm | number | mm | Centre along the RAS axis y.
centre_z_mm | number | mm | Centre along the RAS axis z. Empty in 2-D.
"""

LESION_COLUMNS = _declare(f"""\
case | text | | Id of the case.
group | text | | Id of the patient.
lesion | integer | | Id of the lesion in the reference.
label | text | | Name of the label, or its value.
{_PLACE}\
voxels | integer | | Number of voxels. Empty for a box without voxels, like the next three.
slices | integer | | Number of slices along the axis with the coarsest spacing.
long_axis_mm | number | mm | Largest diameter within the slice with the most voxels.
short_axis_mm | number | mm | Width of that slice perpendicular to the long axis.
near_resolution | flag | | True below 8 voxels or on one slice: its size is uncertain.
{_BOX}\
detected | flag | | True if the lesion is found at the operating point.
detected_at | number | | Highest score at which it is found. Empty if never, or without scores.
candidate | integer | | Id of the candidate that finds it.
iou | number | | IoU of the lesion and that candidate.
any_overlap | flag | | True if it is found by any overlap.
iou50 | flag | | True if it is found by an IoU of at least 0.5.
centre_distance | flag | | True if it is found by the distance of centres.
iou10 | flag | | True if it is found by an IoU of at least 0.1.
why_missed | text | | The reason why it was missed. Empty for a found lesion.
split | flag | | True if several accepted candidates overlap it.
merged | flag | | True if an accepted candidate overlaps this and another lesion.
zone | text | | Anatomical zone.
covered | number | | Share that the accepted candidates cover; if none touches it, all.
nearest_candidate | integer | | Id of the candidate that why_missed concerns.
nearest_score | number | | Score of that candidate.
nearest_iou | number | | IoU of the lesion and that candidate.
box_iou | number | | Largest IoU of its box and that of an accepted candidate of its label.""")

CANDIDATE_COLUMNS = _declare(f"""\
case | text | | Id of the case.
group | text | | Id of the patient.
candidate | integer | | Id of the candidate.
label | text | | Name of the label, or its value.
score | number | | Score. Empty if the prediction has no scores.
probability | number | | Calibrated probability of being a true positive.
{_PLACE}{_BOX}\
accepted | flag | | True if it counts at the operating point.
outcome | text | | true_positive, false_positive, ignored or not_accepted at the operating point.
lesion | integer | | Id of the lesion that it finds, otherwise of the one that it overlaps most.
iou | number | | IoU of the candidate and that lesion.
touches_lesion | flag | | True if it overlaps a lesion of any label.
outcome_any | text | | Outcome if all retained candidates are accepted, as in the FROC.
zone | text | | Anatomical zone.
in_lesions | number | | Share of the candidate that is located in lesions.
box_hits | integer | | Bit k is 1 if it is true at box IoU 0.1 + 0.05·k; −1 beyond 100.""")

# columns that only the tables in memory have
_IN_MEMORY = {
    "cases": (
        Column("label", "object", "", "Label value of a row that states the Dice of a label."),
        Column("part", "object", "", "The part."),
        Column("unannotated", "object", "", "Label values that no reader looked for."),
        Column("operating_point", "object", "", "The operating point that was applied."),
    ),
    "lesions": (Column("part", "object", "", "The part."),),
    "candidates": (Column("part", "object", "", "The part."),),
}
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "cases": CASE_COLUMNS,
    "lesions": LESION_COLUMNS,
    "candidates": CANDIDATE_COLUMNS,
}
# further text columns of tables that commands write; a text may look like a number
_OTHER_TEXTS = (
    *("path", "visit", "earlier", "bundle", "key", "state", "digest", "finished"),
    *("study_uid", "series_uid", "instance_uid"),
)
TEXT_COLUMNS = frozenset(_OTHER_TEXTS).union(
    column.name for columns in COLUMNS.values() for column in columns if column.kind == "text"
)
# columns that are compared with the operating point; pandas 2 may read another last digit
_EXACT = ("score", "detected_at")


def region_part(name: str) -> str:
    """Return the value of the column `part` for the rows of a region."""
    return f"region {name}"


@dataclass(frozen=True)
class CaseRows:
    """The rows of one or more cases, by table."""

    cases: list[RowCells] = field(default_factory=list)
    lesions: list[RowCells] = field(default_factory=list)
    candidates: list[RowCells] = field(default_factory=list)

    def add(self, other: "CaseRows", part: str) -> None:
        """Append the rows of `other`, such as those of a region, with `part` as their part.

        Rows of the table of cases that only state the Dice of a label are left out.
        """
        cell = {"part": part}
        self.cases.extend(row | cell for row in other.cases if row["part"] == "")
        self.lesions.extend(row | cell for row in other.lesions)
        self.candidates.extend(row | cell for row in other.candidates)


@dataclass(frozen=True, eq=False)
class Tables:
    """The three tables as pandas frames, and the arrays that the scores are computed from.

    Attributes:
        cases: One row per case, with the columns `CASE_COLUMNS`.
        lesions: One row per lesion, with the columns `LESION_COLUMNS`.
        candidates: One row per candidate, with the columns `CANDIDATE_COLUMNS`.
        every: The same tables with the rows of all parts. None for tables that were read from files
            or that are a part of others.
    """

    cases: pd.DataFrame
    lesions: pd.DataFrame
    candidates: pd.DataFrame
    every: "Tables | None" = None

    @classmethod
    def of(cls, results: Iterable[CaseRows]) -> Self:
        """Build the three tables from the rows of the evaluated cases.

        The result contains the rows of all labels together, and its attribute `every` the rows of
        all parts. `results` may be a generator, so that only one `CaseRows` is in memory at once.
        """
        cells: dict[str, dict[Column, list[Any]]] = {
            name: {column: [] for column in (*columns, *_IN_MEMORY[name])}
            for name, columns in COLUMNS.items()
        }
        # collect the cells by table and column
        for result in results:
            for name, by_column in cells.items():
                for row in getattr(result, name):
                    for column, values in by_column.items():
                        values.append(row.get(column.name))
        every = cls(
            *(
                pd.DataFrame(
                    {column.name: _as_array(values, column) for column, values in columns.items()}
                )
                for columns in cells.values()
            )
        )
        cases, lesions, candidates = map(_drop_parts, every.frames)
        return cls(cases, lesions, candidates, every)

    # --- parts -------------------------------------------------------------------------------

    def of_cases(self, names: Collection[str]) -> "Tables":
        """Return the tables with only the rows of these case ids, of all labels together."""
        return Tables(*(frame[frame["case"].isin(names)] for frame in self.frames))

    def of_zone(self, zone: str) -> "Tables":
        """Return the tables of all cases, with only the lesions and candidates of one zone."""
        frames = (frame[frame["zone"] == zone] for frame in (self.lesions, self.candidates))
        return Tables(self.cases, *frames)

    def of_label(self, label: int) -> "Tables":
        """Return the tables for the scores of one label value.

        - cases: all cases in which the label is annotated. `dice` is the Dice of the label, NaN for
          cases without a lesion of the label. `annotated_share` is 1, or 0 without a prediction.
          The other columns still concern all labels together.
        - lesions and candidates: the rows of this label. They were matched only with each other.
        """
        every = self.every or self
        cases = self.cases
        # leave out the cases in which no reader looked for the label
        is_known = [label not in unannotated for unannotated in cases["unannotated"]]
        cases = cases[np.array(is_known, bool)]
        lesions, candidates = (
            frame[
                frame["part"].isin(["", BY_LABEL])
                & (frame["label"] == label)
                & frame["case"].isin(cases["case"])
            ]
            for frame in (every.lesions, every.candidates)
        )
        # replace the Dice of all labels by the Dice of this label
        dice_rows = every.cases[(every.cases["part"] == BY_LABEL) & (every.cases["label"] == label)]
        dice = cases["case"].map(dict(zip(dice_rows["case"], dice_rows["dice"], strict=True)))
        has_dice = cases["case"].isin(lesions["case"]) & (not self.lacks_masks)
        cases = cases.assign(
            dice=dice.astype(float).where(has_dice),
            annotated_share=(cases["status"] != MISSING).astype(float),
        )
        return Tables(cases, lesions, candidates)

    @property
    def regions(self) -> list[str]:
        """The names of the regions that are scored separately, in the order of the rows.

        Empty for tables that were read from files, and for subsets of tables such as `of_cases`.
        """
        if self.every is None:
            return []
        parts = self.every.cases["part"].unique()
        # the prefix of `region_part`
        return [part.removeprefix("region ") for part in parts if part.startswith("region ")]

    def of_region(self, name: str) -> "Tables":
        """Return the tables of one region by its name, without rows if the name is unknown."""
        every = self.every or self
        part = region_part(name)
        return Tables(*(frame[frame["part"] == part] for frame in every.frames))

    @property
    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The tables of cases, lesions and candidates, in this order."""
        return self.cases, self.lesions, self.candidates

    # --- arrays for scores -------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The ids of all groups (patients), sorted. Arrays `[groups]` have this order."""
        return tuple(sorted(set(self.cases["group"])))

    @cached_property
    def group_of(self) -> Mapping[str, Integers]:
        """The group of each row, as an index of `groups`, by the name of the table (`COLUMNS`)."""
        index = pd.Index(self.groups, dtype=object)
        pairs = zip(COLUMNS, self.frames, strict=True)
        return {name: index.get_indexer(frame["group"].to_numpy(object)) for name, frame in pairs}

    def add_up(self, table: str, values: Any) -> Numbers:
        """Sum numbers or flags of the rows of a table by group (patient) `[groups]`.

        `table` is `cases`, `lesions` or `candidates`. `values` has one number per row of the table.
        """
        numbers = np.asarray(values, float)
        groups = self.group_of[table]
        return np.bincount(groups, weights=numbers, minlength=len(self.groups)).astype(float)

    @cached_property
    def lesions_by_group(self) -> Numbers:
        """Number of lesions of each group `[groups]`."""
        return self.add_up("lesions", np.ones(len(self.lesions)))

    @cached_property
    def sums(self) -> Mapping[str, Numbers]:
        """The counts of each group `[groups]` from which recall, precision and rates are computed.

        - `lesions`: lesions
        - `cases`: cases, each counted by its annotated share
        - `free`: lesion-free cases
        - `found`: lesions found at the operating point
        - `true` and `false`: true and false positives
        - `false_in_free`: false positives in lesion-free cases
        - `clean`: lesion-free cases without a false positive
        """
        free = self.is_lesion_free
        return {
            "lesions": self.lesions_by_group,
            "cases": self.add_up("cases", self.case_share),
            "free": self.add_up("cases", free),
            "found": self.add_up("lesions", self.lesions["detected"]),
            "true": self.add_up("candidates", self.candidates["outcome"] == "true_positive"),
            "false": self.add_up("cases", self.false_by_case),
            "false_in_free": self.add_up("cases", self.false_by_case * free),
            "clean": self.add_up("cases", (self.false_by_case == 0) & free),
        }

    @cached_property
    def case_share(self) -> Numbers:
        """The fraction of the labels that a reader looked for in each case `[cases]`.

        Rates such as false positives per case count the case by this fraction.
        """
        return np.asarray(self.cases["annotated_share"], float)

    @property
    def exposure(self) -> float:
        """The denominator of rates: the number of cases, each counted by its annotated share."""
        return float(self.case_share.sum())

    @cached_property
    def is_predicted(self) -> Flags:
        """True for each case `[cases]` with a prediction."""
        return np.asarray(self.cases["status"] != MISSING, bool)

    @cached_property
    def has_lesion(self) -> Flags:
        """True for each case `[cases]` with a reference lesion."""
        return np.asarray(self.cases["case"].isin(self.lesions["case"]), bool)

    @property
    def is_lesion_free(self) -> Flags:
        """True for each case `[cases]` that counts as lesion-free, for example for specificity.

        Such a case has a prediction and no reference lesion, and its reader looked for all labels.
        """
        # the fraction of labels that the reader looked for: 1 for all, 0 without a prediction
        result: Flags = ~self.has_lesion & (self.case_share == 1)
        return result

    @property
    def false_positives(self) -> pd.DataFrame:
        """The candidates that are false positives at the operating point."""
        return self.candidates[self.candidates["outcome"] == "false_positive"]

    @cached_property
    def false_by_case(self) -> Numbers:
        """Number of false positives of each case `[cases]` at the operating point."""
        counts = self.false_positives["case"].value_counts()
        return np.asarray(self.cases["case"].map(counts).fillna(0), float)

    @property
    def has_scores(self) -> bool:
        """True if no prediction lacks scores. Also True if there are no candidates or no cases."""
        return bool(self.cases["case_score"].notna().all())

    @cached_property
    def lacks_masks(self) -> bool:
        """True if lesions are compared only by boxes, so that no Dice can be computed.

        Precisely: there are predicted cases with a lesion, and none of these cases has a Dice. The
        Dice of a case without a prediction is then undefined instead of 0.
        """
        predicted = self.cases[self.is_predicted & self.has_lesion]
        return len(predicted) > 0 and bool(predicted["dice"].isna().all())

    @cached_property
    def detected_at(self) -> Numbers:
        """The highest threshold at which each lesion `[lesions]` is found, or `NEVER_FOUND`."""
        return np.asarray(self.lesions["detected_at"].fillna(NEVER_FOUND), float)

    @cached_property
    def _is_false(self) -> Flags:
        """True for candidates `[candidates]` that are false positives if all are accepted."""
        return np.asarray(self.candidates["outcome_any"] == "false_positive", bool)

    @cached_property
    def false_score(self) -> Numbers:
        """The scores of the false positives if all candidates are accepted `[false positives]`.

        A score is 0 if the prediction has no scores. Curves such as the FROC use these scores.
        """
        return np.asarray(self.candidates["score"].fillna(0.0), float)[self._is_false]

    @cached_property
    def false_group(self) -> Integers:
        """The group of each false positive in `false_score`, as an index of `groups`."""
        return self.group_of["candidates"][self._is_false]

    @cached_property
    def observed(self) -> Numbers:
        """The thresholds to choose from: all distinct scores that change a count, ascending.

        A count changes at the scores at which a lesion is found or a false positive is accepted.
        """
        found = self.detected_at[self.detected_at > NEVER_FOUND]
        return np.unique(np.concatenate([found, self.false_score]))

    def count_at(self, threshold: ArrayLike) -> tuple[Any, Any]:
        """Count the found lesions and the false positives at one or more thresholds.

        Candidates with at least the score `threshold` are accepted. For a number, the two counts
        are integers. For an array of thresholds, they are arrays of its shape.
        """
        scores = (np.sort(self.detected_at), np.sort(self.false_score))
        # number of sorted scores that are not below the threshold
        n_found, n_false = (len(s) - np.searchsorted(s, threshold) for s in scores)
        return n_found, n_false


def _drop_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the rows that count for all labels together, without rows of labels or regions."""
    is_of_all_labels = frame["part"].isin(["", POOLED])
    return frame if is_of_all_labels.all() else frame[is_of_all_labels]


def _as_array(cells: Sequence[Any], column: Column) -> Any:
    """Convert the cells of a column to an array of the column's kind, for a data frame.

    None becomes NaN in a column of numbers, NA in a column of integers, and False in a column of
    flags. Cells of other kinds (text, object) are not converted.
    """
    if column.kind == "number":
        return np.array(cells, float)
    if column.kind == "integer" and None in cells:
        return pd.array(cells, dtype="Int64")
    types = {"integer": np.int64, "flag": np.bool_}
    filled: NDArray[Any] = np.empty(len(cells), types.get(column.kind, np.object_))
    filled[:] = cells  # numpy converts None to False in an array of flags
    return filled


# --- files -----------------------------------------------------------------------------------


def write_tables(
    folder: Path,
    tables: Tables,
    labels: Mapping[int, str],
    failed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the tables of an evaluation: cases.csv, lesions.csv and candidates.csv.

    Each file is written atomically. In cases.csv, each region has columns for its Dice and its
    number of lesions. For a case without a prediction, the volumes and numbers of candidates are
    empty. `read_tables` reads the files.

    Args:
        folder: The folder to write to.
        tables: The tables of the scored cases.
        labels: The names of label values. A label without a name is written as its value.
        failed: The reason of each case that could not be scored. It has a row in cases.csv.
    """
    # cases.csv
    rows = list(_rows_to_write(tables.cases, CASE_COLUMNS))
    by_case = {row["case"]: row for row in rows}
    for row in rows:
        if row["status"] == MISSING:
            row.update(dict.fromkeys(_OF_RESULT))  # None, which is written as an empty cell
    # two further columns for each region
    columns = [column.name for column in CASE_COLUMNS]
    for name, column in column_names(tables.regions).items():
        cases = tables.of_region(name).cases  # one row per case
        for case, dice, n in zip(cases["case"], cases["dice"], cases["n_lesions"], strict=True):
            by_case[case] |= {f"dice_{column}": _cell(dice), f"n_lesions_{column}": n}
        columns += [f"dice_{column}", f"n_lesions_{column}"]
    for case, message in failed.items():
        rows.append({"case": case, "status": FAILED_STATUS, "message": message})
    write_csv(folder / "cases.csv", rows, columns)
    # lesions.csv and candidates.csv, with names of labels instead of values
    for name, table in (("lesions", tables.lesions), ("candidates", tables.candidates)):
        named = [labels.get(label, str(label)) for label in table["label"]]
        named_rows = _rows_to_write(table.assign(label=named), COLUMNS[name])
        write_csv(folder / f"{name}.csv", named_rows, [column.name for column in COLUMNS[name]])


def _rows_to_write(table: pd.DataFrame, columns: Sequence[Column]) -> Iterator[RowCells]:
    """Yield the rows of a table in the form of the CSV files, as cells by column name.

    Flags become the texts `true` and `false`. Positions in voxels or mm are rounded to four
    decimals. Missing values (NaN, NA) become None. Only the given columns are written.
    """
    cells = []
    for column in columns:
        values = table[column.name]
        if column.kind == "flag":
            cells.append([str(value).lower() for value in values])
        elif column.name.startswith(("start_", "stop_", "centre_")) and column.kind == "number":
            cells.append([_cell(round(value, 4)) for value in values.tolist()])
        else:
            cells.append([_cell(value) for value in values.tolist()])
    names = [column.name for column in columns]
    for row in zip(*cells, strict=True):
        yield dict(zip(names, row, strict=True))


def _cell(value: Any) -> Any:
    """Return the cell of a CSV file for a value: None, so that it is empty, for NaN, NA or None."""
    return None if pd.isna(value) else value


def read_tables(folder: Path) -> Tables:
    """Read cases.csv, lesions.csv and candidates.csv of an evaluation from its folder.

    Cases that could not be scored are left out.

    Raises:
        ReadError: If a table is missing.
        ContentError: If a table cannot be read, or a column is missing or does not have its
            declared type.
    """
    frames = []
    for name, columns in COLUMNS.items():
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise ReadError(f"{path}: a table of the evaluation is missing. Run evaluate again.")
        frames.append(_as_declared(read_table(path), columns, path))
    cases, lesions, candidates = frames
    cases = cases[cases["status"] != FAILED_STATUS].reset_index(drop=True)
    return Tables(cases, lesions, candidates)


def _as_declared(table: pd.DataFrame, columns: Sequence[Column], path: Path) -> pd.DataFrame:
    """Check the type of each declared column of a table that was read.

    Empty cells of text columns become "". The table is changed in place and returned.

    Args:
        table: The table as it was read from the file.
        columns: The declared columns of the table.
        path: The file, for error messages.

    Raises:
        ContentError: If a column is missing, or its cells are not of its declared kind.
    """
    for column in columns:
        name = column.name
        if name not in table:
            raise ContentError(
                f"{path}: the column {name} is missing. Run evaluate again, which writes all "
                "tables together."
            )
        if column.kind == "text":
            table[name] = table[name].fillna("").astype(object)
        values = table[name]
        is_number = is_numeric_dtype(values) and not is_bool_dtype(values)  # flags are "numeric"
        is_fitting = is_number if column.kind in ("integer", "number") else is_bool_dtype(values)
        if column.kind != "text" and values.notna().any() and not is_fitting:
            raise ContentError(
                f"{path}: the column {name} must contain only values of the kind {column.kind}. "
                "Run evaluate again, which writes all tables together."
            )
        if column.kind == "flag" and values.notna().all():
            table[name] = values.astype(bool)  # pandas reads a column without rows as objects
    return table


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV table that a command wrote, such as cases.csv or predictions.csv.

    Returns:
        The table. Cells of `TEXT_COLUMNS` stay text, even if they look like a number or a missing
        value (007, NA). They lose the apostrophe that `escape_formula` added for spreadsheets. An
        empty cell is a missing value, and so is `nan` in columns other than texts.

    Raises:
        ReadError: If the file does not exist.
        ContentError: If it cannot be read.
    """
    if not path.is_file():
        raise ReadError(f"{path}: the table does not exist.")
    try:
        names = pd.read_csv(path, nrows=0).columns
        texts = names.intersection(sorted(TEXT_COLUMNS))
        exact = names.intersection(_EXACT)
        # a case may have the name "NA"; a number that is not defined is empty or "nan"
        missing = {name: [""] if name in texts else ["", "nan"] for name in names}
        types = dict.fromkeys((*texts, *exact), str)
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
        for name in exact:  # Python's `float` reads every digit of a score
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
