"""Exception classes, numbers of the exit statuses (1, 2, 3, 130), phrases of messages."""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from importlib import metadata
from math import ceil, log10
from typing import Any

# exit statuses of a command; 0 means that all is done
NOTHING_RAN = 1
WRONG_SETTING = 2
SOME_FAILED = 3
INTERRUPTED = 130


class LesionsegError(Exception):
    """An error of the input. The message names the fault, the file or key, and the remedy."""


class ConfigError(LesionsegError):
    """A setting or an override is wrong."""


class DatasetError(LesionsegError):
    """A dataset folder, manifest or split cannot be used."""


class RegionError(DatasetError):
    """The regions of a dataset cannot be used. Its masks are not read without them."""


class ReadError(LesionsegError):
    """A file is missing, truncated or of an unknown format."""


class ResourceError(ReadError):
    """A file was not read for lack of time or memory; with more of them it may be readable."""


class GeometryError(LesionsegError):
    """Shapes or affines do not fit together."""


class ContentError(LesionsegError):
    """Voxels, labels, boxes or scores have values that are not allowed."""


# errors of a single case, after which other cases may be usable
CASE_ERRORS = (ReadError, GeometryError, ContentError, DatasetError, MemoryError)


class BundleError(LesionsegError):
    """A model folder cannot be used."""


class OutputError(LesionsegError):
    """A result cannot be written."""


class ConflictError(OutputError):
    """A result would replace the result of another scan."""


class TrainingError(LesionsegError):
    """Training cannot start or continue."""


def find_error(name: str) -> type[LesionsegError] | None:
    """Return the exception class called `name`, or None if lesionseg has no such exception.

    Used to restore an error from the traceback of another process.
    """
    kind = globals().get(name)
    return kind if isinstance(kind, type) and issubclass(kind, LesionsegError) else None


def pip_install(extra: str) -> str:
    """Return the command that installs the packages of an extra.

    It names these packages because no package index has `lesionseg`. If the installed metadata
    lacks the extra, it is the command for a clone of the repository.

    >>> pip_install("tune")
    'pip install "optuna>=4"'
    """
    try:
        lines = metadata.requires("lesionseg") or []
    except metadata.PackageNotFoundError:
        lines = []
    # a line has the form `optuna>=4; extra == 'tune'`
    names = [line.partition(";")[0] for line in lines if f"extra == '{extra}'" in line]
    if not names:  # the package is not installed, but runs in its repository
        return f'pip install ".[{extra}]" in the clone'
    quoted = [f'"{name}"' for name in names]
    return f"pip install {' '.join(quoted)}"


