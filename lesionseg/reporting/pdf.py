"""The report as a PDF in A4 landscape: the first screen, the missed lesions, then the numbers."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from lesionseg import __version__
from lesionseg.io.files import atomic_path
from lesionseg.reporting.charts import ACCENT, FOUND, RC, Chart
from lesionseg.reporting.content import Pictures, ReportContent
from lesionseg.reporting.pictures import ACCEPTED, REFERENCE, Card
from lesionseg.reporting.rendering import Tile
from lesionseg.reporting.words import Measure

# lengths are in inches
WIDTH = 11.69
HEIGHT = 8.27
EDGE = 0.45
GAP = 0.28  # between two charts
WASH = "#f3f6f8"
SOFT = "#555555"
CHART = (WIDTH - 2 * EDGE - GAP) / 2  # width of a chart on page 1
CHARTS_END = 5.5  # lower end of the charts of page 1 and of their captions
TOP_SIDE = 1.62  # side of a picture on page 1
SIDE = 1.18  # side of a picture on the following pages
COLUMNS = 3  # of pictures
PER_PAGE = 12  # pictures
LINE = 0.14  # distance between two lines of a table
NAME = 31  # letters per line of a name in a table
# colour and style of an outline by its class in style.css
LINE_STYLES = {
    "reference": (REFERENCE, "-"),
    "accepted": (ACCEPTED, "--"),
    "below": ("#777777", ":"),
}


def write_pdf(path: Path, content: ReportContent) -> None:
    """Write the report to a PDF.

    Raises:
        OutputError: if the file cannot be written.
    """
    made = {
        "Title": content.title,
        "Subject": content.identity.line(),
        "Keywords": "research use only: not a medical device",
        "Creator": f"lesionseg {__version__}",
        # not the time of writing, so that equal runs give equal files
        "CreationDate": _parse_day(content.identity.evaluated),
    }
    with (
        rc_context({**RC, "pdf.fonttype": 42}),
        atomic_path(path) as unfinished,
        PdfPages(unfinished, metadata=made) as pdf,
    ):
        pdf.savefig(_first_page(content))
        missed = content.pictures.missed[: 3 * PER_PAGE]
        if len(missed) <= len(content.pictures.top):  # page 1 shows all of them
            missed = []
        for at in range(0, len(missed), PER_PAGE):
            page = _Page()
            page.text(EDGE, 0.5, "Missed lesions, largest first", 13, weight="bold")
            _draw_cards(page, missed[at:][:PER_PAGE], 0.85)
            pdf.savefig(page.figure)
        for page in _number_pages(content):
            pdf.savefig(page.figure)


def _parse_day(text: str) -> datetime | None:
    """Return the date in a text such as 2026-01-31; None if it is not a date."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return None


class _Page:
    """A page of the PDF. Positions are in inches from its upper left corner."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH, HEIGHT))

    def text(self, x: float, y: float, words: str, size: float, width: int = 0, **look: Any) -> int:
        """Write text below `y`, wrapped after `width` letters. Return the number of lines.

        `size` is in points. `look` contains further settings of `Figure.text`, such as the colour.
        """
        lines = _wrap_lines(words, width)
        for k, line in enumerate(lines):
            baseline = y + (1 + 1.35 * k) * size / 72
            self.figure.text(x / WIDTH, 1 - baseline / HEIGHT, line, fontsize=size, **look)
        return len(lines)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draw a filled rectangle."""
        corner = (x / WIDTH, 1 - (y + height) / HEIGHT)
        self.figure.add_artist(
            Rectangle(corner, width / WIDTH, height / HEIGHT, color=colour, lw=0, zorder=0)
        )

    def line(self, x: float, y: float, width: float, **look: Any) -> None:
        """Draw a horizontal line. `look` contains its settings, such as the colour."""
        xs = (x / WIDTH, (x + width) / WIDTH)
        ys = (1 - y / HEIGHT, 1 - y / HEIGHT)
        self.figure.add_artist(Line2D(xs, ys, **look))

    def image(self, x: float, y: float, width: float, height: float, pixels: Any) -> None:
        """Draw an image into the upper left corner of a rectangle."""
        axes = self.figure.add_axes(
            (x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT)
        )
        axes.imshow(pixels)
        axes.set_anchor("NW")
        axes.set_axis_off()


