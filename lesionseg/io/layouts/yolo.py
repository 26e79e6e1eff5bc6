"""YOLO layout: data.yaml, parts and roles, lines of boxes, polygons or key points.

Format: docs.ultralytics.com/datasets/detect. A line is `class x y width height`: the centre and the
sides as shares of the image. In files for segmentation it is `class x1 y1 x2 y2 …`, a polygon. In
files with key points (`kpt_shape` in `data.yaml`), the points follow the box.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field

from lesionseg.core import CaseFiles, Labels, Role
from lesionseg.core.finding import LISTED, Finding, collect_errors
from lesionseg.core.records import parse_as
from lesionseg.errors import DatasetError, LesionsegError, count
from lesionseg.io.case_ids import path_id
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.layouts.annotated_lesions import (
    AnnotatedLesion,
    distinct_names,
    outline_box,
    parse_number,
)
from lesionseg.io.layouts.checks import (
    Count,
    findings_about,
    list_images,
    with_distinct_ids,
)
from lesionseg.io.layouts.table import Row, Table
from lesionseg.io.text import read_text, read_yaml
from lesionseg.io.volumes import strip_suffix

DATA_FILE = "data.yaml"
_MAX_LABEL_BYTES = 2**24  # of the text file of one image
_ROUNDING = 1e-4  # coordinates may exceed 0 and 1 by this share of the image
_NO_LABELS = {"classes.txt", "notes.txt", "README.txt"}  # text files that label tools add

Name = Annotated[str, BeforeValidator(str)]


def _list_places(value: object) -> list[str]:
    """Return the places of a part as a list of texts: one path, a list of paths, or none."""
    entries = value if isinstance(value, list) else [value]
    return [str(entry) for entry in entries if entry is not None]


Places = Annotated[list[str], BeforeValidator(_list_places)]


class _DataFile(BaseModel):
    """The content of data.yaml, with the folders and lists of images of each part."""

    names: list[Name] | dict[Annotated[int, Field(ge=0)], Name] = Field(min_length=1)
    path: str = "."
    nc: int | None = None
    kpt_shape: tuple[Count, ...] | None = None  # number of key points, values of each
    train: Places = []
    val: Places = Field(default=[], validation_alias=AliasChoices("val", "valid", "validation"))
    test: Places = []


def is_yolo(root: Path) -> bool:
    """Return True if a folder contains a `data.yaml` with the key `names`.

    A file that cannot be read counts as well, so that `read_yolo` reports the error.
    """
    path = root / DATA_FILE
    try:
        return "names" in read_yaml(path)
    except LesionsegError:  # reading the dataset reports the error
        return path.is_file()


def read_yolo(root: Path) -> Table:
    """Read a YOLO folder as a table. Labels are 1 to K in the order of the classes.

    - `train`, `val` (or `valid`, `validation`) and `test` are folders, or text files with the path
      of an image in each line. They give roles if one of the images is for validation or test.
    - The text file of `…/images/a.png` is `…/labels/a.txt`, otherwise `a.txt` next to the image.
    - An image without a text file, or with an empty text file, has no lesion. Wrong lines become
      findings. Key points are left out.
    - The case id is the path of the image below its folder, with folders joined by `_`. For an
      image from a list, it is the path below the last folder `images`. If two images share an id,
      it is the path below `root`.

    Raises:
        DatasetError: If `data.yaml` is not valid, its folder `train` or `val` is missing, there is
            no image, or no image has a text file.
        ReadError: If `data.yaml` or a list of images cannot be read.
    """
    path = root / DATA_FILE
    root = Path(os.path.normpath(root))  # without `..`, to compare paths with it
    settings = {
        str(key).lower(): value for key, value in read_yaml(path).items()
    }  # keys may be numbers
    content = parse_as(_DataFile, settings, path)
    # label values from 1 in the order of the class numbers, which may have gaps
    names = content.names if isinstance(content.names, dict) else dict(enumerate(content.names))
    value_of = {number: value for value, number in enumerate(sorted(names), start=1)}
    value_names = {value: names[number] for number, value in value_of.items()}
    label_names, findings = distinct_names(path, value_names)
    # nc: the number of classes
    if content.nc not in (None, len(names)):
        text = f"{path}: nc is {content.nc}, but names has {len(names)} classes. Correct one."
        findings.append(Finding(LISTED, text, severity="error"))
    n_point_values = 0 if content.kpt_shape is None else math.prod(content.kpt_shape)
    if n_point_values:
        text = f"{path}: the key points (kpt_shape) are left out, only the boxes are read."
        findings.append(Finding("left_out", text, severity="note"))
    # the cases and their lesions; ids may repeat, such as train/images/a.png and val/images/a.png
    cases = with_distinct_ids(_find_images(root, path, content, findings), root)
    has_roles = any(files.role != "train" for files in cases)
    rows: list[Row] = []
    label_files: set[Path] = set()
    for files in cases:
        rows.append(Row(files if has_roles else replace(files, role=None)))
        label_file = _label_file(root, files.images[0])
        if label_file is not None:
            label_files.add(label_file)
            rows += _read_lines(files.case, label_file, value_of, n_point_values, findings)
    if not label_files:
        raise DatasetError(
            f"{path}: no image has a text file with boxes. Put the text file of images/a.png at "
            "labels/a.txt."
        )
    findings += _find_unused_texts(path, label_files)
    return Table(path, rows, Labels.of(label_names), findings=findings, is_complete=True)


def _find_images(
    root: Path, path: Path, content: _DataFile, findings: list[Finding]
) -> list[CaseFiles]:
    """Return a case for each image of the parts train, val and test, with its role.

    - A folder or list that an earlier part has is left out.
    - A missing folder `test` becomes a finding.

    Args:
        root: The folder of the dataset.
        path: The file `data.yaml`, for messages.
        content: The content of this file.
        findings: Receives the findings.

    Raises:
        DatasetError: If the folder of `train` or `val` is missing, or there is no image.
    """
    parts: list[tuple[str, Role, list[str]]] = [
        ("train", "train", content.train),
        ("val", "validation", content.val),
        ("test", "test", content.test),
    ]
    images: list[CaseFiles] = []
    listed_places: set[Path] = set()
    for key, role, entries in parts:
        for entry in entries:
            place = _find_place((root / content.path, root), root, entry)
            if place is None and role != "test":
                raise DatasetError(
                    f"{path}: {key} is {entry[:200]!r}, which is not a folder below {root}, nor a "
                    f"text file that lists images. Write its path, relative to {path.name}."
                )
            if place is None:
                text = f"{path}: test ({entry[:200]}) is not a folder with images, left out."
                findings.append(Finding("left_out", text, severity="note"))
            elif place not in listed_places:
                listed_places.add(place)
                images += _list_part(place, root, content, role, findings)
    if not images:
        raise DatasetError(
            f"{path}: the folders train, val and test contain no image. Correct their paths."
        )
    return images


def _list_part(
    place: Path, root: Path, content: _DataFile, role: Role, findings: list[Finding]
) -> list[CaseFiles]:
    """Return a case for each image of one part: in a folder, or in the lines of a text file.

    A line of the text file that names no file becomes a finding.

    Args:
        place: The folder or the text file.
        root: The folder of the dataset.
        content: The content of data.yaml.
        role: The role of the cases.
        findings: Receives the findings.
    """
    if place.is_dir():
        files = list_images(place)
        return [CaseFiles(path_id(file.relative_to(place)), (file,), role=role) for file in files]
    images: list[CaseFiles] = []
    for line_number, line in enumerate(read_text(place).splitlines(), start=1):
        entry = line.strip().replace("\\", "/")
        file = _find_place((place.parent, root / content.path, root), root, entry)
        if file is not None:
            # the path below the last folder `images`
            inner = re.sub(r"(?i)^(.*/)?images/", "", file.relative_to(root).as_posix())
            images.append(CaseFiles(path_id(Path(inner)), (file,), role=role))
        elif entry:
            text = (
                f"{place}: line {line_number}: {entry[:200]!r} is not a file below {root}. "
                "Correct its path, or remove the line."
            )
            findings.append(Finding(LISTED, text, severity="error"))
    return images


def _find_place(starts: Sequence[Path], root: Path, entry: str) -> Path | None:
    """Return the folder or file below `root` that a path in data.yaml or a list names, or None.

    Args:
        starts: The folders to which the path may be relative.
        root: The folder of the dataset. The returned path begins with it.
        entry: The path. Roboflow writes `../train` for the folder `train` next to data.yaml, so
            each path is also tried without its leading `../`.
    """
    # absolute, because `is_relative_to` compares names: it would find `../a` below the root `.`
    top = Path(os.path.normpath(root.absolute()))
    for start in starts:
        for name in (entry, re.sub(r"^(\.\./)+", "", entry)):
            place = Path(os.path.normpath((start / name).absolute()))
            with suppress(OSError, ValueError):  # ValueError if the path cannot name a file
                if entry and place.is_relative_to(top) and place.exists():
                    return root / place.relative_to(top)
    return None


def _label_file(root: Path, image: Path) -> Path | None:
    """Return the text file with the boxes of an image, or None if the image has no such file.

    The last folder `images` in the path is replaced by `labels`: `images/train/a.png` has the file
    `labels/train/a.txt`. If this file does not exist, the text file is searched next to the image.
    """
    next_to_image = image.with_name(f"{strip_suffix(image)}.txt")
    inner = next_to_image.relative_to(root).as_posix()
    # `.*` is greedy, so the last folder `images` is replaced
    in_labels = root / re.sub(r"^(.*/)?images/", r"\g<1>labels/", inner)
    return next(filter(is_file_or_broken_link, (in_labels, next_to_image)), None)


def _read_lines(
    case: str,
    table: Path,
    value_of: Mapping[int, int],
    n_point_values: int,
    findings: list[Finding],
) -> list[Row]:
    """Return a row for each line of the text file of an image. Wrong lines become findings.

    An empty file gives one row with an empty tuple of lesions: the image has no lesion. If all
    lines are wrong, or the file cannot be read, the row has `lesions=None`: it is unknown whether
    there are lesions.

    Args:
        case: The case id.
        table: The text file.
        value_of: The label value of each class number.
        n_point_values: The number of values of key points that may follow a box, 0 without key
            points.
        findings: Receives the findings.
    """
    files = CaseFiles(case, images=())
    rows: list[Row] = []
    is_empty = False
    with collect_errors(findings, case, table):
        lines = read_text(table, _MAX_LABEL_BYTES).splitlines()
        is_empty = not any(map(str.strip, lines))
        for line_number, line in enumerate(lines, start=1):
            where = f"{table}: line {line_number}"
            with collect_errors(findings, case, where):
                if line.strip():
                    lesion = _parse_line(line.split(), value_of, n_point_values, where)
                    rows.append(Row(files, where, lesions=(lesion,)))
    return rows or [Row(files, where=table, lesions=() if is_empty else None)]


def _parse_line(
    values: list[str], value_of: Mapping[int, int], n_point_values: int, where: str
) -> AnnotatedLesion:
    """Return the lesion in one line of a text file, in fractions of the image's height and width.

    A line has a class number, followed by x, y, width and height of a box or by the points of a
    polygon. Key points after a box are left out.

    Args:
        values: The values of the line, as text.
        value_of: The label value of each class number.
        n_point_values: The number of values of key points that may follow a box, 0 without key
            points. With key points, a line is never a polygon.
        where: File and line, for messages.

    Raises:
        DatasetError: If the number of values, the class or a coordinate is wrong.
    """
    has_points = n_point_values > 0 and len(values) == 5 + n_point_values
    is_box = len(values) == 5 or has_points
    # a class and three points or more
    is_polygon = n_point_values == 0 and len(values) >= 7 and len(values) % 2 == 1
    if not is_box and not is_polygon:
        hint = " A polygon has an odd number of values, at least 7."
        if n_point_values:
            hint = f" With the key points of data.yaml, it has {5 + n_point_values}."
        raise DatasetError(
            f"the line has {count(len(values), 'value')}, but a box is class, x, y, width and "
            f"height.{hint} Correct it. Six values are a prediction with its score."
        )
    class_number = parse_number("the class", values[0])
    label = value_of.get(int(class_number)) if class_number == int(class_number) else None
    if label is None:
        raise DatasetError(
            f"the class {values[0][:40]} is not in names of data.yaml, which has "
            f"{min(value_of)} to {max(value_of)}. Add it there, or correct the line."
        )
    shares: list[float] = []
    # value 1 is the class
    for index, value in enumerate(values[1:5] if is_box else values[1:], start=2):
        shares.append(parse_number(f"value {index}", value))
        if not -_ROUNDING <= shares[-1] <= 1 + _ROUNDING:
            raise DatasetError(
                f"value {index} is {shares[-1]:g}, but coordinates are shares of the image, from 0 "
                "to 1. Divide pixels by the width or height of the image."
            )
    if is_polygon:
        box = outline_box([shares])
        return AnnotatedLesion(label, box, outline=(tuple(shares),), unit="share", where=where)
    x, y, width, height = shares
    box = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
    return AnnotatedLesion(label, box, unit="share", where=where)


def _find_unused_texts(path: Path, used: set[Path]) -> list[Finding]:
    """Return a finding that lists the text files without an image, or [] if there are none.

    Only the folders of text files that have an image are searched.

    Args:
        path: The file data.yaml, for the message.
        used: The text files of the images.
    """
    orphans = [
        file.name
        for folder in sorted({file.parent for file in used})
        for file in sorted(folder.glob("*.txt"))
        if file not in used and file.name not in _NO_LABELS
    ]
    words = "without an image, left out"
    return findings_about(path, orphans, "text file", words, maximum=5, severity="warning")
