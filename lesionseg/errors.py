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

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import metadata
from typing import Any


class LesionsegError(Exception):
    """Bad input: what is wrong, where, what was seen, what was expected, what to do.

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


def pip_install(extra: str) -> str:
    """The command that installs what an extra brings, wherever lesionseg came from.

    It names the packages: `lesionseg` is on no index, so that its extras can be asked for in a
    clone alone. Where lesionseg runs without being installed, there is a clone.

    >>> pip_install("tune")
    'pip install "optuna>=4"'
    """
    try:
        lines = metadata.requires("lesionseg") or []
    except metadata.PackageNotFoundError:
        lines = []
    names = [line.partition(";")[0] for line in lines if f"extra == '{extra}'" in line]
    wanted = [f'"{name}"' for name in names] or [f'".[{extra}]"', "in the clone"]
    return " ".join(["pip install", *wanted])


def require(
    condition: bool,
    what: str,
    *,
    where: object = None,
    seen: Any = None,
    expected: Any = None,
    remedy: str | None = None,
) -> None:
    """Raise `ConfigError` unless the condition holds of a setting."""
    if not condition:
        raise ConfigError(what, where=where, seen=seen, expected=expected, remedy=remedy)


def one_of(what: str, value: object, choices: Iterable[str], *, where: object) -> None:
    """Raise `ConfigError` for a value that is not among the choices; it names the nearest one."""
    known = tuple(choices)
    near = get_close_matches(str(value), known, n=1)
    require(
        value in known,
        f"There is no such {what}.",
        where=where,
        seen=value,
        expected=", ".join(known),
        remedy=f"write {near[0]}." if near else None,
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?`, or nothing when no known word is near.

    >>> nearest("los.gamma", ["loss.gamma", "seed"])
    " Did you mean 'loss.gamma'?"
    """
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def misfits(error: Any, raw: object) -> str:
    """What pydantic's `ValidationError` says of plain data, as one sentence: each key and value."""
    said: dict[str, tuple[object, list[str]]] = {}
    for one in error.errors():
        value, key = raw, ""
        for part in one["loc"]:  # pydantic adds the names of a union's members, which are no keys
            if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
                value, key = value[part], f"{key}[{part}]"
            elif isinstance(value, dict) and part in value:
                value, key = value[part], f"{key}.{part}".lstrip(".")
            elif one["type"] == "missing":
                value, key = None, f"{key}.{part}".lstrip(".")
        said.setdefault(key, (value, []))[1].append(one["msg"].removeprefix("Value error, "))
    return "; ".join(
        f"{key or 'the content'}: {str(value)[:60]}, {' or '.join(dict.fromkeys(messages))}"
        for key, (value, messages) in said.items()
    )
