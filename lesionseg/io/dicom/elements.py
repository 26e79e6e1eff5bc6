"""Access to optional DICOM elements, which may be empty or contain impossible values."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lesionseg.errors import count

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

Header: TypeAlias = "Dataset"


@dataclass
class Remarks:
    """A list of the elements that a reader ignored in one image, for one warning of each kind.

    Attributes:
        path: The image: a file or a folder.
        files: The names of the files that each remark is about, by its text. "" names no file.
    """

    path: Path
    files: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, file: Path | None = None) -> None:
        """Add a remark, about one of the image's files or about the whole image."""
        self.files.setdefault(text, []).append("" if file is None else file.name)

    def log(self) -> None:
        """Log one warning per text, with the number of files and the name of the first one."""
        for text, files in self.files.items():
            place = ""
            if files[0]:
                place = f" in {count(len(files), 'file')}, the first is {files[0]}"
            logger.warning("%s: %s%s.", self.path, text, place)
        self.files.clear()


def value_of(header: "Header", name: str) -> Any:
    """Return an element's value, or None if it is absent, empty or not of its type."""
    try:
        value = header.get(name)
    except Exception:  # pydicom converts a value only when it is accessed
        return None
    is_empty = value is None or (hasattr(value, "__len__") and len(value) == 0)
    return None if is_empty else value


def numbers(header: "Header", name: str) -> list[float]:
    """Return an element's values as numbers, or an empty list if any is not a finite number."""
    value = value_of(header, name)
    if value is None:
        return []
    try:
        values = [float(v) for v in np.ravel(value)]
    except (TypeError, ValueError):
        return []
    return values if all(map(math.isfinite, values)) else []


def number(header: "Header", name: str, default: float | None = None) -> float | None:
    """Return an element's first value as a finite number, or `default`."""
    return next(iter(numbers(header, name)), default)


def whole_number(header: "Header", name: str, default: int) -> int:
    """Return an element's first value as an integer, or `default`."""
    value = number(header, name)
    return default if value is None else int(value)


def text(header: "Header", name: str) -> str:
    """Return an element's value as text without surrounding spaces, or "" if it has no value."""
    value = value_of(header, name)
    return "" if value is None else str(value).strip()


def texts(header: "Header", name: str) -> list[str]:
    """Return an element's values in capitals. A single value gives a list with one entry."""
    value = value_of(header, name)
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    return [str(v).strip().upper() for v in np.ravel(values)]
