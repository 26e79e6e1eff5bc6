"""Lesion boxes as tables state them, and the reference that follows from them.

Every layout with boxes (`boxes.csv`, VinDr-CXR, RSNA, YOLO, COCO, datalists) becomes the same table
of boxes, from which one function makes the reference.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import (
    CaseFiles,
    Geometry,
    Labels,
    Reference,
    StatedBoxes,
    numbers_first,
)
from lesionseg.core.finding import Finding, collect_errors
from lesionseg.core.labels import free_name
from lesionseg.core.lesions import box_slices, clip_boxes
from lesionseg.errors import ContentError, DatasetError, GeometryError, count, join_names
from lesionseg.io.layouts.checks import find_left_out
from lesionseg.io.text import read_csv_columns, read_csv_lines

TABLE = "table"  # the key of `CaseFiles.annotations` for a `CaseBoxes`
MAX_BOXES = 10_000  # per case
MAX_LABELS = 255  # the values of an 8-bit mask
_LARGEST = 1e9  # largest coordinate


@dataclass(frozen=True)
class LesionBox:
    """A lesion box in a row of a table.

    Attributes:
        label: The label value.
        start: The lower corner in array order, (y, x) or (z, y, x).
        stop: The upper corner. Boxes are half-open: the last pixel of a box is `stop - 1`.
        reader: The person who drew the box. Empty if the table does not state it.
        outline: The corners x, y, x, y, … of a polygon. Empty if the table states only the box.
        where: File and line, for messages.
    """

    label: int
    start: tuple[float, ...]
    stop: tuple[float, ...]
    reader: str = ""
    outline: tuple[float, ...] = ()
    # not part of the representation, on which the keys of cached cases depend
    where: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class CaseBoxes:
    """The lesion boxes of one case. Without boxes, the case has no lesion.

    Attributes:
        boxes: The boxes in the order of the table.
        ignored: The boxes that are neither lesion nor background, because too few of several
            readers marked them.
        readers: Everyone who read the case, including readers who found no lesion.
        is_relative: True if coordinates are shares of the sides of the image, otherwise pixels.
        size: Height and width of the image as the table states them, or None.
    """

    boxes: tuple[LesionBox, ...] = ()
    readers: tuple[str, ...] = ()
    is_relative: bool = False
    size: tuple[int, int] | None = None
    ignored: tuple[LesionBox, ...] = ()


def has_boxes_only(files: CaseFiles) -> bool:
    """Return True if a table states a lesion of the case as a box without an outline."""
    table = files.annotations.get(TABLE)
    return table is not None and any(not box.outline for box in table.boxes)


def has_outlines(files: CaseFiles) -> bool:
    """Return True if a table states an outline of every lesion of the case."""
    table = files.annotations.get(TABLE)
    return table is not None and bool(table.boxes) and not has_boxes_only(files)


def read_box_table(path: Path, columns: Collection[str]) -> list[tuple[str, Mapping[str, str]]]:
    """Read the rows of a table with file and line of each.

    Raises:
        DatasetError: One of the `columns` is missing.
        ReadError: The table cannot be read.
    """
    rows = read_csv_lines(path)
    present = rows[0][1] if rows else read_csv_columns(path)
    missing = [name for name in columns if name not in present]
    if missing:
        is_one = len(missing) == 1
        noun = "column" if is_one else "columns"
        pronoun = "it" if is_one else "them"
        advice = f"Rename the column that contains {pronoun}, or add {pronoun}."
        has_other_corners = not {"x1", "xmax", "x_max"}.isdisjoint(map(str.lower, present))
        if {"x1", "y1"} <= {*missing} and not has_other_corners:
            advice = "Write x1 = x0 + width and y1 = y0 + height if your table contains lengths."
        raise DatasetError(
            f"{path}: the table has no {noun} {', '.join(map(repr, missing))}, only "
            f"{', '.join(present)[:300]}. {advice}"
        )
    return [(f"{path}: line {line}", row) for line, row in rows]


def parse_corners(row: Mapping[str, str], names: Sequence[str]) -> list[float] | None:
    """Return the numbers in some cells of a row, or None if all of them are empty.

    Raises `DatasetError` if only some are empty, or if one is not a number.
    """
    cells = [row.get(name, "") for name in names]
    if not any(cells):
        return None
    return [parse_number(name, cell) for name, cell in zip(names, cells, strict=True)]


def parse_number(name: str, cell: str) -> float:
    """Return the number in a cell of the column `name`. Raise `DatasetError` if it is not one."""
    if not cell:
        raise DatasetError(
            f"{name} is empty, but another coordinate is not. Fill it in, or empty all coordinates "
            "if there is no lesion."
        )
    value = np.nan
    with suppress(ValueError):
        value = float(cell.replace("_", "?"))  # float() would skip an underscore
    if not abs(value) < _LARGEST:  # also False for NaN
        hint = " with a decimal point" if "," in cell else ""
        raise DatasetError(f"{name} is {cell[:40]!r}. Write a number{hint}.")
    return value


def make_box(
    label: int,
    corners: Sequence[float],
    names: Sequence[str],
    *,
    reader: str = "",
    where: str = "",
) -> LesionBox:
    """Make a box of its corners x0, y0, x1, y1 and, in 3-D, z0, z1.

    Args:
        label: The label value.
        corners: The corners.
        names: The columns of the corners, for messages.
        reader: The person who drew the box.
        where: File and line.

    Raises:
        DatasetError: A side is not longer than 0.
    """
    # the places of the lower and the upper corner in `corners`, along x, y and z
    places = [(0, 2), (1, 3), (4, 5)][: len(corners) // 2]
    for low, high in places:
        if not corners[low] < corners[high]:
            raise DatasetError(
                f"{names[high]} is {corners[high]:g}, but must be greater than {names[low]}, "
                f"{corners[low]:g}. If {names[high]} is a length, write {names[low]} + length. "
                "Otherwise write the corner with the smaller coordinates first."
            )
    start = tuple(float(corners[low]) for low, _ in reversed(places))
    stop = tuple(float(corners[high]) for _, high in reversed(places))
    return LesionBox(label, start, stop, reader, where=where)


class CaseBoxCollector:
    """A collector of the rows of a table by case."""

    def __init__(self) -> None:
        self._boxes: dict[str, list[LesionBox]] = {}
        self._readers: dict[str, dict[str, str]] = {}  # reader and first line, by case
        self._negative: dict[str, dict[str, str]] = {}  # the same for readers without a lesion
        self._seen: set[tuple[str, LesionBox]] = set()
        self.repeated: list[str] = []

    def add_box(self, case: str, box: LesionBox) -> None:
        """Add a box of a case. A row that repeats an earlier one is left out, see `repeated`."""
        self._readers.setdefault(case, {}).setdefault(box.reader, box.where)
        boxes = self._boxes.setdefault(case, [])
        if (case, box) in self._seen:
            self.repeated.append(box.where)
            return
        self._seen.add((case, box))
        if len(boxes) == MAX_BOXES:
            raise DatasetError(
                f"the case {case!r} has more than {MAX_BOXES} boxes. Remove the boxes that are not "
                "lesions."
            )
        boxes.append(box)

    def add_negative(self, case: str, reader: str, where: str) -> None:
        """Add the statement that a reader found no lesion in a case."""
        self._readers.setdefault(case, {}).setdefault(reader, where)
        self._negative.setdefault(case, {}).setdefault(reader, where)

    def collect(
        self, findings: list[Finding], *, is_relative: bool = False
    ) -> dict[str, CaseBoxes]:
        """Return the boxes of each case. Contradictory rows become findings."""
        tables: dict[str, CaseBoxes] = {}
        for case, readers in self._readers.items():
            boxes = self._boxes.get(case, [])
            readers_with_boxes = {box.reader for box in boxes}
            for reader, where in self._negative.get(case, {}).items():
                if reader in readers_with_boxes:
                    whose = f" of the reader {reader!r}" if reader else ""
                    text = f"the row states that {case!r} has no lesion, but another row{whose}"
                    with collect_errors(findings, case, where):
                        raise DatasetError(f"{text} has a box. Remove one of them.")
            if len(readers) > 1 and "" in readers:
                with collect_errors(findings, case, readers[""]):
                    raise DatasetError(
                        f"the row of {case!r} names no reader, but another row of this case does. "
                        "Name the reader."
                    )
            tables[case] = CaseBoxes(tuple(boxes), tuple(sorted(readers)), is_relative)
        return tables

    def findings(self) -> list[Finding]:
        """Return a finding about repeated rows, if there are any."""
        if not self.repeated:
            return []
        text = f"{self.repeated[0]}: the row repeats an earlier one"
        n_further = len(self.repeated) - 1
        if n_further > 0:
            verb = "does" if n_further == 1 else "do"
            text += f", as {count(n_further, 'further row')} {verb}"
        return [Finding("repeated_rows", f"{text}. Each box counts once.")]


def find_absent(table: object, cases: Sequence[str], n_all: int) -> list[Finding]:
    """Return a note on the cases that a table does not name, which count as lesion-free."""
    words = f"of {n_all} without a row, counted as lesion-free"
    return find_left_out(table, cases, "image", words, most=5, kind="not_in_table")


def read_box_reference(files: CaseFiles, geometry: Geometry, merged: Collection[int]) -> Reference:
    """Read the reference of a case whose lesions are boxes in a table.

    Args:
        files: The files of the case.
        geometry: The grid of the image.
        merged: The label values that become 1.

    Raises:
        GeometryError: The table states another size of the image.
        ContentError: A box has another number of axes than the image, or is outside it.
    """
    table: CaseBoxes = files.annotations[TABLE]
    shape = geometry.shape
    require_stated_size(files.images[0], table.size, geometry)
    scale = np.array([*shape, *shape]) if table.is_relative else np.ones(2 * geometry.dims)
    for box in (*table.boxes, *table.ignored):
        if len(box.start) != geometry.dims:
            advice = "Fill in z0 and z1." if geometry.dims == 3 else "Empty z0 and z1."
            raise ContentError(
                f"{box.where}: the box has {len(box.start)} axes, but {files.images[0]} has "
                f"{geometry.dims}. {advice}"
            )
    sides = [np.array([*box.start, *box.stop]) * scale for box in table.boxes]
    labels = [1 if box.label in merged else box.label for box in table.boxes]
    places = [box.where for box in table.boxes]
    ignore = None
    if table.ignored:
        ignore = np.zeros(shape, dtype=np.bool_)
        for box in table.ignored:
            corners = np.array([*box.start, *box.stop]) * scale
            ignore[box_slices(clip_boxes(corners, shape, box.where)[0], geometry.dims)] = True
    return make_box_reference(geometry, sides, labels, places, ignore)


def require_stated_size(image: Path, stated: tuple[int, ...] | None, geometry: Geometry) -> None:
    """Raise `GeometryError` if the annotations of an image state another size than its own.

    `stated` is height and width, or None if the annotations state no size.
    """
    if stated not in (None, geometry.shape):
        advice = "Correct height and width, or the image."
        if stated == geometry.shape[::-1]:
            advice = (
                "Annotations refer to the upright picture. If they were drawn on the stored one, "
                "remove the picture's orientation tag (EXIF); otherwise exchange height and width."
            )
        raise GeometryError(
            f"{image} has {geometry.shape} pixels, but its annotations state {stated}. {advice}"
        )


def make_box_reference(
    geometry: Geometry,
    boxes: Sequence[NDArray[np.float64]] | NDArray[np.float64],
    labels: Sequence[int],
    places: Sequence[object],
    ignore: NDArray[np.bool_] | None = None,
) -> Reference:
    """Make a reference of boxes, clipped to the image. Without boxes it is a mask of zeros.

    Args:
        geometry: The grid of the image.
        boxes: The boxes `[n, 2·dims]` in array order, all starts, then all stops, half-open.
        labels: The label value of each box.
        places: File and line of each box, or the case, for messages.
        ignore: Pixels `[*spatial]` that do not count. Pixels of lesions are removed from them.

    Raises:
        ContentError: A box is outside the image.
    """
    given = np.array(boxes, dtype=np.float64).reshape(-1, 2 * geometry.dims)
    if not len(given):
        empty = np.zeros(geometry.shape, dtype=np.uint8)
        return Reference(geometry, labels=empty, ignore=ignore)
    clipped = [
        clip_boxes(row, geometry.shape, where) for row, where in zip(given, places, strict=True)
    ]
    inside = np.concatenate(clipped)
    if ignore is not None:
        for box in inside:
            ignore[box_slices(box, geometry.dims)] = False
    return Reference(
        geometry,
        boxes=inside,
        box_labels=tuple(labels),
        ignore=ignore,
        stated=StatedBoxes(given, tuple(labels)),
    )


def make_labels(path: Path, name_of: Mapping[int, str]) -> Labels:
    """Make the labels of a table. Raise `DatasetError` if there are too many for a mask.

    Args:
        path: The table, for the message.
        name_of: The name of each label value.
    """
    if len(name_of) > MAX_LABELS:
        raise DatasetError(
            f"{path}: the table has {len(name_of)} labels, such as "
            f"{join_names(name_of.values(), 3)}, but at most {MAX_LABELS} are possible. Give "
            "similar lesions one name."
        )
    return Labels.of(name_of)


def distinct_names(path: Path, name_of: Mapping[int, str]) -> tuple[dict[int, str], list[Finding]]:
    """Give labels of the same name different names, because scores and tables are kept by name.

    Args:
        path: The file with the names, for the finding.
        name_of: The name of each label value. The first one of equal names is kept.

    Returns:
        The new names, and a finding if a name has changed.

    >>> distinct_names(Path("data.yaml"), {1: "mass", 2: "nodule", 3: "nodule"})[0]
    {1: 'mass', 2: 'nodule', 3: 'nodule (2)'}
    """
    names: dict[int, str] = {}
    changed: list[str] = []
    for value, name in name_of.items():
        new_name = free_name(name, names.values(), "{name} ({number})")
        names[value] = new_name
        if new_name != name:
            changed.append(f"label {value} is now called {new_name!r}")
    if not changed:
        return names, []
    text = (
        f"{path}: several labels have the same name, so {join_names(changed)}. Give each label its "
        "own name, or merge them with data.merge_labels=true (evaluate merge_labels=true)."
    )
    return names, [Finding("label_names", text)]


def number_labels(names: Collection[str]) -> dict[str, int]:
    """Return the value of each label, from 1, in the order of `numbers_first`.

    >>> number_labels({"10", "9"}), number_labels({"nodule", "mass"})
    ({'9': 1, '10': 2}, {'mass': 1, 'nodule': 2})
    """
    return {name: value for value, name in enumerate(sorted(names, key=numbers_first), start=1)}
