"""Datasets of images and one table of boxes, `boxes.csv`."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Dataset, Labels
from lesionseg.core.finding import collect_errors
from lesionseg.errors import DatasetError, suggest
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.layouts.box_table import (
    TABLE,
    CaseBoxCollector,
    CaseBoxes,
    find_absent,
    make_box,
    make_labels,
    number_labels,
    parse_corners,
    read_box_table,
)
from lesionseg.io.layouts.checks import CHANNEL, path_id, remark_unread_files, validate
from lesionseg.io.layouts.manifest import (
    LABELS,
    MANIFEST,
    RoleAndFold,
    column_findings,
    read_labels,
    read_manifest,
)
from lesionseg.io.text import read_csv_columns
from lesionseg.io.volumes import is_image_file, is_raster, strip_suffix

BOXES = "boxes.csv"
_CORNERS = ("x0", "y0", "x1", "y1")
_DEPTHS = ("z0", "z1")
_COLUMNS = ("case", "label", *_CORNERS)
_CASE_COLUMNS = ("group", "role", "fold")  # facts of the case, the same in all of its rows
_KNOWN_COLUMNS = (*_COLUMNS, *_DEPTHS, "reader", *_CASE_COLUMNS)
_MAX_SUGGESTED = 10  # rows with a suggestion, because the search for a similar name is slow
_NOT_IMAGES = {"masks", "labels", "annotations"}  # folders without images

# files in the folders of runs, predictions and scores
_OWN_RESULTS = {"config.yaml", "predictions.csv", "scores.json"}


def find_boxes(root: Path) -> bool:
    """Return True if the folder has a table `boxes.csv` with one of the required columns."""
    return not {"case", *_CORNERS}.isdisjoint(read_csv_columns(root / BOXES))


def read_boxes_csv(root: Path) -> Dataset:
    """Read the table `boxes.csv` of a folder and the images next to it.

    The columns are `case`, `label`, `x0`, `y0`, `x1`, `y1`, and optionally `z0`, `z1`, `reader`,
    `group`, `role` and `fold`.

    - x counts columns, y rows and z slices, from 0. Boxes are half-open: x1 is the column after
      the last one of the box.
    - The images are those of `manifest.csv` if it exists, otherwise the image files in `images/`
      or, without this folder, next to the table. They may be in subfolders.
    - `case` is the case id, or the path of the image with or without its suffix.
    - `group`, `role` and `fold` have the meaning of the manifest. The rows of a case that state one
      must agree.
    - An image without a row, and a case whose coordinates are all empty, has no lesion.
    - `label` is a name. `labels.json` (`{"1": "nodule"}`) gives its value. Without this file,
      labels are numbered in the order of the alphabet.

    Raises:
        DatasetError: A column is missing, or the manifest cannot be used.
        ReadError: A table cannot be read.
    """
    path = root / BOXES
    rows = read_box_table(path, _COLUMNS)
    has_manifest = (root / MANIFEST).is_file()
    dataset = read_manifest(root) if has_manifest else _read_images(root)
    findings = list(dataset.findings)
    labels = _labels(root, [row["label"] for _, row in rows])
    value_of = {name: value for value, name in labels.value_names.items()}
    case_of = _case_names(root, dataset.cases)
    collector = CaseBoxCollector()
    facts = _CaseFacts()
    for where, row in rows:
        name = row["case"]
        case = case_of.get(name)
        with collect_errors(findings, case or name, where):
            if case is None:
                # a table of another folder has many such rows, and the search takes time
                near = suggest(name, case_of) if len(findings) < _MAX_SUGGESTED else ""
                raise DatasetError(
                    f"the case {name[:200]!r} has no image.{near} Correct its name, or add the "
                    "image."
                )
            facts.add(case, row, where)
            _add_row(collector, case, row, where, value_of)
    tables = collector.collect(findings)
    cases: list[CaseFiles] = []
    for files in dataset.cases:
        with collect_errors(findings, files.case, path):
            boxed = _add_boxes(files, tables.get(files.case), value_of)
            cases.append(facts.add_to(boxed))
    listed = [files.case for files in cases if TABLE in files.annotations]
    # a case whose rows were all rejected has rows, and its faults are named
    with_row = {case_of.get(row["case"]) for _, row in rows}
    absent = [case for case in listed if case not in with_row]
    findings += [*collector.findings(), *find_absent(path, absent, len(listed))]
    if rows:
        findings += column_findings(path, rows[0][1], _KNOWN_COLUMNS, "has no effect")
    return replace(
        dataset,
        convention="boxes",
        labels=labels,
        cases=tuple(cases),
        findings=tuple(findings),
    )


class _CaseFacts:
    """The patient, role and fold of each case, as the rows of a table state them."""

    def __init__(self) -> None:
        # the value and the first line, by case and column
        self._stated: dict[str, dict[str, tuple[Any, str]]] = {}

    def add(self, case: str, row: Mapping[str, str], where: str) -> None:
        """Add the facts of a row. Raise `DatasetError` if one is wrong or differs in other rows."""
        stated = self._stated.setdefault(case, {})
        parsed = validate(
            RoleAndFold, {name: row[name] for name in ("role", "fold") if row.get(name)}
        )
        values = {"group": row.get("group") or None, "role": parsed.role, "fold": parsed.fold}
        for name, value in values.items():
            if value is None:
                continue
            first, first_line = stated.setdefault(name, (value, where))
            if value != first:
                raise DatasetError(
                    f"{name} of the case {case!r} is {str(value)[:100]!r} here, but "
                    f"{str(first)[:100]!r} in {first_line}. Write the same {name} in all rows of a "
                    "case."
                )

    def add_to(self, files: CaseFiles) -> CaseFiles:
        """Return the case with its facts. Raise `DatasetError` if the manifest states others."""
        stated = self._stated.get(files.case, {})
        for name, (value, where) in stated.items():
            in_manifest = getattr(files, name)
            if in_manifest not in ("", None, value):
                raise DatasetError(
                    f"{where}: {name} of the case {files.case!r} is {str(value)[:100]!r} here, but "
                    f"{in_manifest!r} in {MANIFEST}. Correct one of them."
                )
        return replace(files, **{name: value for name, (value, _) in stated.items()})


def _labels(root: Path, names: Iterable[str]) -> Labels:
    """Return the labels of `labels.json`, or number the names in the table."""
    if is_file_or_broken_link(root / LABELS):
        return read_labels(root)
    numbered = number_labels({name for name in names if name} or {"lesion"})
    return make_labels(root / BOXES, {value: name for name, value in numbered.items()})


def _add_row(
    collector: CaseBoxCollector,
    case: str,
    row: Mapping[str, str],
    where: str,
    value_of: Mapping[str, int],
) -> None:
    """Add a row of the table to the case. Raise `DatasetError` if it cannot be used."""
    reader = row.get("reader", "")
    depths = _DEPTHS if any(row.get(name) for name in _DEPTHS) else ()
    corners = parse_corners(row, (*_CORNERS, *depths))
    if corners is None:
        collector.add_negative(case, reader, where)
        return
    name = row["label"]
    if not name:
        raise DatasetError("the label is empty. Name what is in the box.")
    label = value_of.get(name)
    if label is None and name.isdecimal():  # the row states the value instead of the name
        label = int(name)
    if label is None or label not in value_of.values():
        raise DatasetError(
            f"the label {name[:100]!r} is not in {LABELS} ({', '.join(value_of)}). Add it there, "
            "or correct the row."
        )
    names = (*_CORNERS, *depths)
    collector.add_box(case, make_box(label, corners, names, reader=reader, where=where))


def _add_boxes(files: CaseFiles, table: CaseBoxes | None, value_of: Mapping[str, int]) -> CaseFiles:
    """Add the boxes to a case. A case that has a mask keeps it and must not have rows."""
    if files.is_labelled:
        if table is not None:
            raise DatasetError(
                f"the case {files.case!r} has boxes here and a mask in {MANIFEST}. Remove one of "
                "them."
            )
        return files
    if table is None:
        return replace(files, annotations={TABLE: CaseBoxes()})
    allowed = [value_of[name] for name in files.annotated]  # empty: all labels are annotated
    for box in table.boxes:
        if allowed and box.label not in allowed:
            raise DatasetError(
                f"the case {files.case!r} has a box of a label that its column annotated does not "
                f"name ({box.where}). Add it there."
            )
    return replace(files, annotations={TABLE: table})


def _read_images(root: Path) -> Dataset:
    """Make a case of each image file in `images/`, or of each one next to the table."""
    folder = root / "images" if (root / "images").is_dir() else root
    files = list_images(folder)
    _refuse_channels(files)
    return Dataset(
        name=root.name,
        root=root,
        convention="boxes",
        dims=2,
        channel_names=("image",),
        labels=Labels.of({1: "lesion"}),
        cases=tuple(CaseFiles(path_id(file.relative_to(folder)), (file,)) for file in files),
        findings=tuple(remark_unread_files(folder, folders=False)),
    )


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder and its subfolders, in the order of their paths.

    Hidden folders, folders of masks and results of lesionseg are left out. Links to folders are
    followed, but each folder is searched only once, because links may form a circle. An image has
    the path without a link, if there is one. The ids of cases therefore do not depend on the order
    in which the disk lists the folders.
    """
    found: list[Path] = []
    seen: set[str] = set()
    links = _list_images_below([folder], found, seen)
    while links:  # after all folders without a link
        links = _list_images_below(links, found, seen)
    return sorted(found)


