"""Words on paper: lines as wide as the font really is, and pages filled from top to bottom.

Widths are those of the font that matplotlib's settings name and that is there: what fits in one
font runs off the page in another.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lesionseg.report.figures.chart_drawing import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ELLIPSIS = "…"


def width_of(words: str, size: float, *, bold: bool = False) -> float:
    """The width of one line in points, set in so many points."""
    from matplotlib import rcParams

    fonts = tuple(rcParams["font.family"]), tuple(rcParams["font.sans-serif"])
    return size * _width(words, "bold" if bold else "normal", fonts)


@lru_cache(maxsize=20_000)
def _width(words: str, weight: str, fonts: tuple[tuple[str, ...], ...]) -> float:
    """Of letters of one point; `fonts` are those in force, and make the cache tell them apart."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=1, weight=weight)
    return float(text_to_path.get_text_width_height_descent(words, font, ismath=False)[0])


def shorten(words: str, width: float, size: float, *, bold: bool = False) -> str:
    """The words, or as many letters of them as fit `width` points before an ellipsis."""
    if width_of(words, size, bold=bold) <= width:
        return words
    kept = bisect_left(
        range(1, len(words)),
        True,
        key=lambda n: width_of(words[:n] + ELLIPSIS, size, bold=bold) > width,
    )
    return words[:kept].rstrip() + ELLIPSIS


def break_lines(
    words: str, width: float, size: float, *, bold: bool = False, most: int | None = None
) -> list[str]:
    """The words in lines of at most `width` points; `[""]` for none.

    A word that is wider alone is cut. Of more than `most` lines the last ends in an ellipsis.
    """
    lines, parts = [""], re.findall(r"[^ \t\n]+", words)  # a no-break space stays in its word
    if width_of(" ".join(parts), size, bold=bold) <= width:  # most cells
        return [" ".join(parts)]
    for word in parts:
        for piece in _pieces(word, width, size, bold):
            longer = f"{lines[-1]} {piece}".lstrip(" ")
            if width_of(longer, size, bold=bold) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(piece)
    if most is None or len(lines) <= most:
        return lines
    return [
        *lines[: most - 1],
        shorten(" ".join(lines[most - 1 : most + 1]), width, size, bold=bold),
    ]


def _pieces(word: str, width: float, size: float, bold: bool) -> Iterator[str]:
    """A word in parts that fit; letters that do not fit alone are parts of their own."""

    def too_wide(letters: int) -> bool:
        return width_of(word[:letters], size, bold=bold) > width

    while len(word) > 1 and too_wide(len(word)):
        kept = max(1, bisect_left(range(1, len(word)), True, key=too_wide))
        yield word[:kept]
        word = word[kept:]
    yield word


@dataclass(frozen=True)
class Frame:
    """The part of a page that is written on, in points from its lower left corner."""

    left: float
    width: float
    top: float
    bottom: float
    page: tuple[float, float]


class Sheets:
    """Pages that are filled downwards; `y` is where the next line begins, in points."""

    def __init__(self, frame: Frame, make_page: "Callable[[], Figure]") -> None:
        self.frame = frame
        self.pages = [make_page()]
        self.y = frame.top
        self._make_page = make_page

    @property
    def page(self) -> "Figure":
        """The page that is being filled."""
        return self.pages[-1]

    @property
    def untouched(self) -> bool:
        """Whether nothing is on the page that is being filled."""
        return self.y >= self.frame.top

    def need(self, height: float) -> bool:
        """Turn the page where less than `height` points are left; says whether it did."""
        if self.untouched or self.y - height >= self.frame.bottom:
            return False
        self.pages.append(self._make_page())
        self.y = self.frame.top
        return True

    def put(self, words: str, x: float, y: float, size: float, *, bold: bool = False) -> None:
        """One line at a place of the frame; `y` is its upper edge."""
        wide, high = self.frame.page
        weight = "bold" if bold else "normal"
        at = (self.frame.left + x) / wide, y / high
        self.page.text(*at, words, size=size, weight=weight, va="top", color=INK)

    def write(self, lines: list[str], size: float, leading: float, *, bold: bool = False) -> None:
        """Lines one below the other, on as many pages as they need; `leading` is their distance."""
        for words in lines:
            self.need(leading)
            self.put(words, 0, self.y, size, bold=bold)
            self.y -= leading
