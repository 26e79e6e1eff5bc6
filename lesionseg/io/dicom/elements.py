"""Access to optional DICOM elements, which may be empty or contain impossible values."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lesionseg.errors import count

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

Header: TypeAlias = "Dataset"


class Remarks:
    """What a reader ignored or replaced in one image, for one warning of each kind."""

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = {}  # by the text of the remark

    def add(self, text: str, file: Path | None = None) -> None:
        """Add a remark, about one of the image's files or about the whole image."""
        self._files.setdefault(text, []).extend([file.name] if file else [])

    def log(self, image: Path) -> None:
        """Log one warning per text, with the number of files and the name of the first one."""
        for text, files in self._files.items():
            place = f" in {count(len(files), 'file')}, the first is {files[0]}" if files else ""
            logger.warning("%s: %s%s.", image, text, place)


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


def text(header: "Header", name: str) -> str:
    """Return an element's value as text without surrounding spaces, or "" if it has no value."""
    value = value_of(header, name)
    return "" if value is None else str(value).strip()
