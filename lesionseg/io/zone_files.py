"""Anatomy masks, such as those of TotalSegmentator, SynthSeg or FreeSurfer, and their names.

A folder contains one mask per case, named after the case, on any grid, and at most one table with
the names of the mask values.
"""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import Zones
from lesionseg.errors import ConfigError, ContentError, DatasetError, join_names
from lesionseg.io.masks import read_mask
from lesionseg.io.predictions import find_masks
from lesionseg.io.text import read_json

_log = logging.getLogger(__name__)

_TABLES = (".csv", ".tsv", ".json", ".txt", ".lut", ".ctbl", ".label")
_SEPARATORS = "\t;,"
# columns of tables with a header, the first that exists is taken
_VALUE_COLUMNS = ("id", "value", "segid", "label_id", "labelid", "index", "label")
_NAME_COLUMNS = ("name", "structname", "label_name", "labelname", "zone", "label")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WHOLE_NUMBER = rf"{_NUMBER.pattern}(?!\S)"
# a cell in quotes, a number, or words up to the next of these
_CELLS = re.compile(rf'"[^"]*"|{_WHOLE_NUMBER}|[^\s"](?:(?!\s{_WHOLE_NUMBER})[^"])*')
# a line of words begins with the value, whether its name contains a comma or not
_VALUE_AND_WORD = re.compile(r"\s*\d+ +[^\s,;]")


@dataclass(frozen=True)
class ZoneFolder:
    """The anatomy masks of a folder.

    Attributes:
        masks: The masks by case id.
        names: The names of the mask values.
    """

    masks: Mapping[str, Path]
    names: Mapping[int, str]

    @classmethod
    def find(cls, folder: Path) -> "ZoneFolder":
        """Find the anatomy masks of a folder and read the table of their names, if there is one.

        Hidden files are skipped.

        The table is one of these: CSV or TSV; JSON with names by value or values by name, such as
        `{"17": "Left-Hippocampus"}` or nnU-Net's dataset.json; or a colour table of FreeSurfer,
        ITK-SNAP or Slicer.

        Raises:
            DatasetError: The folder has no masks, a mask that cannot be used, or several tables.
            ContentError: The table contains no names, or cannot be used, see `read_zone_names`.
            ReadError: A JSON table is damaged.
        """
        masks = find_masks(folder)
        files = [file for file in folder.iterdir() if not file.name.startswith(".")]
        tables = sorted(file for file in files if file.suffix.lower() in _TABLES)
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DatasetError(f"{folder}: several tables name the zones ({names}). Keep one.")
        return cls(masks, read_zone_names(tables[0]) if tables else {})

    def read(self, case: str, pixel_mm: float | None = None) -> Zones | None:
        """Read the zones of a case. Return None if the folder has no mask of it.

        `pixel_mm` is the pixel size of a picture.
        """
        path = self.masks.get(case)
        if path is None:
            return None
        mask = read_mask(path, pixel_mm=pixel_mm)
        return Zones(np.asarray(mask.labels), mask.geometry, self.names)

    def check(self, cases: Sequence[str]) -> None:
        """Warn about the `cases` without a mask. Raise `DatasetError` if none of them has one."""
        missing = [case for case in cases if case not in self.masks]
        if missing and len(missing) == len(cases):
            raise DatasetError(
                f"None of the zone masks ({', '.join(list(self.masks)[:3])}) has the name of a "
                f"case ({', '.join(missing[:3])}). Rename the masks to <case>.nii.gz."
            )
        if missing:
            text = "These cases have no zone mask, so their lesions have no zone: %s"
            _log.warning(text, ", ".join(missing))

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `ConfigError` if a name is not in the table or, without a table, is not a value."""
        unknown = [name for name in names if name not in self.names.values()]
        if not self.names:
            unknown = [name for name in names if not name.isdecimal()]
        if unknown:
            found = ", ".join(self.names.values()) or "none, so give values of the masks"
            raise ConfigError(
                f"inference.keep_zones: there is no zone {join_names(unknown)}. Names in the table "
                f"of zones: {found}."
            )


def read_zone_names(path: Path) -> dict[int, str]:
    """Read the names by mask value, except for 0, the background.

    Lines and entries without an integer and a name are skipped. Of two names of a value, the last
    one counts. The forms of the file are those of `ZoneFolder.find`. Bytes that are not UTF-8 are
    replaced, except in JSON.

    Raises:
        ReadError: A JSON file is damaged.
        ContentError: The file contains no names, two values have the same name, or a table cannot
            be read.
    """
    try:
        if path.suffix.lower() == ".json":
            pairs = _json_pairs(read_json(path))
        else:
            pairs = _text_pairs(path.read_text("utf-8-sig", "replace"))
        names = {int(v): name for v, name in pairs if v.isdecimal() and int(v) and name}
    except (csv.Error, ValueError) as error:  # Python limits the digits of an integer to 4300
        raise ContentError(
            f"{path}: the table cannot be read: {error!s:.62}. Correct it."
        ) from error
    if not names:
        raise ContentError(
            f"{path}: no line of the table has an integer and a name. Write lines such as "
            "17,Left-Hippocampus."
        )
    value_of_name: dict[str, int] = {}
    for value, name in names.items():
        other = value_of_name.setdefault(name, value)
        if other != value:
            raise ContentError(
                f"{path}: the values {other} and {value} have the same name {name!r}, but lesions "
                "are counted by name. Give each value its own name; put names with numbers or "
                "commas in double quotes."
            )
    return names


def _json_pairs(content: Any) -> list[tuple[str, str]]:
    """Return value and name of each entry of a JSON object. Either of them may be the key.

    If the object has the key `labels`, its entries are those of this key, as in `dataset.json`.
    Return an empty list if there is no such object.
    """
    entries = content.get("labels", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        return []
    pairs: list[tuple[str, str]] = []
    for key, value in entries.items():
        is_name_by_value = str(key).isdecimal()
        pairs.append((str(key), str(value)) if is_name_by_value else (str(value), str(key)))
    return pairs


def _named_pairs(text: str) -> list[tuple[str, str]]:
    """Return value and name of each row of a table whose first line names both columns.

    Return an empty list if the first line does not. Rows without one of the two cells are skipped.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    separator = next((mark for mark in _SEPARATORS if lines and mark in lines[0]), None)
    if separator is None:
        return []
    header, *rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    columns = [cell.strip().lower() for cell in header]
    value = next((columns.index(name) for name in _VALUE_COLUMNS if name in columns), None)
    name = next((columns.index(name) for name in _NAME_COLUMNS if name in columns), None)
    if value is None or name is None or value == name:
        return []
    last = max(value, name)
    return [(row[value].strip(), row[name].strip()) for row in rows if len(row) > last]


