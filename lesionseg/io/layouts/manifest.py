"""Layout manifest.csv: its columns, labels.json; table of scans without references."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, PositiveInt, RootModel

from lesionseg.core import CaseFiles, Labels, Role, numbers_first
from lesionseg.core.finding import LISTED, Finding, collect_errors, require_no_errors
from lesionseg.core.records import parse_as
from lesionseg.errors import DatasetError, require_one_of
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.layouts.checks import Count, listed_file
from lesionseg.io.layouts.table import Row, Table, column_findings
from lesionseg.io.text import read_csv_lines, read_json

MANIFEST = "manifest.csv"
LABELS = "labels.json"
IGNORE = "ignore"  # the name of the label to ignore
_OWN_COLUMNS = {"case", "reference", "instances", "group", "role", "fold"}
_KNOWN_COLUMNS = (*sorted(_OWN_COLUMNS), "image", "annotated", "pixel_mm")


class RoleAndFold(BaseModel):
    """The columns `role` and `fold` of a row."""

    role: Role | None = None
    fold: Count | None = None


_LabelsFile = RootModel[dict[PositiveInt, str]]


def parse_role_and_fold(cells: Mapping[str, str]) -> RoleAndFold:
    """Parse the cells `role` and `fold` of a table row. An empty or absent cell gives None.

    Raises:
        DatasetError: If a cell is no known role, or no whole number from 0.
    """
    return parse_as(RoleAndFold, {key: cells[key] for key in ("role", "fold") if cells.get(key)})


def read_manifest(root: Path) -> Table:
    """Read the table `manifest.csv` of a folder. Each row is a case.

    The columns are `case`, `image`, further channels `image_0001` and so on, `reference`,
    `instances`, `group`, `role`, `fold`, `annotated`, `pixel_mm`, and any others, which are used
    for subgroups.

    - Paths are relative to the table. A folder is a DICOM series.
    - A case with an empty `reference` is unlabelled.
    - `instances` replaces `reference` by a mask whose voxel values are lesion ids, all of label 1.
    - `annotated` names the labels that were searched for, such as `lesion;cyst`. Empty means all.
    - `pixel_mm` is the pixel size of pictures, and of radiographs whose header has no pixel size.

    Labels come from `labels.json` in the same folder (`{"1": "lesion", "9": "ignore"}`). Without
    this file there is one label, `lesion`.

    Wrong rows become findings. A row without case id or image is left out.

    Raises:
        DatasetError: If the table has no case, lacks a column, or `labels.json` is not valid.
        ReadError: If the table or `labels.json` cannot be read.
    """
    path = root / MANIFEST
    lines, image_columns = _read_lines(path)
    labels = read_labels(root)
    rows: list[Row] = []
    findings: list[Finding] = []
    for line, cells in lines:
        where = f"{path}: line {line}"
        with collect_errors(findings, cells["case"], where):
            without_reference = Row(_make_case(root, cells, image_columns), where)
            # if a further column is wrong, the case stays listed, so that its files are checked
            rows.append(without_reference)
            files = _add_reference(without_reference.files, root, cells, labels.names)
            rows[-1] = Row(files, where)
    columns = lines[0][1]  # every line has all columns
    findings += column_findings(path, columns, _KNOWN_COLUMNS, "is used for subgroups only")
    return Table(path, rows, labels, image_columns, findings)


def _add_reference(
    files: CaseFiles, root: Path, cells: Mapping[str, str], names: Sequence[str]
) -> CaseFiles:
    """Return a case with the reference, role, fold and annotated labels of its row.

    Args:
        files: The case without these fields.
        root: The folder, to which paths are relative.
        cells: The cells of the row by column.
        names: The names of all labels of the dataset.

    Returns:
        The case. `annotated` is empty if all labels are annotated. The key "instances" in
        `annotations` tells that the voxel values of the reference are lesion ids instead of labels.

    Raises:
        DatasetError: If the cells are wrong or contradict each other.
        ConfigError: If `annotated` contains an unknown name.
    """
    mask = cells.get("reference", "")
    instances = cells.get("instances", "")
    annotated_names = {
        name.strip() for name in cells.get("annotated", "").split(";") if name.strip()
    }
    assigned = parse_role_and_fold(cells)
    for name in sorted(annotated_names):
        require_one_of("annotated", name, names)
    if mask and instances:
        raise DatasetError("a row has either a reference or instances, not both.")
    # the lesions of an instance mask have label 1, whose name is the first
    if instances and annotated_names and names[0] not in annotated_names:
        raise DatasetError(
            f"the lesions of an instance mask have the label {names[0]!r}, which is not in the "
            "column annotated. Add it there."
        )
    annotated: tuple[str, ...] = ()  # all labels
    if annotated_names != set(names):
        annotated = tuple(name for name in names if name in annotated_names)
    file_name = mask or instances
    return replace(
        files,
        reference=listed_file(root, file_name) if file_name else None,
        role=assigned.role,
        fold=assigned.fold,
        annotations={"instances": None} if instances else {},
        annotated=annotated,
    )


def read_scan_list(path: Path) -> list[CaseFiles]:
    """Read a table of scans without references.

    The columns are `case`, `image` and, for further channels, `image_0001` and so on.

    Args:
        path: The table. Paths are relative to it. The images are not opened. An empty cell in a
            column of images is a missing channel.

    Returns:
        The cases, sorted by case id. A case without `group` has its id as group.

    Raises:
        DatasetError: If the table has no case or lacks a column, a row cannot be used, or two rows
            have the same case id.
        ReadError: If the table cannot be read.
    """
    cases, findings = read_scan_rows(path)
    require_no_errors(findings, path)
    return sorted(cases, key=lambda files: files.case)


def read_scan_rows(
    path: Path, channels: int | None = None
) -> tuple[list[CaseFiles], list[Finding]]:
    """Read a table like `read_scan_list`, but return errors of single rows instead of raising them.

    Args:
        path: The table.
        channels: The number of channels of the model. Only the first `channels` columns of images
            are checked for empty cells, which are missing channels. None checks all columns.

    Returns:
        The cases in the order of the rows, and an error for each row that cannot be used. Rows with
        the same case id are left out, with one error for each such id.

    Raises:
        DatasetError: If the table has no case, or lacks a column.
        ReadError: If the table cannot be read.
    """
    rows, image_columns = _read_lines(path)
    cases: list[CaseFiles] = []
    findings: list[Finding] = []
    n_rows = Counter(row["case"] for _, row in rows if row["case"])
    repeated = {case: n for case, n in n_rows.items() if n > 1}
    for case, n in repeated.items():
        text = f"{path}: the case {case!r} is listed {n} times. Keep one row."
        findings.append(Finding(LISTED, text, case, severity="error"))
    for line, row in rows:
        if row["case"] in repeated:
            continue
        with collect_errors(findings, row["case"] or f"line {line}", f"{path}: line {line}"):
            files = _make_case(path.parent, row, image_columns, channels)
            if Path(files.case).name != files.case:
                raise DatasetError(f"the case {files.case!r} is a path. Give it a name.")
            # `patient` is the group, or the case id if there is none
            cases.append(replace(files, group=files.patient))
    return cases, findings


def _read_lines(path: Path) -> tuple[list[tuple[int, dict[str, str]]], tuple[str, ...]]:
    """Read the rows of a manifest or a list of scans, and find its columns of images.

    Returns:
        Pairs of line number and cells by column, and the columns of images: `image`, then
        `image_0001` and so on in the order of their numbers.

    Raises:
        DatasetError: If the table has no row, or no column `case` or `image`.
    """
    columns, rows = read_csv_lines(path)
    if not rows:
        raise DatasetError(f"{path}: the table has no case. Write one row per case.")
    for name in ("case", "image"):
        if name not in columns:
            raise DatasetError(
                f"{path}: the table has no column {name!r}, only {', '.join(columns)}. Add it."
            )
    numbers = [name.removeprefix("image_") for name in columns if name.startswith("image_")]
    further = sorted(filter(str.isdigit, numbers), key=numbers_first)
    return rows, ("image", *(f"image_{number}" for number in further))


def _make_case(
    folder: Path, row: Mapping[str, str], images: Sequence[str], channels: int | None = None
) -> CaseFiles:
    """Make a case from the cells `case`, `group` and those with images, without its reference.

    The cells of all other columns become `columns` of the case, for subgroups.

    Args:
        folder: The folder to which paths are relative.
        row: The cells of the row by column.
        images: The columns of images, one for each channel.
        channels: The number of channels. An empty cell in a column after the first `channels`
            columns is no missing channel. None checks all columns.

    Raises:
        DatasetError: If the row has no case id or no image.
    """
    files = tuple(listed_file(folder, row[name]) for name in images if row[name])
    if not row["case"] or not files:
        raise DatasetError("the case or its image is missing. Fill in both cells.")
    return CaseFiles(
        row["case"],
        files,
        group=row.get("group", ""),
        columns={
            column: cell
            for column, cell in row.items()
            if column not in _OWN_COLUMNS and column not in images
        },
        missing=tuple(channel for channel, name in enumerate(images[:channels]) if not row[name]),
    )


def read_labels(root: Path) -> Labels:
    """Read the labels of a dataset from `labels.json`. Without this file, label 1 is the lesion.

    The file contains the name of each label value. The name `ignore` marks the value of voxels to
    ignore.

    Raises:
        DatasetError: If a key is not a positive integer, a name is not text, or there is no lesion,
            two values to ignore, or one name for two values.
        ReadError: If the file cannot be read.
    """
    path = root / LABELS
    content = read_json(path, allow_nan=True) if is_file_or_broken_link(path) else {"1": "lesion"}
    named = dict(sorted(parse_as(_LabelsFile, content, path).root.items()))
    ignored = [value for value, name in named.items() if name == IGNORE]
    lesions = {value: name for value, name in named.items() if name != IGNORE}
    if not lesions or len(ignored) > 1:
        raise DatasetError(
            f"{path}: the labels {named} need at least one lesion, and may have one value to "
            'ignore. Write {"1": "lesion", "9": "ignore"}.'
        )
    value_of: dict[str, int] = {}
    for value, name in lesions.items():
        first_value = value_of.setdefault(name, value)
        if first_value != value:
            raise DatasetError(
                f"{path}: the values {first_value} and {value} are both called {name!r}. Give each "
                "value its own name. data.merge_labels=true (evaluate merge_labels=true) then "
                "treats all of them as one label."
            )
    return Labels.of(lesions, ignore=next(iter(ignored), None))