def _wrap_lines(words: str, width: int) -> list[str]:
    """Wrap a text after `width` letters, or return it as one line for 0."""
    words = words.replace(" %", "\N{NO-BREAK SPACE}%")
    return wrap(words, width) if width else [words]


def _first_page(content: ReportContent) -> Figure:
    """Draw the first page: headline, tiles, charts, up to three lesions, and the limitations."""
    page = _Page()
    y = _draw_header(page, content)
    _draw_tiles(page, content.tiles, y)
    y = _draw_charts(page, content.charts, y + 0.88)
    pictures = content.pictures
    if pictures.top:
        words = "Largest lesions it missed" if content.n_missed > 1 else "The lesion it missed"
        page.text(EDGE, y, words, 11, weight="bold")
        _draw_missed(page, pictures, y + 0.22)
    elif pictures.false_positives:
        words = "The false positive"
        if content.n_false_positive > 1:
            words = "The false positives with the highest rating"
        page.text(EDGE, y, words, 11, weight="bold")
        _draw_cards(page, pictures.false_positives[:COLUMNS], y + 0.24)
    page.line(EDGE, 7.66, WIDTH - 2 * EDGE, color="black", linewidth=1)
    page.text(EDGE, 7.72, "Limitations. " + content.limitations, 9, 165)
    return page.figure


