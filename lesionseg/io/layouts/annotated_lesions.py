"""Annotation as box, polygon or run length; unit, "No finding", maximum of labels.

Every layout with such annotations gives the same types, and `drawn_lesions` makes the reference of
a case from them.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

from lesionseg.core import CaseFiles
from lesionseg.core.finding import Finding
from lesionseg.core.labels import free_name
from lesionseg.errors import DatasetError, join_names

LESIONS_KEY = "lesions"  # the key of `CaseFiles.annotations` for a `CaseLesions`
MAX_LABELS = 255  # the values of an 8-bit mask
UPRIGHT = "Write the upright box around it, or its corners as a polygon (COCO, YOLO)"
# the name of a class for images without a lesion, as VinDr-CXR writes it
NO_FINDING = re.compile(r"(?i)\s*no[\s_-]*(?:findings?|lesions?|abnormalit(?:y|ies))\s*")
_NUMBER_LIMIT = 1e9  # above every coordinate of an image

Unit = Literal["pixel", "share", "mm"]
Polygons = tuple[tuple[float, ...], ...]  # x, y, x, y, … of each


class RunLengths(BaseModel, frozen=True):
    """The pixels of a lesion in COCO's run-length encoding.

    Attributes:
        size: Height and width of the image.
        counts: The lengths of alternating runs of background and lesion, column by column, or
            COCO's compressed text of them.
    """

    size: tuple[int, int]
    counts: str | tuple[int, ...]


@dataclass(frozen=True)
class AnnotatedLesion:
    """A lesion of a case as its annotation describes it, before its pixels are drawn.

    Attributes:
        label: The label value.
        box: Start and stop in array order, (y, x, y, x) or (z, y, x, z, y, x), half-open. Empty if
            the annotation has only run lengths.
        reader: The person who marked the lesion. Empty if the annotation names nobody.
        outline: Polygons x, y, x, y, …, or run lengths. Empty if the annotation has only a box.
        unit: The unit of box and polygons: pixels, fractions (0 to 1) of the image's height and
            width ("share"), or millimetres in LPS. With millimetres, the axes are (x, y, z).
        mask_value: The voxel value of the lesion in the mask of its case, if the case has a mask.
        is_ignored: True for a region that is neither lesion nor background.
        where: File and line, for messages.
    """

    label: int
    box: tuple[float, ...] = ()
    reader: str = ""
    outline: Polygons | RunLengths = ()
    unit: Unit = "pixel"
    mask_value: int | None = None
    is_ignored: bool = False
    # not part of the representation, on which the keys of cached cases depend
    where: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class CaseLesions:
    """The lesions of one case. If the tuple `lesions` is empty, the case is lesion-free.

    Attributes:
        lesions: The lesions and ignored regions in the order of the annotations.
        readers: Everyone who read the case, including readers who found no lesion. Empty if the
            annotations state no reader, and after `readers.merge_case`.
        size: Height and width of the image as the annotations state them, or None.
    """

    lesions: tuple[AnnotatedLesion, ...] = ()
    readers: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


def lesions_are_boxes(files: CaseFiles) -> bool:
    """Return True if boxes are the only reference of a case, so that no mask can be drawn.

    The case then has no mask file, and one or more of its lesions have a box but no outline.
    Ignored regions do not count.
    """
    annotated = files.annotations.get(LESIONS_KEY, CaseLesions())
    has_box_only = any(not lesion.outline for lesion in annotated.lesions if not lesion.is_ignored)
    return files.reference is None and has_box_only


def parse_number(name: str, cell: str) -> float:
    """Return the number in a table cell as a float.

    Args:
        name: The name of the column or value, for the message.
        cell: The text of the cell.

    Raises:
        DatasetError: If the text is not a finite number below 10⁹ in absolute value.
    """
    value = np.nan
    with suppress(ValueError):
        value = float(cell.replace("_", "?"))  # float("1_0") would be 10
    if not abs(value) < _NUMBER_LIMIT:  # also False for NaN
        hint = " with a decimal point" if "," in cell else ""
        if abs(value) >= _NUMBER_LIMIT:
            hint = f" below {_NUMBER_LIMIT:g} in absolute value"
        raise DatasetError(f"{name} is {cell[:40]!r}. Write a number{hint}.")
    return value


def outline_box(polygons: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the smallest box (y, x, y, x) that contains all polygons of a lesion.

    Each polygon is a sequence x, y, x, y, … of coordinates.
    """
    # points has a row (x, y) per point; [::-1] turns the minimum and the maximum into (y, x)
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    return tuple(np.concatenate([points.min(axis=0)[::-1], points.max(axis=0)[::-1]]).tolist())


def distinct_names(path: Path, name_of: Mapping[int, str]) -> tuple[dict[int, str], list[Finding]]:
    """Give labels of the same name different names, because scores and tables are listed by name.

    Args:
        path: The file with the names, for the finding.
        name_of: The name of each label value. Of equal names, the first one does not change.

    Returns:
        The new name of each label value, and a list with one finding if a name has changed,
        otherwise an empty list.

    >>> distinct_names(Path("data.yaml"), {1: "mass", 2: "nodule", 3: "nodule"})[0]
    {1: 'mass', 2: 'nodule', 3: 'nodule (2)'}
    """
    names: dict[int, str] = {}
    renamings: list[str] = []
    for value, name in name_of.items():
        names[value] = free_name(name, names.values(), "{name} ({number})")
        if names[value] != name:
            renamings.append(f"label {value} is now called {names[value]!r}")
    if not renamings:
        return names, []
    text = (
        f"{path}: several labels have the same name, so {join_names(renamings)}. Give each label "
        "its own name, or merge them with data.merge_labels=true (evaluate merge_labels=true)."
    )
    return names, [Finding("label_names", text)]
