"""Templates filled; numbers of pages formatted: per cent, rates, decimals, table cells.

The templates contain the words.
"""

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

    `weak` marks a number that is based on few data or that needs attention. The page shows it in
    the warning colour.
    """

    value: str
    words: str
    weak: bool = False


def is_number(value: Any) -> bool:
    """Return True if the value of a table cell is a finite number, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number_columns(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the columns that contain a number, which the page aligns right.

    >>> number_columns([{"scan": "a", "Dice": None}, {"scan": "b", "Dice": 0.5}])
    {'Dice'}
    """
    return {name for row in rows for name, value in row.items() if is_number(value)}


def percent(share: float | None) -> str:
    """Return a share in whole per cent, or a dash for None.

    Only 1 becomes 100 %, and only 0 becomes 0 %, so that one missed lesion of many remains visible.

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
    """Return a rate, such as false positives per scan, with two digits; a dash for None.

    A rate from 10 on has no decimals, and one below 0.001 becomes "<0.001".

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

    Args:
        value: The rate, see `format_rate`.
        noun: What is counted, in the singular.
        per: The unit that the rate refers to.

    >>> per_scan(1.0), per_scan(0.75), per_scan(16.0)
    ('1 false positive per scan', '0.75 false positives per scan', '16 false positives per scan')
    """
    shown = format_rate(value)
    return f"{shown} {noun}{'' if shown == '1' else 's'} per {per}"


def share_words(hits: int, n: int) -> str:
    """Return the share of `hits` among `n` lesions or scans in words, for a sentence.

    Up to `MAX_COUNTED`, the words are counts. Above, they are the nearest simple fraction, or
    "nearly all" above 95 % and "almost none" below 5 %.

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
        """Return the distance of a fraction to the share, and its denominator to break ties.

        Of fractions at the same distance up to 0.001, the one with the smaller denominator is
        chosen, such as 1/4 instead of 3/10 for 0.275.
        """
        return round(abs(float(option) - share), 3), option.denominator

    nearest = min(options, key=distance)
    return f"{nearest.numerator} in {nearest.denominator}"


def percent_near(share: float, limit: float) -> str:
    """Return a share in per cent, with enough decimals to show if it is above or below a limit.

    A share that rounds to 0 or 100 % is formatted by `percent`, without decimals.

    >>> percent_near(0.043, 0.1), percent_near(0.0996, 0.1), percent_near(0.25, 0.1)
    ('4 %', '9.96 %', '25 %')
    """
    if round(100 * share) == 0 or round(100 * share) == 100:
        return percent(share)
    return f"{format_decimals(100 * share, [100 * limit])} %"


def format_decimals(value: float, limits: Sequence[float], minimum: int = 0) -> str:
    """Return a number with enough decimals to show if it is above or below each limit.

    Otherwise a lesion of 4.96 mm would be shown as 5.0 mm, although it belongs to the lesions under
    5 mm. The number has at least `minimum` decimals, and at most 6.
    """
    shown = f"{value:.{minimum}f}"
    for decimals in range(minimum, 7):
        shown = f"{value:.{decimals}f}"
        if all((float(shown) >= limit) == (value >= limit) for limit in limits):
            break
    return shown


def cell(value: Any) -> str:
    """Return the text of a table cell on a page.

    A float is formatted by `format_score`. True and False become yes and no, None and NaN a dash.
    Other values are converted by `str`.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_score(value)
    return str(value)


def pixels(value: float) -> str:
    """Return a length in pixels with at most two decimals, without zeros at the end, for templates.

    >>> pixels(12.0), pixels(3.14159)
    ('12', '3.14')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".")


def render(template: str, **values: object) -> str:
    """Fill a template of this package or of an extra with values, and return the text.

    HTML characters in the values are escaped, because names in files could contain some.
    """
    return _templates().get_template(template).render(**values)


def write_page(path: Path, template: str, **values: object) -> None:
    """Fill a template (see `render`), and write the text to `path` atomically."""
    write_text(path, render(template, **values))


def render_lines(sentence: str, **values: object) -> list[str]:
    """Fill a macro of sentences.txt.j2, and return its lines without empty ones.

    Args:
        sentence: The name of the macro.
        values: The arguments of the macro.
    """
    # Jinja makes the macros of a template attributes of its `module`
    text = str(getattr(_templates().get_template("sentences.txt.j2").module, sentence)(**values))
    return [line for line in text.splitlines() if line.strip()]


def render_sentence(sentence: str, **values: object) -> str:
    """Fill a macro of sentences.txt.j2, and join its lines to one text.

    Args:
        sentence: The name of the macro.
        values: The arguments of the macro.
    """
    return " ".join(line.strip() for line in render_lines(sentence, **values))


def split_lines(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Split each line at its first colon into a name and the text after it, as in "name: text".

    The text is empty if the line has no colon.
    """
    return [(name, words) for name, _, words in [line.partition(": ") for line in lines]]


@cache
def _templates() -> "Environment":
    """Return the Jinja environment with the templates of this package and of all extras.

    The environment is cached, so that a process compiles each template once. Templates may use the
    formatting functions of this file. A template that uses an undefined value is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        # all folders `templates` of lesionseg
        loader=FileSystemLoader([*TEMPLATES.parents[1].rglob(TEMPLATES.name)]),
        # sentences are plain text, which a page escapes when it shows them
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