def _text_pairs(text: str) -> list[tuple[str, str]]:
    """Return the first integer and the name from each line that has both.

    Colour tables have further numbers in other columns, such as red, green and blue. If the first
    line names the columns of values and names, these are taken. Lines that begin with `#` are
    comments.
    """
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return _named_pairs(text) or [pair for line in lines for pair in _pair_of_line(line)]


def _pair_of_line(line: str) -> list[tuple[str, str]]:
    """Return the first integer and the name from a line, or nothing if one of them is missing.

    Cells are separated by a character or, if these give no pair, by numbers and double quotes. A
    name in quotes may be a number, unless a comma or semicolon follows the value.
    """
    rows: list[list[str]] = []
    if not _VALUE_AND_WORD.match(line):
        separators = [mark for mark in _SEPARATORS if mark in line]
        rows = [next(csv.reader([line], delimiter=s, skipinitialspace=True)) for s in separators]
    rows.append(_CELLS.findall(line))
    for row in rows:
        cells = [cell.strip() for cell in row]
        values = [cell for cell in cells if cell.isdecimal()]
        names = [cell for cell in cells if cell.startswith('"')] or list(filter(_is_text, cells))
        if values and names:
            return [(values[0], " ".join(names[0].strip("\"'").split()))]
    return []


def _is_text(cell: str) -> bool:
    """Return True if a cell contains a letter and is not a number such as 1e5."""
    return any(map(str.isalpha, cell)) and not _NUMBER.fullmatch(cell)
