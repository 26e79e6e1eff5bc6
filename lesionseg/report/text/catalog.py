"""Every sentence of the report in the reader's language, from `en.yaml`, `de.yaml` and so on.

All files have the same names. Braces stand for numbers, and for words said elsewhere.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from lesionseg.errors import ConfigError
from lesionseg.io.atomic import read_yaml

HERE = Path(__file__).parent
LANGUAGES = tuple(sorted(file.stem for file in HERE.glob("*.yaml")))
_language: ContextVar[str] = ContextVar("language", default="en")


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Say all in `language`; raises `ConfigError` for one that there is none of."""
    if language not in LANGUAGES:
        raise ConfigError(
            "There is no report in this language.",
            where="report.language",
            seen=language,
            expected=" or ".join(LANGUAGES),
        )
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


@cache
def catalog(language: str) -> Mapping[str, Any]:
    """All that is said in a language, by name; lists are tuples."""
    content: dict[str, Any] = _fixed(read_yaml(HERE / f"{language}.yaml"))
    return content


def _fixed(node: Any) -> Any:
    if isinstance(node, list):
        return tuple(map(_fixed, node))
    return {key: _fixed(one) for key, one in node.items()} if isinstance(node, dict) else node


def entry(name: str) -> Any:
    """What stands under a name; raises `AttributeError` where there is none."""
    try:
        return catalog(_language.get())[name]
    except KeyError:
        raise AttributeError(name) from None


def say(name: str, /, **values: object) -> str:
    """A sentence with its values put in."""
    return str(entry(name)).format(**values)


def noun(name: str, one: bool) -> str:
    """A noun of the catalog, by what it is in English, in the singular or plural."""
    return str(entry("NOUNS")[name][0 if one else 1])


def counted(n: int, name: str) -> str:
    """`n` things, in the singular or plural.

    >>> counted(1, "scan"), counted(2000, "scan")
    ('1 scan', '2 000 scans')
    """
    return f"{n:,} {noun(name, n == 1)}".replace(",", " ")
