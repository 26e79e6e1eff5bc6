"""Everything lesionseg raises on purpose.

LesionsegError
├── ConfigError      a setting or an override is wrong
├── DatasetError     a dataset folder, manifest or split cannot be used
├── ReadError        a file is missing, truncated or of an unknown format
├── GeometryError    shapes or affines do not fit together
├── ContentError     voxels, labels, boxes or scores hold values they must not
├── BundleError      a model folder cannot be used
├── OutputError      a result cannot be written
└── TrainingError    training cannot start or go on
"""

from typing import Any


class LesionsegError(Exception):
    """Bad input, told as: what is wrong, where, what was seen, what was expected, what to do.

    >>> print(ReadError("Cannot read the image.", where="a.nii.gz", remedy="Copy it again."))
    Cannot read the image. (in a.nii.gz) How to fix: Copy it again.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        seen: Any = None,
        expected: Any = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where, self.seen, self.expected, self.remedy = (
            what,
            None if where is None else str(where),
            seen,
            expected,
            remedy,
        )
        parts = [what]
        parts += [f"(in {where})"] if where is not None else []
        parts += [f"Seen: {seen}."] if seen is not None else []
        parts += [f"Expected: {expected}."] if expected is not None else []
        parts += [f"How to fix: {remedy}"] if remedy is not None else []
        super().__init__(" ".join(parts))


class ConfigError(LesionsegError):
    """A setting or an override is wrong."""


class DatasetError(LesionsegError):
    """A dataset folder, manifest or split cannot be used."""


class ReadError(LesionsegError):
    """A file is missing, truncated or of an unknown format."""


class GeometryError(LesionsegError):
    """Shapes or affines do not fit together."""


class ContentError(LesionsegError):
    """Voxels, labels, boxes or scores hold values they must not."""


class BundleError(LesionsegError):
    """A model folder cannot be used."""


class OutputError(LesionsegError):
    """A result cannot be written."""


class TrainingError(LesionsegError):
    """Training cannot start or go on."""
