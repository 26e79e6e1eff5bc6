"""Fill templates. The templates contain the words, and the filters of this file format numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.core.dataset import EACH_IS_A_PATIENT
from lesionseg.errors import count, duration, format_score
from lesionseg.io.text import write_text
from lesionseg.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
MAX_COUNTED = 50  # up to this number of lesions, a share is stated as "3 of 25"


@dataclass(frozen=True)
class KeyFigure:
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


def format_rate(value: float | None) -> str:
    """Return a rate with two digits, without decimals from 10 on; a dash for None.

    >>> [format_rate(value) for value in (0.75, 1.0, 12.3, 0.0, 0.00019)]
    ['0.75', '1', '12', '0', '<0.001']
    """
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def per_scan(value: float | None, noun: str = "false positive", per: str = "scan") -> str:
    """Return a rate in words, such as "2 false positives per scan". None becomes a dash.

    >>> per_scan(1.0), per_scan(0.75), per_scan(16.0)
    ('1 false positive per scan', '0.75 false positives per scan', '16 false positives per scan')
    """
    shown = format_rate(value)
    return f"{shown} {noun}{'' if shown == '1' else 's'} per {per}"


def share_words(hits: int, n: int) -> str:
    """Return a share in words: as counts for up to 50, otherwise as a simple fraction.

    >>> share_words(64, 70), share_words(16, 63), share_words(5, 5), share_words(0, 8)
    ('9 in 10', '1 in 4', 'all 5', 'none of 8')
    >>> share_words(1, 8), share_words(4, 8), share_words(199, 200), share_words(1, 300)
    ('1 of 8', '4 of 8', 'nearly all', 'almost none')
    >>> share_words(1, 1), share_words(0, 1)
    ('the only', '0 of 1')
    """
    if n and hits == n:
        return "the only" if n == 1 else f"all {n}"
    if n == 1:
        return "0 of 1"
    if hits == 0:
        return f"none of {n}"
    if n <= MAX_COUNTED:
        return f"{hits} of {n}"
    share = hits / n
    if share > 0.95:
        return "nearly all"
    if share < 0.05:
        return "almost none"
    options = [Fraction(k, 10) for k in range(1, 10)]
    options += [Fraction(1, 4), Fraction(3, 4), Fraction(1, 3), Fraction(2, 3)]

    def distance(option: Fraction) -> tuple[float, int]:
        """Return the distance to the share, then the denominator, so that 1/2 precedes 5/10."""
        return round(abs(float(option) - share), 3), option.denominator

    nearest = min(options, key=distance)
    return f"{nearest.numerator} in {nearest.denominator}"


def percent_near(share: float, limit: float) -> str:
    """Return a share in per cent, with enough decimals to show on which side of a limit it is.

    A share that rounds to 0 or 100 % is formatted by `percent`.

    >>> percent_near(0.043, 0.1), percent_near(0.0996, 0.1), percent_near(0.25, 0.1)
    ('4 %', '9.96 %', '25 %')
    """
    if round(100 * share) == 0 or round(100 * share) == 100:
        return percent(share)
    return f"{format_decimals(100 * share, [100 * limit])} %"


def format_decimals(value: float, limits: Sequence[float], minimum: int = 0) -> str:
    """Return a number with enough decimals to show on which side of each limit it is.

    It has at least `minimum` decimals, and at most 6.
    """
    shown = f"{value:.{minimum}f}"
    for decimals in range(minimum, 7):
        shown = f"{value:.{decimals}f}"
        if all((float(shown) >= limit) == (value >= limit) for limit in limits):
            break
    return shown


def cell(value: Any) -> str:
    """Return the text of a table cell.

    A float is formatted by `format_score`, True is yes, and None or NaN is a dash. Others are
    converted by `str`.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
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
    """Fill a template of this package or of an extra. All values are escaped."""
    return _templates().get_template(template).render(**values)


def write_page(path: Path, template: str, **values: object) -> None:
    """Fill a template, see `render`, and write the page atomically."""
    write_text(path, render(template, **values))


def render_lines(sentence: str, **values: object) -> list[str]:
    """Fill a macro of sentences.txt.j2. Return its lines that are not empty."""
    text = str(getattr(_templates().get_template("sentences.txt.j2").module, sentence)(**values))
    return [line for line in text.splitlines() if line.strip()]


def render_sentence(sentence: str, **values: object) -> str:
    """Fill a macro of sentences.txt.j2. Return its lines as one."""
    return " ".join(line.strip() for line in render_lines(sentence, **values))


def split_lines(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Split each line into a name and the words after the first colon; "" without a colon."""
    return [(name, words) for name, _, words in [line.partition(": ") for line in lines]]


@cache
def _templates() -> "Environment":
    """Return the templates of all packages. Each one is compiled once in a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader([*TEMPLATES.parents[1].rglob(TEMPLATES.name)]),
        autoescape=select_autoescape(disabled_extensions=("txt.j2",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    environment.filters["pixels"] = pixels
    environment.globals |= {
        "count": count,
        "duration": duration,
        "each_is_a_patient": EACH_IS_A_PATIENT,
        "format_decimals": format_decimals,
        "format_score": format_score,
        "number_columns": number_columns,
        "per_scan": per_scan,
        "percent": percent,
        "percent_near": percent_near,
        "format_rate": format_rate,
        "share_words": share_words,
        "version": __version__,
    }
    return environment
