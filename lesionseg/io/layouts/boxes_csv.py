"""Layout boxes.csv: its columns, box corners, labels, rows without a lesion, images."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lesionseg.core import CaseFiles, Labels, numbers_first
from lesionseg.core.finding import collect_errors
from lesionseg.errors import DatasetError
from lesionseg.io.case_ids import path_id, split_channel
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.layouts.annotated_lesions import (
    NO_FINDING,
    UPRIGHT,
    AnnotatedLesion,
    parse_number,
)
from lesionseg.io.layouts.checks import find_unread_files, list_images
from lesionseg.io.layouts.manifest import (
    LABELS,
    MANIFEST,
    parse_role_and_fold,
    read_labels,
    read_manifest,
)
from lesionseg.io.layouts.table import Row, Table, column_findings
from lesionseg.io.text import read_csv_lines
from lesionseg.io.volumes import is_dicom_image, is_raster, strip_suffix

BOXES_FILE = "boxes.csv"
# the columns of the start and the stop of a box along each axis, in the order of the array
_AXES = (("z0", "z1"), ("y0", "y1"), ("x0", "x1"))
_CORNERS = ("x0", "y0", "x1", "y1")
_COLUMNS = ("case", "label", *_CORNERS)
_KNOWN_COLUMNS = (*_COLUMNS, "z0", "z1", "reader", "group", "role", "fold")


def read_boxes_csv(root: Path) -> Table:
    """Read the table `boxes.csv` of a folder and find the images that its rows name.

    The columns are `case`, `label`, `x0`, `y0`, `x1`, `y1`, and optionally `z0`, `z1`, `reader`,
    `group`, `role` and `fold`.

    - x counts columns, y rows and z slices, from 0. Boxes are half-open: x1 is the column after the
      last column of the box.
    - The images are those of `manifest.csv` if it exists, otherwise the image files in `images/`
      or, without this folder, next to the table. They may be in subfolders.
    - `case` is the case id, or the path of the image with or without its suffix.
    - `group`, `role` and `fold` have the same meaning as in the manifest. If several rows of a case
      have such a cell, the cells must be equal.
    - An image without a row has no lesion, unless the manifest names its mask. A case whose
      coordinates are all empty has no lesion.
    - `label` is a name in `labels.json` (`{"1": "nodule"}`). Without this file, labels are
      numbered: numbers first, then names in the order of the alphabet.

    Wrong rows become findings, and so do the rows of a case with a mask. A case whose rows are all
    wrong does not count as lesion-free.

    Raises:
        DatasetError: If a column is missing, the manifest or `labels.json` cannot be used, or the
            images look like the channels of cases.
        ReadError: If a table cannot be read.
    """
    path = root / BOXES_FILE
    columns, lines = read_csv_lines(path)
    _require_columns(path, columns)
    image_table = read_manifest(root) if (root / MANIFEST).is_file() else _table_of_images(root)
    labels = _read_or_number_labels(root, [cells["label"] for _, cells in lines])
    value_of = {name: value for value, name in labels.value_names.items()}
    case_of = _case_names(root, [row.files for row in image_table.rows])
    cases_with_mask = {
        row.files.case for row in image_table.rows if row.files.reference is not None
    }
    rows = list(image_table.rows)
    findings = [
        *image_table.findings,
        *column_findings(path, columns, _KNOWN_COLUMNS, "has no effect"),
    ]
    for line, cells in lines:
        where = f"{path}: line {line}"
        case = case_of.get(cells["case"], cells["case"])
        row = Row(CaseFiles(case, images=()), where)  # stays without lesions if a cell is wrong
        with collect_errors(findings, case, where):
            if case in cases_with_mask:
                raise DatasetError(
                    f"the case {case!r} has a mask in {MANIFEST}. Remove the mask or the row."
                )
            row = _read_row(case, cells, value_of, where)
        rows.append(row)
    # is_complete: an image without a row has no lesion
    return replace(
        image_table, path=path, rows=rows, labels=labels, findings=findings, is_complete=True
    )


def _require_columns(path: Path, present: Sequence[str]) -> None:
    """Raise `DatasetError` if a required column of `boxes.csv` is missing.

    Args:
        path: The table, for the message.
        present: The columns of the table.
    """
    missing = [name for name in _COLUMNS if name not in present]
    if missing:
        raise DatasetError(
            f"{path}: the columns {', '.join(map(repr, missing))} are missing. The table has "
            f"{', '.join(present)[:300]}. Rename or add them; if your table contains lengths, "
            "write x1 = x0 + width and y1 = y0 + height."
        )


def _read_or_number_labels(root: Path, names: Iterable[str]) -> Labels:
    """Return the labels of `labels.json`. Without this file, sort `names` and number them from 1.

    `names` are the cells of the column `label`; empty cells do not count. If all are empty, the
    only label is `lesion`. Names such as "No finding" get the last numbers, because `build_dataset`
    removes these labels.
    """
    if is_file_or_broken_link(root / LABELS):
        return read_labels(root)
    ordered = sorted({name for name in names if name} or {"lesion"}, key=numbers_first)
    # these go last, so that their removal leaves no gap in the numbers; the others keep their order
    ordered.sort(key=lambda name: NO_FINDING.fullmatch(name) is not None)
    return Labels.of(dict(enumerate(ordered, start=1)))


def _read_row(case: str, cells: Mapping[str, str], value_of: Mapping[str, int], where: str) -> Row:
    """Return the row of a case with the lesion in its cells, or with an empty tuple of lesions.

    An empty tuple means that the case is lesion-free.

    Args:
        case: The case id.
        cells: The cells of the row by column.
        value_of: The label value of each label name.
        where: File and line, for messages.

    Raises:
        DatasetError: If a cell is wrong.
    """
    assigned = parse_role_and_fold(cells)
    files = CaseFiles(
        case, images=(), group=cells.get("group", ""), role=assigned.role, fold=assigned.fold
    )
    lesion = _parse_lesion(cells, value_of, where)
    reader = cells.get("reader", "")
    return Row(files, where, lesions=() if lesion is None else (lesion,), reader=reader)


def _parse_lesion(
    cells: Mapping[str, str], value_of: Mapping[str, int], where: str
) -> AnnotatedLesion | None:
    """Return the lesion in a row, or None if the row says that its case has no lesion.

    That is so if all coordinates are empty or the label is a name such as "No finding". The
    coordinates of z are required only if one of them is filled in.

    Raises:
        DatasetError: If only some coordinates are empty, a coordinate is not a number, an end is
            not greater than its start, the box is rotated, or the label is unknown.
    """
    # y and x always, z only if the row has a cell of it
    axes = [axis for axis in _AXES if axis[0] in _CORNERS or any(map(cells.get, axis))]
    coordinates = [name for axis in axes for name in axis]
    if NO_FINDING.fullmatch(cells["label"]) or not any(map(cells.get, coordinates)):
        return None
    corners: dict[str, float] = {}
    for name in coordinates:
        if not cells.get(name):
            raise DatasetError(
                f"{name} is empty, but another coordinate is not. Fill it in, or empty all "
                "coordinates if there is no lesion."
            )
        corners[name] = parse_number(name, cells[name])
    for low, high in reversed(axes):  # x first, as in the table
        if not corners[low] < corners[high]:
            raise DatasetError(
                f"{high} is {corners[high]:g}, but must be greater than {low}, {corners[low]:g}. "
                f"If {high} is a length, write {low} + length. Otherwise write the corner with the "
                "smaller coordinates first."
            )
    # some label tools write a column `rotation` in degrees; at 180° a box covers the same pixels
    if round(parse_number("rotation", cells.get("rotation") or "0"), 1) % 180:
        raise DatasetError(f"the box is rotated. {UPRIGHT}.")
    box = (*(corners[low] for low, _ in axes), *(corners[high] for _, high in axes))
    return AnnotatedLesion(_parse_label(cells["label"], value_of), box, where=where)


def _parse_label(name: str, value_of: Mapping[str, int]) -> int:
    """Return the label value for the name in a label cell.

    Args:
        name: The text of the cell.
        value_of: The label value of each label name.

    Raises:
        DatasetError: If the cell is empty, or not the name of a label.
    """
    if not name:
        raise DatasetError("the label is empty. Name what is in the box.")
    if name not in value_of:
        raise DatasetError(
            f"the label {name[:100]!r} is not in {LABELS} ({', '.join(value_of)}). Add it there, "
            "or correct the row."
        )
    return value_of[name]


def _table_of_images(root: Path) -> Table:
    """Make a table with a row for each image file in `images/`, for a `boxes.csv` without manifest.

    Without the folder `images/`, the images are searched next to `boxes.csv`. Subfolders are
    searched, too. Files in unknown formats directly in the folder become findings.

    Raises:
        DatasetError: If two volumes look like channels of one case.
    """
    folder = root / "images" if (root / "images").is_dir() else root
    files = list_images(folder)
    _refuse_channels(files)
    rows = [Row(CaseFiles(path_id(file.relative_to(folder)), (file,))) for file in files]
    unread = find_unread_files(folder, folders=False)  # subfolders are searched above
    # `read_boxes_csv` replaces these labels
    return Table(folder, rows, Labels.of({1: "lesion"}), findings=unread)


def _refuse_channels(files: Iterable[Path]) -> None:
    """Raise `DatasetError` if two volumes are numbered like the channels of one case.

    Without a manifest, each image is a case of its own. `P1_0000.nii` and `P1_0001.nii` would then
    be two cases. The numbers of pictures and DICOM radiographs are not channel numbers.
    """
    first_of_case: dict[tuple[Path, str], Path] = {}
    for file in files:
        name, number = split_channel(strip_suffix(file))
        if number is None or is_raster(file) or is_dicom_image(file):
            continue
        first = first_of_case.setdefault((file.parent, name), file)
        if first != file:
            raise DatasetError(
                f"{first} and {file.name} look like two channels of one case. Write them into a "
                f"{MANIFEST} next to {BOXES_FILE}, with the columns case, image and image_0001."
            )


def _case_names(root: Path, cases: Iterable[CaseFiles]) -> dict[str, str]:
    """Return the case id of each name that the column `case` may contain for an image.

    The image `images/p1/a.png` has the id `p1_a`. A row may also call it `images/p1/a.png`,
    `images/p1/a`, `p1/a.png` or `p1/a`. A name that fits several images is left out, unless it is
    the case id of an image.
    """
    ids_of_name: dict[str, set[str]] = {}
    for files in cases:
        image = files.images[0]
        if not image.is_relative_to(root):  # named by its case id only
            continue
        path = image.relative_to(root).as_posix()
        for name in (path, re.sub(r"^images/", "", path)):
            # with and without the suffix of the file
            for alias in (name, name.removesuffix(image.name) + strip_suffix(image)):
                ids_of_name.setdefault(alias, set()).add(files.case)
    unique = {name: next(iter(ids)) for name, ids in ids_of_name.items() if len(ids) == 1}
    return unique | {files.case: files.case for files in cases}
