"""YOLO folders: `data.yaml`, folders of images, and a text file of boxes per image.

Format: docs.ultralytics.com/datasets/detect. A line is `class x y width height`: the centre and the
sides as shares of the image. In files for segmentation it is `class x1 y1 x2 y2 …`, a polygon. In
files with key points (`kpt_shape` in `data.yaml`), the points follow the box.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.core.finding import Finding, collect_errors
from lesionseg.errors import DatasetError, LesionsegError, count
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.layouts.box_table import (
    TABLE,
    CaseBoxCollector,
    CaseBoxes,
    LesionBox,
    distinct_names,
    find_absent,
    make_labels,
    parse_number,
)
from lesionseg.io.layouts.boxes_csv import list_images
from lesionseg.io.layouts.checks import Count, find_left_out, path_id, validate
from lesionseg.io.text import read_text, read_yaml
from lesionseg.io.volumes import strip_suffix

_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
# the keys of the folders, in any case; Roboflow and other tools also write valid and validation
_PARTS: Mapping[str, Role] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_SIDES = ("x", "y", "width", "height")
_MAX_LABEL_BYTES = 2**24  # of the text file of one image
_ROUNDING = 1e-4  # coordinates may exceed 0 and 1 by this share of the image
_NO_LABELS = {"classes.txt", "notes.txt", "README.txt"}  # text files that label tools add

Name = Annotated[str, BeforeValidator(str)]


def _to_list(value: Any) -> Any:
    """Return a single folder as a list, and None as an empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


Folders = Annotated[list[str], BeforeValidator(_to_list)]


class _DataFile(BaseModel):
    """The content of data.yaml. Unknown keys are kept, because they may name further folders."""

    model_config = ConfigDict(extra="allow")

    names: list[Name] | dict[Annotated[int, Field(ge=0)], Name] = Field(min_length=1)
    path: str = "."
    train: Folders = []
    val: Folders = []
    valid: Folders = []
    validation: Folders = []
    test: Folders = []
    nc: int | None = None
    kpt_shape: tuple[Count, ...] | None = None  # number of key points, values of each

    @model_validator(mode="before")
    @classmethod
    def _accept_capitals(cls, content: Any) -> Any:
        """Write the keys of the folders in lower case. Keys that are no text cannot be meant."""
        stated = {str(key): value for key, value in content.items()}
        for key in list(stated):
            if key.lower() in _PARTS:
                stated.setdefault(key.lower(), stated[key])  # a key in lower case has priority
        return stated


@dataclass(frozen=True)
class _Part:
    """The images of one part of the dataset, in the folder to which their names are relative."""

    folder: Path
    images: tuple[Path, ...]
    role: Role


def find_yolo(root: Path) -> Path | None:
    """Find the file that names the classes and the folders of a YOLO dataset.

    It is called data.yaml or dataset.yaml, and has the key `names` or cannot be read.
    """
    for name in _FILES:
        path = root / name
        if path.is_file():
            try:
                if "names" in read_yaml(path):
                    return path
            except LesionsegError:  # reading the dataset reports the error
                return path
    return None


def read_yolo(root: Path) -> Dataset:
    """Read a YOLO folder. Labels are 1 to K in the order of the classes.

    - The folders `train`, `val` (or `valid`, `validation`) and `test` give roles, if one of them is
      for validation or test.
    - The text file of `…/images/a.png` is `…/labels/a.txt`, otherwise `a.txt` next to the image.
    - An image without a text file, or with an empty one, has no lesion.
    - A case id is the path of the image below its folder, with folders joined by `_`. If two parts
      share an id, it is the path below `root`.

    Raises:
        DatasetError: A folder is missing, or no image has a text file.
        ReadError: `data.yaml` cannot be read.
    """
    path = find_yolo(root)
    if path is None:
        raise DatasetError(f"{root}: the folder has no data.yaml with the key names. Write one.")
    content = validate(_DataFile, read_yaml(path), path)
    names = content.names if isinstance(content.names, dict) else dict(enumerate(content.names))
    if content.nc not in (None, len(names)):
        raise DatasetError(
            f"{path}: nc is {content.nc}, but names has {len(names)} classes. Correct one of them."
        )
    value_of = {number: value for value, number in enumerate(sorted(names), start=1)}
    value_names = {value_of[number]: name for number, name in sorted(names.items())}
    label_names, findings = distinct_names(path, value_names)
    parts = _find_parts(root, path, content, findings)
    ids = _case_ids(root, parts)
    collector = CaseBoxCollector()
    n_point_values = 0 if content.kpt_shape is None else math.prod(content.kpt_shape)
    if n_point_values:
        text = f"{path}: the key points (kpt_shape) are left out, only the boxes are read."
        findings.append(Finding("left_out", text, severity="note"))
    _collect_boxes(root, path, ids, value_of, collector, findings, n_point_values)
    tables = collector.collect(findings, is_relative=True)
    has_roles = len({part.role for part in parts}) > 1
    cases: list[CaseFiles] = []
    for part in parts:
        for image in part.images:
            boxes = tables.get(ids[image], CaseBoxes(is_relative=True))
            role = part.role if has_roles else None
            cases.append(CaseFiles(ids[image], (image,), role=role, annotations={TABLE: boxes}))
    return Dataset(
        name=root.name,
        root=root,
        convention="yolo",
        dims=2,
        channel_names=("image",),
        labels=make_labels(path, label_names),
        cases=tuple(cases),
        findings=tuple(findings),
    )