def _draw_header(page: _Page, content: ReportContent) -> float:
    """Draw identity, tags and headline. Return the position of the tiles below them."""
    y = 0.2
    page.text(WIDTH - EDGE, y, f"{content.role}research use only", 8, ha="right", color=SOFT)
    page.text(EDGE, y, content.identity.line(), 8, color=SOFT)
    y += 0.24
    for name, words in content.tags:
        page.text(EDGE, y, f"{name.upper()}: {words}", 7, weight="bold", backgroundcolor="#ffdf6b")
        y += 0.2
    size = 17 if len(content.tags) < 2 else 14
    n_lines = page.text(EDGE, y + 0.04, content.headline, size, 1320 // size, weight="bold")
    return max(y + 0.04 + (0.25 + 1.35 * n_lines) * size / 72, 1.16)


def _draw_tiles(page: _Page, tiles: Sequence[Tile], y: float) -> None:
    """Draw the four numbers of the first screen next to each other."""
    width = (WIDTH - 2 * EDGE - 0.45) / 4
    for k, tile in enumerate(tiles):
        x = EDGE + k * (width + 0.15)
        page.box(x, y, width, 0.78, WASH)
        page.box(x, y, 0.045, 0.78, ACCENT if tile.weak else FOUND)
        page.text(x + 0.14, y + 0.08, tile.value, 15, weight="bold")
        page.text(x + 0.14, y + 0.39, tile.words, 8, 44, color="#444444")


def _draw_charts(page: _Page, charts: Sequence[Chart], y: float) -> float:
    """Draw two charts next to each other. Return the position below them."""
    height = CHARTS_END - 0.52 - y
    for k, chart in enumerate(charts):
        x = EDGE + k * (CHART + GAP)
        page.text(x, y, chart.title, 11, weight="bold")
        page.image(x, y + 0.24, CHART, height, _render_pixels(chart.figure))
        page.text(x, CHARTS_END - 0.25, chart.caption, 7.5, 96, color=SOFT)
    return CHARTS_END + 0.12 if charts else y + 0.16


def _draw_missed(page: _Page, pictures: Pictures, y: float) -> None:
    """Draw the largest missed lesions, with their captions and the key of the outlines."""
    for k, card in enumerate(pictures.top):
        x = EDGE + 2.97 * k
        page.image(x, y, TOP_SIDE, TOP_SIDE, _decode_picture(card))
        page.text(x + TOP_SIDE + 0.08, y, f"{card.size} · {card.case}", 8, weight="bold")
        page.text(x + TOP_SIDE + 0.08, y + 0.17, card.words, 8, 20)
    for k, (name, words) in enumerate(pictures.outlines):
        colour, style = LINE_STYLES[name]
        page.line(9.4, y + 0.08 + 0.2 * k, 0.3, color=colour, linestyle=style, linewidth=2)
        page.text(9.78, y + 0.01 + 0.2 * k, words, 8)


def _draw_cards(page: _Page, cards: Sequence[Card], top: float) -> None:
    """Draw cards of up to three planes, with their captions below."""
    for k, card in enumerate(cards):
        row, column = divmod(k, COLUMNS)
        x = EDGE + column * (3 * SIDE + 0.12)
        y = top + row * (SIDE + 0.55)
        page.image(x, y, 3 * SIDE, SIDE, _decode_picture(card))
        page.text(x, y + SIDE + 0.06, f"{card.size} · {card.case}: {card.words}", 7.5, 66)


def _number_pages(content: ReportContent) -> list[_Page]:
    """Draw two tables on as many pages as needed: the test on the left, all measures right."""
    about = [(name, "", words) for name, words in content.about]
    measures = [(one.name, one.value, _measure_text(one)) for one in content.measures]
    if note := content.measures_note:
        measures.append(("", "", note.replace("– instead of", "Without")))
    left = _place_rows("About this test", about, indent=2.2, letters=46)
    right = _place_rows("All measures", measures, indent=2.65, letters=48)
    pages = []
    for k in range(max(len(left), len(right))):
        pages.append(_Page())
        for columns, x in ((left, EDGE), (right, WIDTH / 2)):
            for row in columns[k] if k < len(columns) else ():
                row.draw(pages[-1], x)
    return pages


def _measure_text(one: Measure) -> str:
    """Return the meaning of a measure and its interval, or the reason why it has no interval."""
    if one.interval in ("", "–"):
        return one.meaning
    kind = "95 % interval" if one.interval[0] in "-0123456789" else "no interval"
    if one.value == "–":
        kind = "no value"
    return ". ".join(part for part in (one.meaning.rstrip("."), f"{kind}: {one.interval}") if part)


@dataclass(frozen=True)
class _Row:
    """A row of a table in the PDF: a name, a number to the right of it, and lines of text."""

    y: float
    name: str
    value: str
    lines: Sequence[str]
    indent: float
    is_title: bool = False

    def draw(self, page: _Page, x: float) -> None:
        """Draw the row at a distance of x inches from the left edge."""
        if self.is_title:
            page.text(x, self.y, self.name, 13, weight="bold")
            return
        for k, line in enumerate(_wrap_lines(self.name, NAME)):
            page.text(x, self.y + k * LINE, line, 7.5, weight="bold")
        page.text(x + self.indent - 0.15, self.y, self.value, 7.5, ha="right")
        for k, line in enumerate(self.lines):
            page.text(x + self.indent, self.y + k * LINE, line, 7.5, color=SOFT)


def _place_rows(
    title: str, rows: Sequence[tuple[str, str, str]], indent: float, letters: int
) -> list[list[_Row]]:
    """Place the rows of a table one below the other. Return one list of rows per page."""
    pages = [[_Row(0.5, title, "", (), indent, is_title=True)]]
    y = 0.85
    for name, value, text in rows:
        lines = _wrap_lines(text, letters) if text else []
        height = LINE * max(1, len(lines), len(_wrap_lines(name, NAME))) + 0.04
        if y + height > HEIGHT - 0.5:
            pages.append([_Row(0.5, f"{title} (continued)", "", (), indent, is_title=True)])
            y = 0.85
        pages[-1].append(_Row(y, name, value, lines, indent))
        y += height
    return pages


def _decode_picture(card: Card) -> Any:
    """Return the pixels of a card's picture."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(card.uri.partition(",")[2]))))


def _render_pixels(figure: Figure) -> Any:
    """Render a figure. Return its pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=250, facecolor="white")
    return np.asarray(Image.open(buffer))
