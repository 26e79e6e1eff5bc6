"""Tables on paper: cells broken into lines, set row by row over as many pages as they need."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lesionseg.report.figures.chart_drawing import GRID, INK
from lesionseg.report.sections.table_cells import Listing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 8.0  # points
LINE = 1.3 * SIZE
GAP = 0.5 * SIZE
PER_CHARACTER = 0.47  # of the size, the width of an average one


@dataclass(frozen=True)
class Block:
    """A titled table; `shares` are its columns' parts of the width, equal ones when empty.

    `columns` are those that are set; all when empty. At most `most` rows, the rest is counted.
    """

    title: str
    listing: Listing
    shares: tuple[float, ...] = ()
    columns: tuple[int, ...] = ()
    words: str = ""
    most: int = 60

    def rows(self) -> list[tuple[str, ...]]:
        """Headings and rows as words."""
        kept = self.columns or tuple(range(len(self.listing.headings)))
        lines = self.listing.lines[: self.most]
        rows = [self.listing.headings, *(tuple(cell.shown for cell in line) for line in lines)]
        return [tuple(row[column] for column in kept) for row in rows]

    def n_omitted(self) -> int:
        """Rows that are not set."""
        return self.listing.omitted + max(0, len(self.listing.lines) - self.most)


@dataclass(frozen=True)
class Frame:
    """The part of a page that is written on, in points from its lower left corner."""

    left: float
    width: float
    top: float
    bottom: float
    page: tuple[float, float]


def table_pages(
    blocks: Sequence[Block],
    frame: Frame,
    make_page: "Callable[[], Figure]",
    omitted: Callable[[int], str],
) -> "Iterator[Figure]":
    """Set the blocks one below the other; a table that runs on repeats its headings."""
    page, y = make_page(), frame.top
    for block in (block for block in blocks if block.listing.lines):
        rows = block.rows()
        shares = block.shares or (1 / len(rows[0]),) * len(rows[0])
        broken = [_break(row, shares, frame.width) for row in rows]
        head = 4 * LINE + _height(broken[0])
        if y - head - _height(broken[min(1, len(broken) - 1)]) < frame.bottom:
            yield page
            page, y = make_page(), frame.top
        y = _write(page, frame, 0, y, [block.title], 11, bold=True) - GAP
        if block.words:
            per_line = int(frame.width / (SIZE * PER_CHARACTER))
            y = _write(page, frame, 0, y, textwrap.wrap(block.words, per_line), SIZE) - GAP
        y = _row(page, frame, y, broken[0], shares, bold=True)
        for row in broken[1:]:
            if y - _height(row) < frame.bottom:
                yield page
                page = make_page()
                y = _row(page, frame, frame.top, broken[0], shares, bold=True)
            y = _row(page, frame, y, row, shares)
        if block.n_omitted():
            y = _write(page, frame, 0, y, [omitted(block.n_omitted())], SIZE)
        y -= 2 * LINE
    if y < frame.top:
        yield page


def _break(row: Sequence[str], shares: Sequence[float], width: float) -> list[list[str]]:
    """Each cell as lines that fit its column."""
    per_line = [max(4, int((share * width - SIZE) / (SIZE * PER_CHARACTER))) for share in shares]
    return [textwrap.wrap(cell, n) or [""] for cell, n in zip(row, per_line, strict=True)]


def _height(row: Sequence[Sequence[str]]) -> float:
    return max(map(len, row)) * LINE + GAP


def _row(
    page: "Figure",
    frame: Frame,
    y: float,
    row: Sequence[Sequence[str]],
    shares: Sequence[float],
    *,
    bold: bool = False,
) -> float:
    from matplotlib.lines import Line2D

    x = 0.0
    for cell, share in zip(row, shares, strict=True):
        _write(page, frame, x, y, cell, SIZE, bold=bold)
        x += share * frame.width
    y -= _height(row)
    line = [(y + 0.7 * GAP) / frame.page[1]] * 2
    ends = [frame.left / frame.page[0], (frame.left + frame.width) / frame.page[0]]
    colour, thick = (INK, 0.8) if bold else (GRID, 0.5)
    page.add_artist(Line2D(ends, line, color=colour, linewidth=thick))
    return y


def _write(
    page: "Figure",
    frame: Frame,
    x: float,
    y: float,
    lines: Sequence[str],
    size: float,
    *,
    bold: bool = False,
) -> float:
    """Write lines from `y` downwards; returns where they end."""
    weight = "bold" if bold else "normal"
    for words in lines:
        place = (frame.left + x) / frame.page[0], y / frame.page[1]
        page.text(*place, words, size=size, weight=weight, va="top", color=INK)
        y -= 1.3 * size
    return y
