"""Optional DICOM elements: values as number or text; empty or impossible values, warnings."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lesionseg.errors import join_names

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_MAX_SHOWN = 3  # names in a line

Header: TypeAlias = "Dataset"


class ReaderWarnings:
    """Warnings about one image: elements and files that a reader ignored, replaced or left out.

    Warnings with the same text are joined, so that a series of many files gives one line per text.
    """

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}  # of files or frames, by the text of the warning

    def add(self, text: str, name: str = "") -> None:
        """Add a warning about the file or frame `name`. "" means that it is about the image."""
        self._names.setdefault(text, []).extend([name] if name else [])

    @property
    def lines(self) -> list[str]:
        """One line per warning text, which begins with up to 3 names of its files or frames."""
        return [
            f"{join_names(names, _MAX_SHOWN)}: {text}." if names else f"{text}."
            for text, names in self._names.items()
        ]

    def log(self, image: Path) -> None:
        """Log one warning per line of `lines`, which begins with the path of the image."""
        for line in self.lines:
            logger.warning("%s: %s", image, line)


def element_value(header: "Header", name: str) -> Any:
    """Return the value of a DICOM element, such as `PixelSpacing`, by its keyword `name`.

    Return None if the element is absent or empty, or if its value is not of the element's type.
    """
    try:
        value = header.get(name)
    except Exception:  # pydicom converts a value only when it is accessed
        return None
    is_empty = value is None or (hasattr(value, "__len__") and len(value) == 0)
    return None if is_empty else value


def numbers(header: "Header", name: str) -> list[float]:
    """Return all values of a DICOM element as numbers.

    The list is empty if the element has no value, or if a value is not a finite number.
    """
    try:
        values = np.ravel(element_value(header, name)).astype(float)  # None becomes NaN
    except (TypeError, ValueError):
        return []
    return values.tolist() if np.isfinite(values).all() else []


def number(header: "Header", name: str, default: float | None = None) -> float | None:
    """Return the first value of a DICOM element as a number.

    Return `default` if the element has no value, or if a value is not a finite number.
    """
    return next(iter(numbers(header, name)), default)


def text(header: "Header", name: str) -> str:
    """Return the value of a DICOM element as text without surrounding spaces.

    Return "" if the element has no value.
    """
    value = element_value(header, name)
    return "" if value is None else str(value).strip()