def require_one_of(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise `ConfigError` if the value of a setting is not one of the choices.

    The message begins with `what`, the name of the setting, and suggests a choice with similar
    spelling, if there is one.
    """
    options = tuple(choices)
    if value not in options:
        near = suggest(str(value), options)
        raise ConfigError(f"{what} {value!r} is not one of {', '.join(options)}.{near}")


def count(n: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun in singular or plural, for a message.

    The plural is `nouns`, or `noun` with an s.

    >>> count(1, "patient"), count(3, "patient"), count(2, "study", "studies")
    ('1 patient', '3 patients', '2 studies')
    """
    if n == 1:
        return f"{n} {noun}"
    return f"{n} {nouns or noun + 's'}"


def duration(minutes: float) -> str:
    """Format a duration for a message: seconds below 2 minutes, minutes below 2 hours, then hours.

    >>> duration(0.4), duration(2.6), duration(240), duration(60_000)
    ('24 seconds', '3 minutes', '4 hours', '1000 hours')
    """
    if minutes < 2:
        return count(round(60 * minutes), "second")
    if minutes < 120:
        return count(round(minutes), "minute")
    hours = minutes / 60
    return f"{hours:.3g} hours" if hours < 100 else f"{hours:.0f} hours"


def join_names(names: Iterable[object], maximum: int = 20) -> str:
    """Join names by commas for a message. After `maximum` names, count the remaining names.

    >>> join_names(["a", "b"]), join_names("abcd", maximum=2)
    ('a, b', 'a, b and 2 more')
    """
    texts = [str(name) for name in names]
    n_remaining = len(texts) - maximum
    joined = ", ".join(texts[:maximum])
    return f"{joined} and {n_remaining} more" if n_remaining > 0 else joined


def format_score(score: float) -> str:
    """Format a score, a threshold or a measure with three digits.

    A number above 0.99 shows two digits of its difference from 1, with at most six decimals. A
    number of four or more digits is rounded to a whole number.

    >>> format_score(0.5648), format_score(0.0034), format_score(0.99977), format_score(1 - 1e-9)
    ('0.565', '0.0034', '0.99977', '0.999999')
    >>> format_score(1.0), format_score(15.151), format_score(1234.5)
    ('1', '15.2', '1234')
    """
    if abs(score) >= 999.5:  # three digits would give 1e+03
        return f"{score:.0f}"
    if not 0.99 < score < 1:
        return f"{score:.3g}"
    # the decimals up to the first digit of the difference from 1, and one more
    n_decimals = min(6, 1 + ceil(-log10(1 - score)))
    shown = min(score, 1 - 1e-6)  # not rounded up to 1
    return f"{shown:.{n_decimals}f}".rstrip("0")


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean …?` with the known word that is spelt most like `word`.

    The text is the end of an error message. The result is "" if `nearest` finds no such word.

    >>> suggest("los.gamma", ["loss.gamma", "seed"])
    " Did you mean 'loss.gamma'?"
    """
    return "".join(f" Did you mean {name!r}?" for name in nearest(word, known))


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Return a list with the known word that is spelt most like a word, to correct a mistyped name.

    The list is empty if no word is similar enough, if two words are equally similar, or if several
    known words end in the word.

    >>> nearest("film", ["p1_film", "firms"]), nearest("film", ["p1_film", "patient2_film"])
    (['p1_film'], [])

    A word that differs only in the values of numbers is not near: it names another case.

    >>> nearest("film_07", ["film_7", "film_9"]), nearest("film_07", ["film_09", "film_12"])
    (['film_7'], [])

    Args:
        word: The word, perhaps mistyped.
        known: The known words.
        cutoff: The lowest ratio of `difflib.SequenceMatcher` at which two words are near.
    """
    # into texts and the numbers between them, without leading zeros; `[::2]` are the texts
    split = re.compile(r"0*(\d+)").split
    possible = [
        name for name in known if split(name) == split(word) or split(name)[::2] != split(word)[::2]
    ]
    # two matches, to find out whether they are equally similar
    near = get_close_matches(word, possible, n=2, cutoff=cutoff)
    ratios = {SequenceMatcher(None, name, word).ratio() for name in near}
    is_one_of_several = len(ratios) < len(near) or sum(name.endswith(word) for name in possible) > 1
    return [] if is_one_of_several else near[:1]


# what a value must be, for some types of pydantic's errors; braces are replaced from the context.
# Other types keep pydantic's message.
_REQUIRED: Mapping[str, str] = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a group of keys",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list, such as [1, 2]",
    "literal_error": "{expected}",
    "model_type": "a group of keys",
    "dataclass_type": "a group of keys",
    "string_type": "text",
    "tuple_type": "a list, such as [1, 2]",
}


def describe_misfits(error: Any, raw: object) -> str:
    """Describe pydantic's `ValidationError` in one sentence: each wrong key, its value, the fault.

    A fault of several keys together is described without a key. A value that is a dictionary is not
    shown.

    Args:
        error: The `ValidationError`.
        raw: The data that did not validate.
    """
    misfits_of: dict[str, list[Any]] = {}
    value_of: dict[str, object] = {}
    for misfit in error.errors():
        value = raw
        key = ""
        # walk from the whole data to the wrong value and write down the way, such as `boxes[3].x`;
        # parts that are not in the data are skipped: they are names of a union's types, not keys
        for part in misfit["loc"]:
            if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
                value = value[part]
                key = f"{key}[{part}]"
            elif isinstance(value, dict) and part in value:
                value = value[part]
                key = f"{key}.{part}".lstrip(".")
            elif misfit["type"] == "missing":
                value = None
                key = f"{key}.{part}".lstrip(".")
        value_of.setdefault(key, value)
        misfits_of.setdefault(key, []).append(misfit)
    sentences = []
    for key, misfits in misfits_of.items():
        problems = _describe_problems(value_of[key], misfits)
        # the message of a check of several keys names them
        sentences.append(f"{key}: {problems}" if key else problems)
    return "; ".join(sentences)


def _describe_problems(value: object, misfits: Iterable[Any]) -> str:
    """Describe the faults of one value, such as "-1 must be at least 0 or 'all'".

    If a key allows several types, pydantic reports one fault per type. The faults are joined by
    "or", because correcting one of them is enough. The value is cut to 60 characters, and a
    dictionary is not shown.

    Args:
        value: The wrong value.
        misfits: The faults of this value, items of `ValidationError.errors()`.
    """
    requirements: list[str] = []
    others: list[str] = []
    for misfit in misfits:
        if misfit["type"] == "missing":
            return "the key is missing"
        requirement = _REQUIRED.get(misfit["type"])
        if requirement is None:
            others.append(misfit["msg"].removeprefix("Value error, "))
        else:
            requirements.append(requirement.format(**misfit.get("ctx", {})))
    if requirements:
        others.insert(0, f"must be {' or '.join(dict.fromkeys(requirements))}")
    problems = " or ".join(dict.fromkeys(others))
    if isinstance(value, dict):
        return problems
    shown = "null" if value is None else str(value)[:60] or "''"  # an empty text as ''
    return f"{shown} {problems}" if requirements else f"{shown}, {problems}"
