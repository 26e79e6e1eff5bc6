"""Everything lesionseg raises on purpose, each a `LesionsegError`."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import metadata
from math import ceil, log10
from typing import Any

# what a command's exit status says besides 0, all done
NOTHING_RAN = 1
WRONG_SETTING = 2
SOME_FAILED = 3
INTERRUPTED = 130


class LesionsegError(Exception):
    """Bad input: one sentence with what is wrong, in which file or key, and what to do."""


class ConfigError(LesionsegError):
    """A setting or an override is wrong."""


class DatasetError(LesionsegError):
    """A dataset folder, manifest or split cannot be used."""


class ReadError(LesionsegError):
    """A file is missing, truncated or of an unknown format."""


class ResourceError(ReadError):
    """Time or memory did not suffice to read a file; with more of it the file may be fine."""


class GeometryError(LesionsegError):
    """Shapes or affines do not fit together."""


class ContentError(LesionsegError):
    """Voxels, labels, boxes or scores hold values they must not."""


class BundleError(LesionsegError):
    """A model folder cannot be used."""


class OutputError(LesionsegError):
    """A result cannot be written."""


class ConflictError(OutputError):
    """A result would replace one of another scan."""


class TrainingError(LesionsegError):
    """Training cannot start or go on."""


def pip_install(extra: str) -> str:
    """The command that installs what an extra brings, wherever lesionseg came from.

    It names the packages, as `lesionseg` is on no index.

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


def require_one_of(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise `ConfigError` for a value that is not among the choices; it names the nearest one."""
    known = tuple(choices)
    if value not in known:
        near = suggest(str(value), known)
        raise ConfigError(f"{what} {value!r} is none of {', '.join(known)}.{near}")


def count(n: int, noun: str, nouns: str = "") -> str:
    """A number with its noun.

    >>> count(1, "patient"), count(3, "patient"), count(2, "study", "studies")
    ('1 patient', '3 patients', '2 studies')
    """
    return f"{n} {noun if n == 1 else nouns or noun + 's'}"


def join_names(names: Iterable[object], most: int = 20) -> str:
    """Join names for a message and count those that are left out.

    >>> join_names(["a", "b"]), join_names("abcd", most=2)
    ('a, b', 'a, b and 2 more')
    """
    known = [str(name) for name in names]
    rest = len(known) - most
    return ", ".join(known[:most]) + (f" and {rest} more" if rest > 0 else "")


def format_score(score: float) -> str:
    """A score in two digits, in as many more as it takes to tell it from 0 and from 1.

    >>> format_score(0.889), format_score(0.0034), format_score(0.999942), format_score(1.0)
    ('0.89', '0.0034', '0.99994', '1')
    """
    if not 0.99 < score < 1:
        return f"{score:.2g}"
    return f"{score:.{min(6, ceil(-log10(1 - score)))}f}"


def suggest(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?`, or nothing when no known word is near.

    >>> suggest("los.gamma", ["loss.gamma", "seed"])
    " Did you mean 'loss.gamma'?"
    """
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def describe_misfits(error: Any, raw: object) -> str:
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
        f"{key or 'the content'}: "
        + ("" if isinstance(value, dict) else f"{str(value)[:60]}, ")
        + " or ".join(dict.fromkeys(messages))
        for key, (value, messages) in said.items()
    )