def _collect_boxes(
    root: Path,
    path: Path,
    ids: Mapping[Path, str],
    value_of: Mapping[int, int],
    collector: CaseBoxCollector,
    findings: list[Finding],
    n_point_values: int,
) -> None:
    """Collect the boxes of all images, and findings about the text files.

    Raise `DatasetError` if no image has a text file.
    """
    absent: list[str] = []
    used: set[Path] = set()
    for image, case in ids.items():
        table = _label_file(root, image)
        if table is None:
            absent.append(case)
            continue
        used.add(table)
        with collect_errors(findings, case, table):
            text = read_text(table, _MAX_LABEL_BYTES)
            _add_lines(collector, findings, case, table, text, value_of, n_point_values)
    if not used:
        raise DatasetError(
            f"{path}: no image has a text file with boxes. Put the text file of images/a.png at "
            "labels/a.txt."
        )
    findings += collector.findings()
    findings += find_absent(path, absent, len(ids))
    findings += _find_orphans(path, used)


def _find_parts(root: Path, path: Path, content: _DataFile, findings: list[Finding]) -> list[_Part]:
    """Find the images of each part. Parts with the folders of an earlier part are left out."""
    parts: list[_Part] = []
    seen: set[Path] = set()
    for key, role in _PARTS.items():
        for entry in getattr(content, key):
            folder = _find_folder(root, content.path, entry)
            if folder is None and key == "test":
                text = f"{path}: test ({entry[:200]}) is not a folder with images, left out."
                findings.append(Finding("left_out", text, severity="note"))
            elif folder is None:
                advice = f"Write the path of a folder with images, relative to {path.name}."
                if entry.lower().endswith(".txt"):
                    advice = (
                        "Text files that list images are not read. Move the images of each part "
                        "into a folder such as images/train and their text files into "
                        "labels/train, and write the folder here."
                    )
                raise DatasetError(
                    f"{path}: {key} is {entry[:200]!r}, which is not a folder below {root}. "
                    f"{advice}"
                )
            elif folder not in seen:
                seen.add(folder)
                parts.append(_Part(folder, tuple(list_images(folder)), role))
    findings += _find_unknown_parts(root, path, content, seen)
    if not any(part.images for part in parts):
        raise DatasetError(
            f"{path}: the folders train, val and test contain no image. Correct their paths."
        )
    return parts


def _find_unknown_parts(
    root: Path, path: Path, content: _DataFile, known: set[Path]
) -> list[Finding]:
    """Return a finding on each unknown key that names a folder with further images.

    `known` are the folders of the parts. A folder that contains one of them is no further part.
    """
    findings: list[Finding] = []
    for key, value in (content.model_extra or {}).items():
        entries = _to_list(value)
        for entry in entries if isinstance(entries, list) else ():
            folder = _find_folder(root, content.path, entry) if isinstance(entry, str) else None
            if folder is None or any(part.is_relative_to(folder) for part in known):
                continue
            if list_images(folder):
                text = (
                    f"{path}: the key {key} is unknown, so the images in its folder "
                    f"{entry[:200]} are left out. Call it train, val or test to use them."
                )
                findings.append(Finding("left_out", text))
    return findings


def _find_folder(root: Path, base: str, entry: str) -> Path | None:
    """Find a folder that data.yaml names. It must be below `root`, and its path begins with `root`.

    Paths are relative to `path` in data.yaml or to the file itself. Roboflow writes `../train` for
    the folder `train` next to the file.
    """
    top = Path(os.path.normpath(root.absolute()))  # a relative root such as . would contain ../a
    without_upper_folders = re.sub(r"^(\.\./)+", "", entry)
    for start in (root / base, root):
        for name in (entry, without_upper_folders):
            folder = Path(os.path.normpath((start / name).absolute()))
            with suppress(OSError, ValueError):  # ValueError if the path cannot name a file
                if folder.is_relative_to(top) and folder.is_dir():
                    return Path(os.path.normpath(root)) / folder.relative_to(top)
    return None


