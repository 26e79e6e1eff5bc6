"""Zones: anatomy masks per case (TotalSegmentator, FreeSurfer), table of names.

A folder contains one mask per case, named after the case, on any grid, and at most one table with
the names of the mask values.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lesionseg.core import Zones
from lesionseg.errors import ConfigError, ContentError, DatasetError, join_names
from lesionseg.io.masks import read_mask
from lesionseg.io.results.index import find_masks
from lesionseg.io.text import read_csv_lines

_log = logging.getLogger(__name__)

_READ_TABLES = (".csv", ".tsv")
_TABLES = (*_READ_TABLES, ".json", ".txt", ".lut", ".ctbl", ".label")  # the others are refused


@dataclass(frozen=True)
class ZoneFolder:
    """The anatomy masks of a folder, which divide the patient into zones (organs or tissues).

    Attributes:
        masks: The mask file of each case id.
        names: The name of each label value of the masks. Empty without a table of names.
    """

    masks: Mapping[str, Path]
    names: Mapping[int, str]

    @classmethod
    def find(cls, folder: Path) -> "ZoneFolder":
        """Find the anatomy masks of a folder, and read the table with the zone names, if any.

        Hidden files are skipped.

        Raises:
            DatasetError: If the folder has no masks, a mask that cannot be used, or several tables.
            ContentError: If the table contains no names, or cannot be used, see `read_zone_names`.
            ReadError: If the table is damaged.
        """
        masks = find_masks(folder)
        files = [file for file in folder.iterdir() if not file.name.startswith(".")]
        tables = sorted(file for file in files if file.suffix.lower() in _TABLES)
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DatasetError(f"{folder}: several tables name the zones ({names}). Keep one.")
        return cls(masks, read_zone_names(tables[0]) if tables else {})

    def read(self, case: str, pixel_mm: float | None = None) -> Zones | None:
        """Read the zones of a case. Return None if the folder has no mask for this case.

        `pixel_mm` is the pixel size of a mask that is a picture. None means 1 mm.
        """
        path = self.masks.get(case)
        if path is None:
            return None
        mask = read_mask(path, pixel_mm=pixel_mm)
        return Zones(np.asarray(mask.labels), mask.geometry, self.names)

    def check(self, cases: Sequence[str]) -> None:
        """Warn about cases without a mask. Raise `DatasetError` if no case has a mask.

        `cases` are the ids of the cases that are to be read.
        """
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
        """Raise `ConfigError` if the setting `inference.keep_zones` has the name of no zone.

        Valid names are the zone names in the table. Without a table, zones are named by the label
        values of the masks, so that a valid name is a number.
        """
        unknown = [name for name in names if name not in self.names.values()]
        if not self.names:
            unknown = [name for name in names if not name.isdecimal()]
        if unknown:
            zone_names = ", ".join(self.names.values()) or "none, so give values of the masks"
            raise ConfigError(
                f"inference.keep_zones: there is no zone {join_names(unknown)}. Names in the table "
                f"of zones: {zone_names}."
            )


def read_zone_names(path: Path) -> dict[int, str]:
    """Read a table that names the zones, as a dictionary from label value to name.

    The table has the columns `value` and `name`. Rows without a name, and the value 0 (background),
    are skipped. If a value has two names, the last one is used.

    Raises:
        ReadError: If the table cannot be read, see `read_csv`.
        ContentError: If the file is not CSV or TSV, a column is missing, a value is not an integer
            of at most 4300 digits, no row has a name, or two values have the same name.
    """
    advice = "Write a CSV file with the columns value and name, and lines such as 17,liver."
    lines = read_csv_lines(path)[1] if path.suffix.lower() in _READ_TABLES else []
    value_of_name: dict[str, int] = {}
    for line, row in lines:
        try:
            value = int(row["value"])
            name = row["name"]
        except (KeyError, ValueError) as error:
            raise ContentError(f"{path}: line {line} does not name a zone. {advice}") from error
        other = value_of_name.setdefault(name, value) if name else value
        if other != value:
            raise ContentError(
                f"{path}: the values {other} and {value} have the same name {name!r}, but lesions "
                "are counted by name. Give each value its own name."
            )
    names = {value: name for name, value in value_of_name.items() if value}
    if not names:
        raise ContentError(f"{path}: the file names no zones. {advice}")
    return names