def _list_images_below(starts: Iterable[Path], found: list[Path], seen: set[str]) -> list[Path]:
    """Append the images of some folders to `found`, without those in links to other folders.

    Folders whose real path is in `seen` are left out, and the path of each searched folder is
    added. Return the sorted links.
    """
    links: list[Path] = []
    for top, folders, names in chain.from_iterable(os.walk(start) for start in starts):
        place = os.path.realpath(top)
        has_results = bool(seen) and not _OWN_RESULTS.isdisjoint(names)
        if place in seen or has_results:
            folders.clear()  # `os.walk` enters the folders that remain in this list
            continue
        seen.add(place)
        folders[:] = [name for name in folders if name[0] != "." and name not in _NOT_IMAGES]
        paths = [Path(top) / name for name in names]
        found += [path for path in paths if is_image_file(path) and is_file_or_broken_link(path)]
        subfolders = [Path(top) / name for name in folders]
        links += [path for path in subfolders if path.is_symlink()]
    return sorted(links)


def _refuse_channels(files: Iterable[Path]) -> None:
    """Raise `DatasetError` if volumes are numbered like the channels of one case."""
    channels: dict[tuple[Path, str], Path] = {}
    for file in files:
        match = CHANNEL.fullmatch(strip_suffix(file))
        if match is None or is_raster(file):
            continue
        other = channels.setdefault((file.parent, match[1]), file)
        if other != file:
            raise DatasetError(
                f"{other} and {file.name} look like two channels of one case. Write them into a "
                f"{MANIFEST} next to {BOXES}, with the columns case, image and image_0001."
            )


def _case_names(root: Path, cases: Iterable[CaseFiles]) -> dict[str, str]:
    """Return the case id of each name that a row may use. Ambiguous names are left out.

    The image `images/p1/a.png` has the id `p1_a`. A row may also call it `images/p1/a.png`,
    `images/p1/a`, `p1/a.png` or `p1/a`.
    """
    ids_of_name = {files.case: {files.case} for files in cases}
    ids = {*ids_of_name}
    for files in cases:
        image = files.images[0]
        if not image.is_relative_to(root):
            continue
        path = image.relative_to(root)
        path_in_images = Path(re.sub(r"^images/", "", path.as_posix()))
        for named in (path, path_in_images):
            without_suffix = named.with_name(strip_suffix(named))
            for name in (named.as_posix(), without_suffix.as_posix()):
                if name not in ids:
                    ids_of_name.setdefault(name, set()).add(files.case)
    return {name: next(iter(found)) for name, found in ids_of_name.items() if len(found) == 1}
