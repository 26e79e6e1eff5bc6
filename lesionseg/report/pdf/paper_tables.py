"""Tables on paper: cells broken into lines, set row by row over as many pages as they need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lesionseg.report.figures.chart_drawing import GRID, INK
from lesionseg.report.pdf.paper import Frame, Sheets, break_lines, width_of
from lesionseg.report.sections.table_cells import Listing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, LEAST_SIZE = 8.0, 6.0  # points
TITLE_SIZE = 11.0
LEADING = 1.3  # of the size
GAP = 4.0  # points below a row
BETWEEN = 6.0  # points, at least, between columns
# Lines of a title, of the words below it, of headings and of a cell: together less than a page.
MOST_TITLE, MOST_WORDS, MOST_HEADING, MOST_CELL = 3, 12, 6, 45
WIDEST_WORD = 0.25  # of the width; longer words are cut


@dataclass(frozen=True)
class Block:
    """A titled table; `shares` say how columns share what their longest words leave, all alike
    when empty.

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


Cells = list[list[str]]


@dataclass(frozen=True)
class Grid:
    """Columns of a table in points, and the size of its letters."""

    widths: tuple[float, ...]
    size: float

    def broken(self, row: Sequence[str], *, heading: bool) -> Cells:
        """Each cell as lines that fit its column."""
        most = MOST_HEADING if heading else MOST_CELL
        fit = partial(break_lines, size=self.size, bold=heading, most=most)
        return [fit(words, wide - BETWEEN) for words, wide in zip(row, self.widths, strict=True)]

    def height(self, cells: Cells) -> float:
        """Of a row, with the gap below."""
        return max(map(len, cells)) * LEADING * self.size + GAP


def make_grid(
    rows: Sequence[Sequence[str]], width: float, shares: Sequence[float] = (), size: float = SIZE
) -> Grid:
    """Columns as wide as their longest words, and what is left dealt out by `shares`.

    Letters get smaller, down to 6 points, where not even the words fit beside each other.
    """
    shares = shares or (1.0,) * len(rows[0])
    needs = [min(WIDEST_WORD * width, _longest(column, size)) for column in zip(*rows, strict=True)]
    room = width - BETWEEN * len(needs)
    small = min(1.0, max(LEAST_SIZE / size, room / sum(needs)))
    left = max(0.0, room - small * sum(needs))
    wide = [small * n + left * s / sum(shares) for n, s in zip(needs, shares, strict=True)]
    squeeze = room / sum(wide)  # under 1 only where letters cannot get smaller
    return Grid(tuple(squeeze * w + BETWEEN for w in wide), small * size)


def _longest(column: Sequence[str], size: float) -> float:
    """The width of a column's longest word; the first is a heading."""
    heading, *cells = column
    words = {word for cell in cells for word in cell.split(" ")}
    return max(
        1.0,
        *(width_of(word, size, bold=True) for word in heading.split(" ")),
        *(width_of(word, size) for word in words),
    )


def table_pages(
    blocks: Sequence[Block],
    frame: Frame,
    make_page: "Callable[[], Figure]",
    omitted: Callable[[int], str],
) -> "list[Figure]":
    """Set the blocks one below the other; a table that runs on repeats its headings."""
    sheets = Sheets(frame, make_page)
    for block in (block for block in blocks if block.listing.lines):
        _set_block(sheets, block)
        if block.n_omitted():
            sheets.write([omitted(block.n_omitted())], SIZE, LEADING * SIZE)
        sheets.y -= 2 * LEADING * SIZE
    return sheets.pages if len(sheets.pages) > 1 or not sheets.untouched else []


def _set_block(sheets: Sheets, block: Block) -> None:
    """Title, words and rows; the title stays with the first row."""
    rows, width = block.rows(), sheets.frame.width
    grid = make_grid(rows, width, block.shares)
    title = break_lines(block.title, width, TITLE_SIZE, bold=True, most=MOST_TITLE)
    words = break_lines(block.words, width, SIZE, most=MOST_WORDS) if block.words else []
    above = LEADING * (len(title) * TITLE_SIZE + len(words) * SIZE) + 2 * GAP
    first = [grid.broken(row, heading=not at) for at, row in enumerate(rows[:2])]
    sheets.need(above + sum(map(grid.height, first)))
    sheets.write(title, TITLE_SIZE, LEADING * TITLE_SIZE, bold=True)
    sheets.y -= GAP
    sheets.write(words, SIZE, LEADING * SIZE)
    sheets.y -= GAP if words else 0
    set_rows(sheets, rows, grid)


def set_rows(sheets: Sheets, rows: Sequence[Sequence[str]], grid: Grid) -> None:
    """Rows with a line below each; the first are the headings, said again on every page."""
    headings = grid.broken(rows[0], heading=True)
    _set_row(sheets, headings, grid, heading=True)
    for row in rows[1:]:
        cells = grid.broken(row, heading=False)
        if sheets.need(grid.height(cells)):
            _set_row(sheets, headings, grid, heading=True)
        _set_row(sheets, cells, grid, heading=False)


def _set_row(sheets: Sheets, cells: Cells, grid: Grid, *, heading: bool) -> None:
    from matplotlib.lines import Line2D

    x, frame = 0.0, sheets.frame
    for lines, width in zip(cells, grid.widths, strict=True):
        for at, words in enumerate(lines):
            down = at * LEADING * grid.size
            sheets.put(words, x, sheets.y - down, grid.size, bold=heading)
        x += width
    sheets.y -= grid.height(cells)
    line = [(sheets.y + 0.7 * GAP) / frame.page[1]] * 2
    ends = [frame.left / frame.page[0], (frame.left + frame.width) / frame.page[0]]
    colour, thick = (INK, 0.8) if heading else (GRID, 0.5)
    sheets.page.add_artist(Line2D(ends, line, color=colour, linewidth=thick))
