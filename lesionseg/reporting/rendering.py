"""Fill templates. The templates contain the words, and the filters of this file format numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.errors import count, format_score
from lesionseg.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Tile:
    """A number of the first screen, with the words that explain it.

    `weak` marks a number that is based on few data, or that needs attention.
    """

    value: str
    words: str
    weak: bool = False


def is_number(value: Any) -> bool:
    """Return True if the value of a table cell is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number_columns(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the columns that have a number, which are aligned right.

    >>> number_columns([{"scan": "a", "Dice": None}, {"scan": "b", "Dice": 0.5}])
    {'Dice'}
    """
    return {name for row in rows for name, value in row.items() if is_number(value)}


def percent(share: float | None) -> str:
    """Return a share in whole per cent. Only 1 becomes 100 %, and only 0 becomes 0 %.

    >>> percent(0.997), percent(0.004), percent(1.0), percent(None)
    ('99 %', '1 %', '100 %', '–')
    """
    if share is None:
        return "–"
    shown = round(100 * share)
    if shown == 100 and share < 1:
        shown = 99
    if shown == 0 and share > 0:
        shown = 1
    return f"{shown} %"


def rate(value: float | None) -> str:
    """Return a rate with two digits.

    >>> rate(0.75), rate(1.0), rate(12.3), rate(0.0), rate(0.00019)
    ('0.75', '1', '12', '0', '<0.001')
    """
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def cell(value: Any) -> str:
    """Return the text of a table cell.

    A float is formatted by `format_score`, True is yes, and None or NaN is a dash. Others are
    converted by `str`.
    """
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    if is_missing:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_score(value)
    return str(value)


def pixels(value: float) -> str:
    """Return a length in pixels with at most two decimals.

    >>> pixels(12.0), pixels(3.14159)
    ('12', '3.14')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".")


def render(template: str, **values: object) -> str:
    """Fill a template of this package. All values are escaped."""
    return _templates().get_template(template).render(**values)


@cache
def _templates() -> "Environment":
    """Return the templates of this package. Each one is compiled once in a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    environment.filters["pixels"] = pixels
    environment.globals |= {
        "count": count,
        "number_columns": number_columns,
        "version": __version__,
    }
    return environment
