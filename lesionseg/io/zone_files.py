"""Anatomy masks and the names of their values: what TotalSegmentator, SynthSeg or FreeSurfer write.

A folder holds a mask per case, named by case, on any grid, and at most one table of names.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lesionseg.core import Zones
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.cases import read_mask
from lesionseg.io.files import read_json
from lesionseg.io.predictions import find_masks

_log = logging.getLogger(__name__)

_TABLES = (".csv", ".tsv", ".json", ".txt", ".lut", ".ctbl", ".label")
# cells between commas, semicolons and tabs; else words, those in quotes together
_CELLS, _WORDS = re.compile(r"[^,;\t]+"), re.compile(r"\"[^\"]*\"|\S+")


@dataclass(frozen=True)
class ZoneFolder:
    """The anatomy masks of a folder by case, and what their values are called."""

    masks: Mapping[str, Path]
    names: Mapping[int, str]

    def read(self, case: str, pixel_mm: float | None = None) -> Zones | None:
        """The zones of a case, `pixel_mm` of a picture; None where the folder has no mask of it."""
        path = self.masks.get(case)
        if path is None:
            return None
        mask = read_mask(path, raster_mm=pixel_mm)
        return Zones(np.asarray(mask.labels), mask.geometry, self.names)

    def check(self, cases: Sequence[str]) -> None:
        """Warn of cases without a mask; raise `DatasetError` when there are only such."""
        missing = [case for case in cases if case not in self.masks]
        if missing and len(missing) == len(cases):
            raise DatasetError(
                f"No zone mask ({', '.join(list(self.masks)[:3])}) has the name of a case "
                f"({', '.join(missing[:3])}). Name the masks <case>.nii.gz."
            )
        if missing:
            text = "These cases have no zone mask, so their lesions have no zone: %s"
            _log.warning(text, ", ".join(missing))


def find_zones(folder: Path) -> ZoneFolder:
    """The masks of a folder, and the names of their values where it has a table of them.

    The table is CSV, TSV, JSON (`{"17": "Left-Hippocampus"}`, either way round, also as nnU-Net's
    dataset.json) or a colour table as FreeSurfer's, ITK-SNAP's and Slicer's. Raises `DatasetError`
    for a folder without masks or with several tables, `ContentError` for a table without names.
    """
    masks = find_masks(folder)
    tables = sorted(f for f in folder.iterdir() if f.suffix.lower() in _TABLES)
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise DatasetError(f"{folder}: several tables name the zones ({names}). Keep one.")
    return ZoneFolder(masks, read_zone_names(tables[0]) if tables else {})


def read_zone_names(path: Path) -> dict[int, str]:
    """Names by mask value; 0, the background, has none. Raises `ContentError` without any."""
    pairs = list[tuple[str, str]]()
    if path.suffix.lower() == ".json":
        content = read_json(path)
        entries = content.get("labels", content) if isinstance(content, dict) else {}
        pairs = [(str(a), str(b)) for a, b in entries.items()] if isinstance(entries, dict) else []
        pairs = [(a, b) if a.isdecimal() else (b, a) for a, b in pairs]
    else:  # of each line the first whole number, and the first cell that is no number
        for line in path.read_text("utf-8-sig", "replace").splitlines():
            pattern = _CELLS if re.search(r"[,;\t]", line) else _WORDS
            cells = [cell.strip(" \"'") for cell in pattern.findall(line)]
            values = [cell for cell in cells if cell.isdecimal()]
            texts = [cell for cell in cells if cell and not re.fullmatch(r"[-+.\deE]+", cell)]
            if values and texts and not line.startswith("#"):
                pairs.append((values[0], texts[0]))
    names = {int(value): name for value, name in pairs if value.isdecimal() and int(value)}
    if not names:
        raise ContentError(f"{path}: no line of the table has a whole number and a name.")
    return names