def _case_ids(root: Path, parts: Sequence[_Part]) -> dict[Path, str]:
    """Return the case id of each image, see `read_yolo`."""
    ids: dict[Path, str] = {}
    for part in parts:
        for image in part.images:
            ids[image] = path_id(image.relative_to(part.folder))
    n_images = Counter(ids.values())
    for image, case in ids.items():
        if n_images[case] > 1:  # such as train/images/a.png and val/images/a.png
            ids[image] = path_id(image.relative_to(os.path.normpath(root)))
    return ids


def _label_file(root: Path, image: Path) -> Path | None:
    """Return the text file of an image, or None if it has none.

    The last folder `images` in the path is replaced by `labels`: `images/train/a.png` has the file
    `labels/train/a.txt`. If this file does not exist, it is searched next to the image.
    """
    name = f"{strip_suffix(image)}.txt"
    folders = list(image.parent.relative_to(os.path.normpath(root)).parts)
    places = [place for place, folder in enumerate(folders) if folder.lower() == "images"]
    for folder_of_labels in ("labels", "Labels", "LABELS") if places else ():
        folders[places[-1]] = folder_of_labels
        file = Path(os.path.normpath(root), *folders, name)
        if is_file_or_broken_link(file):
            return file
    next_to_image = image.with_name(name)
    return next_to_image if is_file_or_broken_link(next_to_image) else None


def _add_lines(
    collector: CaseBoxCollector,
    findings: list[Finding],
    case: str,
    table: Path,
    text: str,
    value_of: Mapping[int, int],
    n_point_values: int,
) -> None:
    """Add the boxes in the text file of an image. Wrong lines become findings."""
    is_empty = True
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        is_empty = False
        where = f"{table}: line {number}"
        with collect_errors(findings, case, where):
            if n_point_values:
                words = _remove_points(words, n_point_values)
            collector.add_box(case, _parse_line(words, value_of, where))
    if is_empty:
        collector.add_negative(case, "", str(table))


def _remove_points(words: list[str], n_point_values: int) -> list[str]:
    """Return class and box of a line. Raise `DatasetError` if it has another number of values."""
    if len(words) not in (5, 5 + n_point_values):
        raise DatasetError(
            f"the line has {count(len(words), 'value')}, but by kpt_shape in data.yaml it needs "
            f"{5 + n_point_values}. Correct one of them."
        )
    return words[:5]


def _parse_line(words: Sequence[str], value_of: Mapping[int, int], where: str) -> LesionBox:
    """Return the box of a line, in shares of the image."""
    is_polygon = len(words) >= 7 and len(words) % 2 == 1  # the class and at least three points
    if len(words) != 5 and not is_polygon:
        hint = " Six values are a prediction with its score." if len(words) == 6 else ""
        raise DatasetError(
            f"the line has {count(len(words), 'value')}, but a box is class, x, y, width and "
            f"height.{hint} Correct it."
        )
    number = parse_number("the class", words[0])
    label = value_of.get(int(number)) if number == int(number) else None
    if label is None:
        raise DatasetError(
            f"the class {words[0][:40]} is not in names of data.yaml, which has "
            f"{min(value_of)} to {max(value_of)}. Add it there, or correct the line."
        )
    names = [f"value {place}" for place in range(2, len(words) + 1)] if is_polygon else _SIDES
    shares: list[float] = []
    for name, word in zip(names, words[1:], strict=True):
        share = parse_number(name, word)
        if not -_ROUNDING <= share <= 1 + _ROUNDING:
            raise DatasetError(
                f"{name} is {share:g}, but coordinates are shares of the image, from 0 to 1. "
                "Divide pixels by the width or height of the image."
            )
        shares.append(share)
    if is_polygon:
        xs = shares[::2]
        ys = shares[1::2]
        start = (min(ys), min(xs))
        stop = (max(ys), max(xs))
        return LesionBox(label, start, stop, outline=tuple(shares), where=where)
    x, y, width, height = shares
    if width <= 0 or height <= 0:
        raise DatasetError(f"the box is {width:g} wide and {height:g} high. Correct it.")
    start = (y - height / 2, x - width / 2)
    stop = (y + height / 2, x + width / 2)
    return LesionBox(label, start, stop, where=where)


def _find_orphans(path: Path, used: set[Path]) -> list[Finding]:
    """Return a finding on text files next to used ones that belong to no image."""
    orphans: list[str] = []
    for folder in sorted({file.parent for file in used}):
        for file in sorted(folder.glob("*.txt")):
            if file not in used and file.name not in _NO_LABELS:
                orphans.append(file.name)
    words = "without an image, left out"
    return find_left_out(path, orphans, "text file", words, most=5, severity="warning")
