"""Public sets of chest radiographs with a table of boxes: VinDr-CXR and RSNA pneumonia.

VinDr-CXR: Nguyen et al. 2022, doi.org/10.1038/s41597-022-01498-w. RSNA: Shih et al. 2019,
doi.org/10.1148/ryai.2019180041.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.core import CaseFiles, Dataset, Labels, Role
from lesionseg.core.finding import Finding, collect_errors
from lesionseg.errors import DatasetError
from lesionseg.io.layouts.box_table import (
    TABLE,
    CaseBoxCollector,
    make_box,
    make_labels,
    number_labels,
    parse_corners,
    parse_number,
    read_box_table,
)
from lesionseg.io.layouts.boxes_csv import list_images
from lesionseg.io.layouts.checks import find_left_out
from lesionseg.io.text import read_csv_columns
from lesionseg.io.volumes import strip_suffix

_VINDR_TABLES: Mapping[str, Role | None] = {
    "annotations/annotations_train.csv": "train",
    "annotations/annotations_test.csv": "test",
    "annotations_train.csv": "train",
    "annotations_test.csv": "test",
    "train.csv": None,
}
_VINDR_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_NO_FINDING = "no finding"
_RSNA_TABLE = re.compile(r"stage_[12]_train_labels\.csv")
_RSNA_SIDES = ("x", "y", "width", "height")
_RSNA_LABEL = "lung opacity"

Row = Mapping[str, str]
# adds a row of a table to the case; the last argument is file and line
AddRow = Callable[[CaseBoxCollector, str, Row, str], None]


@dataclass(frozen=True)
class _Table:
    """A table of boxes.

    Attributes:
        path: The file.
        role: The role of its images, or None.
        rows: File and line of each row, and its cells by column.
    """

    path: Path
    role: Role | None
    rows: Sequence[tuple[str, Row]]


@dataclass(frozen=True)
class _Layout:
    """The meaning of the rows of a table.

    Attributes:
        name: The name of the layout.
        column: The column with the names of images.
        labels: The labels.
        add_row: The function that adds a row to its case.
    """

    name: str
    column: str
    labels: Labels
    add_row: AddRow


def find_vindr(root: Path) -> list[Path]:
    """Find the tables of VinDr-CXR, which have the columns `image_id` and `class_name`."""
    columns = {"image_id", "class_name"}
    found = [root / name for name in _VINDR_TABLES]
    return [path for path in found if columns <= {*read_csv_columns(path)}]


def find_rsna(root: Path) -> list[Path]:
    """Find the table of the RSNA pneumonia challenge."""
    return sorted(path for path in root.glob("*.csv") if _RSNA_TABLE.fullmatch(path.name))


def read_vindr(root: Path) -> Dataset:
    """Read VinDr-CXR, from PhysioNet or Kaggle.

    Labels are in the order of `class_id`, without this column in the order of the alphabet. The
    rows "No finding" have no box. `rad_id` is the reader. The tables of PhysioNet give the roles
    train and test. An image without a row is left out.

    Raises:
        DatasetError: A table lacks a column.
        ReadError: A table cannot be read.
    """
    tables: list[_Table] = []
    findings = list[Finding]()
    paths = find_vindr(root)
    for path in paths:
        rows = read_box_table(path, ("image_id", "class_name", *_VINDR_CORNERS))
        role = _VINDR_TABLES[path.relative_to(root).as_posix()]
        if len(paths) == 1:  # a single table does not divide the images
            role = None
        tables.append(_Table(path, role, rows))
    all_rows: list[tuple[str, Row]] = []
    for table in tables:
        all_rows += table.rows
    value_of = _vindr_labels(all_rows, findings)

    def add_row(collector: CaseBoxCollector, case: str, row: Row, where: str) -> None:
        name = row["class_name"]
        reader = row.get("rad_id", "")
        if name.casefold() == _NO_FINDING:
            collector.add_negative(case, reader, where)
            return
        corners = parse_corners(row, _VINDR_CORNERS)
        if not name or corners is None:
            raise DatasetError(
                "the row has a class without a box, or a box without a class. Fill in both, or "
                'write "No finding".'
            )
        box = make_box(value_of[name], corners, _VINDR_CORNERS, reader=reader, where=where)
        collector.add_box(case, box)

    labels = make_labels(paths[0], {value: name for name, value in value_of.items()})
    layout = _Layout("vindr", "image_id", labels, add_row)
    return _read_listed(root, layout, tables, findings)


def _vindr_labels(rows: Sequence[tuple[str, Row]], findings: list[Finding]) -> dict[str, int]:
    """Return the value of each class. Ids that do not fit their class names become findings."""
    id_of: dict[str, str] = {}
    name_of: dict[str, str] = {}
    for where, row in rows:
        name = row["class_name"]
        number = row.get("class_id", "")
        if not name or name.casefold() == _NO_FINDING:
            continue
        known_id = id_of.setdefault(name, number)
        known_name = name
        if number:
            known_name = name_of.setdefault(number, name)
        with collect_errors(findings, row["image_id"], where):
            if number and not number.isdecimal():
                raise DatasetError(f"class_id is {number[:40]!r}. Write a number from 0 on.")
            if known_id != number or known_name != name:
                raise DatasetError(
                    f"the class {name[:100]!r} has the class_id {number!r} here, but another row "
                    f"has {known_name[:100]!r} with {known_id!r}. Give each class one id."
                )
    if all(number.isdecimal() for number in id_of.values()):
        ordered = sorted(id_of, key=lambda name: int(id_of[name]))
        return {name: value for value, name in enumerate(ordered, start=1)}
    return number_labels(id_of)


def read_rsna(root: Path) -> Dataset:
    """Read the RSNA pneumonia challenge: the label "lung opacity", Target 0 without a box.

    An image without a row is left out.

    Raises:
        DatasetError: The table lacks a column.
        ReadError: The table cannot be read.
    """
    path = find_rsna(root)[-1]
    rows = read_box_table(path, ("patientId", *_RSNA_SIDES, "Target"))

    def add_row(collector: CaseBoxCollector, case: str, row: Row, where: str) -> None:
        sides = parse_corners(row, _RSNA_SIDES)
        target = parse_number("Target", row["Target"] or "empty")
        is_lesion = target == 1 and sides is not None
        is_lesion_free = target == 0 and sides is None
        if not is_lesion and not is_lesion_free:
            raise DatasetError(
                f"Target is {row['Target']!r}, but the row has {'no' if sides is None else 'a'} "
                "box. Write 1 with a box, or 0 and no box."
            )
        if sides is None:
            collector.add_negative(case, "", where)
            return
        x, y, width, height = sides
        if width <= 0 or height <= 0:
            raise DatasetError(f"the box is {width:g} wide and {height:g} high. Correct it.")
        corners = (x, y, x + width, y + height)
        collector.add_box(case, make_box(1, corners, ("x", "y", "x1", "y1"), where=where))

    layout = _Layout("rsna", "patientId", Labels.of({1: _RSNA_LABEL}), add_row)
    return _read_listed(root, layout, [_Table(path, None, rows)], [])


def _read_listed(
    root: Path, layout: _Layout, tables: Sequence[_Table], findings: list[Finding]
) -> Dataset:
    """Make a case of each image that a table lists.

    Args:
        root: The folder.
        layout: The meaning of the rows.
        tables: The tables.
        findings: The findings so far. Those of rows are added.
    """
    images: dict[str, list[Path]] = {}
    for file in list_images(root):
        images.setdefault(strip_suffix(file), []).append(file)
    cases: dict[str, CaseFiles] = {}
    collector = CaseBoxCollector()
    for table in tables:
        for where, row in table.rows:
            name = row[layout.column]
            with collect_errors(findings, name, where):
                image = _find_only_image(root, layout.column, name, images.get(name, []))
                first = cases.setdefault(name, CaseFiles(name, (image,), role=table.role))
                if first.role != table.role:
                    raise DatasetError(
                        f"the image {name!r} is in two tables, for train and for test. Remove it "
                        f"from {table.path.name}."
                    )
                layout.add_row(collector, name, row, where)
    boxes = collector.collect(findings)
    listed = []
    for name, files in cases.items():
        if name in boxes:  # otherwise all rows of the case are wrong
            listed.append(replace(files, annotations={TABLE: boxes[name]}))
    findings += collector.findings()
    findings += _find_unlisted(tables[0].path, images.values(), cases.values())
    return Dataset(
        name=root.name,
        root=root,
        convention=layout.name,
        dims=2,
        channel_names=("image",),
        labels=layout.labels,
        cases=tuple(listed),
        findings=tuple(findings),
    )


def _find_only_image(root: Path, column: str, name: str, files: Sequence[Path]) -> Path:
    """Return the only image with the name in a row. Raise `DatasetError` if there is none."""
    if not files:
        raise DatasetError(
            f"there is no image {name[:200]!r} ({column}) in {root}. Add the image, or remove its "
            "rows."
        )
    if len(files) > 1:
        raise DatasetError(f"{files[0]} and {files[1]} are both called {name!r}. Keep one of them.")
    return files[0]


def _find_unlisted(
    table: Path, images: Iterable[Sequence[Path]], cases: Iterable[CaseFiles]
) -> list[Finding]:
    """Return a note on the images without a row."""
    listed = {files.images[0] for files in cases}
    unlisted: list[str] = []
    for files_of_name in images:
        unlisted += [file.name for file in files_of_name if file not in listed]
    return find_left_out(table, unlisted, "image", "without a row, left out", most=5)
