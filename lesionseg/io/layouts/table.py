"""Rows of every layout to a dataset: contradictions, misspelt columns, labels, lesion limit.

Every layout gives such a table, and one reader checks it.

A layout turns file names and labels into rows. `build_dataset` joins the rows of each case and
checks ids, lesions, readers, patients, folds, labels and channels for all layouts. `manifest.csv`
and `boxes.csv` are such a table on disk.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from lesionseg.core import CaseFiles, Dataset, Labels
from lesionseg.core.dataset import assign_groups, find_likely_visits
from lesionseg.core.finding import LISTED, Finding, collect_errors
from lesionseg.errors import DatasetError, nearest, suggest
from lesionseg.io.case_ids import check_case_id, comparison_key
from lesionseg.io.channels import with_colours, with_missing_channels
from lesionseg.io.layouts.annotated_lesions import (
    LESIONS_KEY,
    MAX_LABELS,
    NO_FINDING,
    AnnotatedLesion,
    CaseLesions,
    lesions_are_boxes,
)
from lesionseg.io.layouts.checks import findings_about
from lesionseg.io.layouts.readers import merge_readers
from lesionseg.io.volumes import count_axes

MAX_LESIONS = 10_000  # per case
_CASE_FIELDS = ("reference", "group", "role", "fold")  # any row of a case may state them
_MAX_SUGGESTED = 10  # rows with a suggestion, because the search for a similar name is slow
# names that other tables use for our columns, in lower case without spaces, dashes and underscores
_OTHER_NAMES = {
    "reference": "mask masks label labels seg segmentation annotation groundtruth gt truth target "
    "lesionmask maskpath labelpath maskfile labelfile roi lesion lesions",
    "label": "mask masks labels seg segmentation annotation groundtruth gt truth",
    "group": "patient patientid subject subjectid participant participantid pid",
    "patient": "patientid subject subjectid participant participantid pid",
    "role": "split set subset partition",
    "fold": "folds cvfold kfold",
    "pixel_mm": "pixelspacing pixelsize spacing spacingmm",
    "reader": "readerid radid radiologist annotator annotatorid rater observer",
}


class ReadingRules(TypedDict, total=False):
    """The rules by which a data folder is read.

    Attributes:
        group: A regular expression that finds the patient in a case id (see `assign_groups`).
        merge_labels: True merges all labels into one, `{1: "lesion"}`.
        may_lack: True allows cases with missing channels (nnU-Net raw folders, manifests).
        nan_background: True treats NaN voxels of images and masks as background.
        grid_of_image: True puts files of equal shape and spacing on the grid of the first image.
        colour: True makes the three colours of pictures the channels.
        min_readers: If several readers drew boxes, the number of readers who must have marked a
            lesion. None: two if three or more readers read the case, otherwise one.
        annotations: A COCO file of any name and place, relative to the folder. None searches for
            a known layout.
    """

    group: str | None
    merge_labels: bool
    may_lack: bool
    nan_background: bool
    grid_of_image: bool
    colour: bool
    min_readers: int | None
    annotations: str | None


@dataclass(frozen=True)
class Row:
    """A part of the description of a case, which a layout makes from a table line, image or mask.

    `build_dataset` joins all rows of a case.

    Attributes:
        files: The id of the case and those of its images, mask, group, role and fold that the row
            contains. Exactly one row of a case has its images, and the columns.
        where: File and line, or the image, for messages. May be empty if the row has images.
        lesions: The lesions in the row. An empty tuple means that the case has no lesion. None
            means that the row says nothing about lesions.
        reader: The person who marked the lesions, or found none.
        size: Height and width of the image, if the row contains them.
    """

    files: CaseFiles
    where: object = ""
    lesions: tuple[AnnotatedLesion, ...] | None = None
    reader: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Table:
    """The rows of a dataset, and what applies to all of its cases.

    Attributes:
        path: The file or folder with the rows, for messages.
        rows: The rows.
        labels: The labels.
        channel_names: The names of the channels, in order.
        findings: Errors and oddities of files and entries.
        is_complete: True if the rows list all lesions of the dataset. A case with images only,
            without a mask and a row of lesions, is then lesion-free. Otherwise it is unlabelled.
        name: The name of the dataset, by default that of its folder.
        split_file: A file in the folder with the training and validation cases.
        layout: The name of the layout, if one reader reads several. Empty otherwise.
    """

    path: Path
    rows: Sequence[Row]
    labels: Labels
    channel_names: tuple[str, ...] = ("image",)
    findings: Sequence[Finding] = ()
    is_complete: bool = False
    name: str = ""
    split_file: Path | None = None
    layout: str = ""


def build_dataset(table: Table, root: Path, layout: str, rules: ReadingRules) -> Dataset:
    """Join the rows of each case into a dataset, and check the dataset.

    1. The rows of each case are joined.
    2. Missing channels are marked, or the colours of pictures become channels.
    3. Patients are assigned, and cases without a fold and likely visits of a patient are reported.
    4. Labels are merged if this is a rule, and checked.
    5. The boxes of several readers are merged.

    Entries that do not fit become findings of the dataset. The number of axes comes from the header
    of the first image that can be read. No other image is opened.

    Args:
        table: The table that a layout returns.
        root: The folder of the dataset.
        layout: The name of the layout. `layout` of the table replaces it if it is not empty.
        rules: The settings of the reading, such as `merge_labels`, by name (`ReadingRules`). All
            are optional.
    """
    # the rows of each case; the steps append their findings to the list
    findings = list(table.findings)
    cases = _join_rows(table, findings)
    dataset = with_missing_channels(
        Dataset(
            name=table.name or root.name,
            root=root,
            layout=table.layout or layout,
            # 2 if no image can be read, which is reported for each case later
            dims=count_axes((files.images[0] for files in cases), default=2),
            channel_names=table.channel_names,
            labels=_without_no_finding(table.labels, findings),
            cases=tuple(cases),
            may_lack=rules.get("may_lack", False),  # whether cases may lack channels
            split_file=table.split_file,
            nan_background=rules.get("nan_background", False),
            grid_of_image=rules.get("grid_of_image", False),
            lesions_are_boxes=any(map(lesions_are_boxes, cases)),
        )
    )
    # channels
    if rules.get("colour") and cases:
        with collect_errors(findings, case="", where=root):
            dataset = with_colours(dataset)
    # folds and patients
    findings += _find_cases_without_fold(dataset)
    group = rules.get("group")
    if group is None:
        findings += find_likely_visits(dataset.cases)
    with collect_errors(findings, case="", where=root):
        dataset = replace(dataset, cases=assign_groups(dataset.cases, group))
    # labels
    with collect_errors(findings, case="", where=root):
        if rules.get("merge_labels"):
            dataset = _merge_labels(dataset)
        _check_label_values(dataset)
    names = dataset.labels.names
    if len({comparison_key(name.strip()) for name in names}) < len(names):
        text = (
            f"{table.path}: some labels differ only in case or blanks: {names}. Write each in one "
            "way, or set data.merge_labels=true (evaluate merge_labels=true)."
        )
        findings.append(Finding("label_names", text))
    # boxes of several readers
    return merge_readers(replace(dataset, findings=tuple(findings)), rules.get("min_readers"))


def _without_no_finding(labels: Labels, findings: list[Finding]) -> Labels:
    """Return the labels without names such as "No finding", with a note if there are any.

    Images with such a label are lesion-free, so it must not become a class of lesions. If no label
    remains, the only label is `lesion`.
    """
    names = {
        value: name for value, name in labels.value_names.items() if not NO_FINDING.fullmatch(name)
    }
    if len(names) == len(labels):
        return labels
    text = 'The label "No finding" counts as no lesion: it is not among the labels.'
    findings.append(Finding("label_names", text, severity="note"))
    return Labels.of(names or {1: "lesion"}, ignore=labels.ignore)


def _join_rows(table: Table, findings: list[Finding]) -> list[CaseFiles]:
    """Join the rows of each case of a table into one `CaseFiles`.

    Rows that contradict or repeat other rows become findings, which are appended to `findings`. If
    the table is complete, a case whose only row is the row of its images, without mask or lesions,
    is lesion-free, with a finding.
    """
    cases: list[CaseFiles] = []
    repeated_rows: list[object] = []
    cases_without_row: list[str] = []
    for rows in _group_rows(table.rows, findings).values():
        files = _merge_fields(rows, findings)
        has_image_only = len(rows) == 1 and rows[0].lesions is None and files.reference is None
        has_no_row = table.is_complete and has_image_only
        if has_no_row:
            cases_without_row.append(files.case)
        if has_no_row or any(row.lesions is not None for row in rows):
            files = _add_lesions(files, rows, table, repeated_rows, findings)
        cases.append(files)
    findings += findings_about(
        table.path,
        repeated_rows,
        "repeated row",
        "counted once",
        kind="repeated_rows",
        severity="warning",
    )
    words = f"of {len(cases)} without a row, counted as lesion-free"
    findings += findings_about(
        table.path, cases_without_row, "image", words, maximum=5, kind="not_in_table"
    )
    return cases


def _group_rows(rows: Iterable[Row], findings: list[Finding]) -> dict[str, list[Row]]:
    """Return the rows of each case by case id. The first row of a case is the one with its images.

    - A second row with images for the same id is left out with a finding.
    - A row of lesions whose case has no image is left out with a finding.
    - An id that cannot be a file name becomes a finding.

    On Windows and macOS, the keys are `comparison_key` of the ids, because their file systems do
    not distinguish some ids.
    """
    # file systems of Windows and macOS do not distinguish some ids
    key_of: Callable[[str], str] = comparison_key if sys.platform in ("win32", "darwin") else str
    by_case: dict[str, list[Row]] = {}
    rows_without_image: list[Row] = []
    for row in rows:
        if not row.files.images:
            rows_without_image.append(row)
            continue
        case = row.files.case
        where = row.where or row.files.images[0]
        with collect_errors(findings, case, where):
            first = by_case.setdefault(key_of(case), [row])[0]
            if first is not row:
                raise DatasetError(
                    f"{case!r} is listed more than once, first in {_row_place(first)}. Suffixes do "
                    "not count, and folders are joined by _. Remove or rename one."
                )
            check_case_id(case, where)
    for row in rows_without_image:
        case = row.files.case
        with collect_errors(findings, case, row.where):
            if key_of(case) not in by_case:
                # a table of another folder has many such rows, and the search takes time
                near = suggest(case, by_case) if len(findings) < _MAX_SUGGESTED else ""
                raise DatasetError(
                    f"the case {case[:200]!r} has no image.{near} Correct its name, or add the "
                    "image."
                )
            by_case[key_of(case)].append(row)
    return by_case


def _row_place(row: Row) -> object:
    """Return the file and line of a row for a message, or the image name if the row has no line."""
    return row.where or row.files.images[0].name


def _merge_fields(rows: Sequence[Row], findings: list[Finding]) -> CaseFiles:
    """Return a case with the mask, group, role and fold from all of its rows.

    If rows contradict each other, the value of the first row is used, and each row with another
    value becomes a finding of severity error.
    """
    files = rows[0].files
    for row in rows[1:]:
        for name in _CASE_FIELDS:
            value = getattr(row.files, name)
            current = getattr(files, name)
            if value in ("", None, current):
                continue
            if current in ("", None):
                files = replace(files, **{name: value})
                continue
            first = next(other for other in rows if getattr(other.files, name) == current)
            text = (  # ends of values, because paths differ there
                f"{row.where}: {name} of the case {files.case!r} is {str(value)[-100:]!r} here, "
                f"but {str(current)[-100:]!r} in {_row_place(first)}. Write the same {name} in "
                "all rows of a case."
            )
            findings.append(Finding(LISTED, text, files.case, severity="error"))
    return files


def _add_lesions(
    files: CaseFiles,
    rows: Sequence[Row],
    table: Table,
    repeated_rows: list[object],
    findings: list[Finding],
) -> CaseFiles:
    """Return a case with the lesions of its rows under the key `LESIONS_KEY` of its annotations.

    - If several readers marked the case, its lesions are boxes, without mask and outlines, because
      only boxes can be merged.
    - Lesions with a label such as "No finding" are left out.
    - Rows that contradict other rows, or do not fit, become findings.

    Args:
        files: The case with its other fields.
        rows: The rows of the case.
        table: The table, for its labels.
        repeated_rows: Receives the place (`Row.where`) of each row that repeats an earlier row.
            Its lesions are not added.
        findings: Receives the findings.
    """
    lesions: list[AnnotatedLesion] = []
    earlier: set[tuple[str, tuple[AnnotatedLesion, ...]]] = set()
    readers_with_lesions = {row.reader for row in rows if row.lesions}
    readers = {row.reader for row in rows if row.lesions is not None}
    has_several_readers = len(readers) > 1
    for row in rows:
        with collect_errors(findings, files.case, row.where):
            if row.lesions is None:
                continue
            _check_reader(row, readers, readers_with_lesions)
            key = (row.reader, row.lesions)
            if row.lesions and key in earlier:  # rows without lesions may repeat
                repeated_rows.append(row.where)
                continue
            earlier.add(key)
            if len(lesions) + len(row.lesions) > MAX_LESIONS:
                raise DatasetError(
                    f"the case {files.case!r} has more than {MAX_LESIONS} boxes. Remove the boxes "
                    "that are not lesions."
                )
            for lesion in row.lesions:
                if NO_FINDING.fullmatch(table.labels.value_names.get(lesion.label, "")):
                    continue
                with collect_errors(findings, files.case, lesion.where or row.where):
                    if has_several_readers:
                        lesion = replace(lesion, outline=(), mask_value=None)
                    _check_lesion(lesion, files, table.labels, has_several_readers)
                    if lesion.reader != row.reader:
                        lesion = replace(lesion, reader=row.reader)
                    lesions.append(lesion)
    named_readers = tuple(sorted(readers - {""}))
    return replace(
        files,
        reference=None if has_several_readers and lesions else files.reference,
        # the first row is the row of the image
        annotations={LESIONS_KEY: CaseLesions(tuple(lesions), named_readers, size=rows[0].size)},
    )


def _check_reader(row: Row, readers: set[str], readers_with_lesions: set[str]) -> None:
    """Raise `DatasetError` if a row contradicts other rows of its case. There are two reasons.

    - The row names no reader, but another row of the case does.
    - The row says that there is no lesion, but another row of the same reader has a lesion.

    Args:
        row: The row.
        readers: The readers of all rows of the case.
        readers_with_lesions: The readers of the rows with a lesion.
    """
    if len(readers) > 1 and not row.reader:
        raise DatasetError(
            f"the row of {row.files.case!r} names no reader, but another row of this case does. "
            "Name the reader."
        )
    if not row.lesions and row.reader in readers_with_lesions:
        whose = f" of the reader {row.reader!r}" if row.reader else ""
        raise DatasetError(
            f"the row states that {row.files.case!r} has no lesion, but another row{whose} has a "
            "box. Remove one of them."
        )


def _check_lesion(
    lesion: AnnotatedLesion, files: CaseFiles, labels: Labels, has_several_readers: bool
) -> None:
    """Raise `DatasetError` if a lesion does not fit its case. There are five reasons.

    - The box ends in the first pixel, so its numbers are probably fractions of the image.
    - Several readers marked the case, but the annotation has no box or is an ignored region.
    - The case has a mask and one reader, but the lesion has no voxel value in the mask
      (`mask_value`). An ignored region needs none.
    - The label is not a label of the dataset.
    - The label is not annotated in the case (`CaseFiles.annotated`).
    """
    # the last two numbers are the stops of y and x; a lesion without a box passes
    if lesion.unit == "pixel" and max(lesion.box[-2:], default=1) < 1:
        raise DatasetError(
            f"the box {lesion.box} ends in the first pixel, as if its numbers were shares of the "
            "image. Multiply x by the width and y by the height of the image."
        )
    if has_several_readers and (lesion.is_ignored or not lesion.box):
        raise DatasetError(
            f"the case {files.case!r} has several readers, so each annotation must have a "
            "box and no iscrowd. Correct it."
        )
    has_value = has_several_readers or lesion.is_ignored or lesion.mask_value is not None
    if files.reference is not None and not has_value:
        raise DatasetError(
            f"the case {files.case!r} has a mask, {files.reference.name}, but the "
            "annotation states no mask_label, its value in the mask. Add it, or remove the mask."
        )
    name = labels.value_names.get(lesion.label)
    if name is None:
        raise DatasetError(
            f"the label {lesion.label} (in a datalist: class {lesion.label - 1}) is not among the "
            f"labels of the dataset ({', '.join(labels.names)}). Add it to labels.json, or correct "
            "the annotation."
        )
    if files.annotated and name not in files.annotated:
        raise DatasetError(
            f"the case {files.case!r} has a lesion of the label {name}, which its column "
            "annotated does not name. Add it there."
        )


def _find_cases_without_fold(dataset: Dataset) -> list[Finding]:
    """Return a finding about the labelled training cases without a fold, if some cases have a fold.

    Return [] if no case has a fold, because folds are then assigned later.
    """
    training_cases = [
        case for case in dataset.cases if case.is_labelled and case.role not in ("test", "external")
    ]
    names = [case.case for case in training_cases if case.fold is None]
    if len(names) == len(training_cases):
        return []
    words = "without a fold, used for training in every fold"
    return findings_about(dataset.root, names, "case", words, kind="folds", severity="warning")


def _merge_labels(dataset: Dataset) -> Dataset:
    """Return the dataset with all labels merged into one label, for the rule `merge_labels`.

    Raises:
        DatasetError: If some labels are not annotated in a case, because its merged label would
            then lack lesions.
    """
    for case in dataset.cases:
        if case.annotated:
            raise DatasetError(
                f"{dataset.root}: merge_labels=true needs all labels annotated in every case, "
                f"but {case.case!r} has only {';'.join(case.annotated)}. Remove the case or the "
                "setting."
            )
    return replace(dataset, labels=dataset.labels.merge())


def _check_label_values(dataset: Dataset) -> None:
    """Raise `DatasetError` if a label value cannot be used. There are two reasons.

    - The value is above 255, but predicted masks have 8-bit voxels.
    - A case has an instance mask, whose lesions get label 1, but the dataset has no label 1.
    """
    has_instance_masks = any("instances" in case.annotations for case in dataset.cases)
    if has_instance_masks and 1 not in dataset.labels.values:
        raise DatasetError(
            f"{dataset.root}: the lesions of instance masks have the label 1, which is not among "
            f"the labels {list(dataset.labels.values)}. Add it to labels.json, or set "
            "data.merge_labels=true (evaluate merge_labels=true)."
        )
    too_high = [value for value in dataset.labels.mask_values if value > MAX_LABELS]
    if too_high:
        raise DatasetError(
            f"{dataset.root}: the label {too_high[0]} ({dataset.labels.mask_names[too_high[0]]}) "
            f"is above {MAX_LABELS}. Give the labels values from 1 to {MAX_LABELS}, or set "
            "data.merge_labels=true (evaluate merge_labels=true) if all of them are lesions."
        )


def column_findings(
    path: Path, columns: Iterable[str], known: Sequence[str], effect: str
) -> list[Finding]:
    """Return a finding for each unknown column that is probably meant to be a known column.

    The unknown name is similar to the known one, or other programs use it for such a column. A
    known column that the table already has is not suggested. Neither is `reference` if the table
    has a column `instances`.

    Args:
        path: The table.
        columns: The columns of the table.
        known: The columns that have a meaning.
        effect: What happens to an unknown column, for the message.
    """
    present = {*columns}
    findings: list[Finding] = []
    for column in sorted(present - {*known, ""}):  # "" is a column without a name
        # the name in lower case without blanks, dashes and underscores, as in `_OTHER_NAMES`
        letters = re.sub(r"[\s_-]", "", column).lower()
        similar = [name for name in known if letters in _OTHER_NAMES.get(name, "").split()]
        similar += nearest(column.lower(), known, cutoff=0.8)  # the share of equal letters
        if not similar or similar[0] in present:  # the table already has the known column
            continue
        if similar[0] == "reference" and "instances" in present:  # it replaces `reference`
            continue
        text = (
            f"{path}: the column {column!r} is unknown and {effect}. Did you mean {similar[0]!r}? "
            "Then rename it."
        )
        findings.append(Finding("columns", text))
    return findings
