"""The report as a PDF in A4 landscape: the first screen, the missed lesions, then the numbers."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from lesionseg.io.files import atomic_path
from lesionseg.reporting.charts import ACCENT, FOUND, RC, Chart
from lesionseg.reporting.content import Pictures, ReportContent
from lesionseg.reporting.films import Film, FilmBox, FilmTag
from lesionseg.reporting.pictures import ACCEPTED, BELOW, REFERENCE, Card
from lesionseg.reporting.rendering import Tile, cell
from lesionseg.version import __version__

# lengths are in inches
WIDTH = 11.69
HEIGHT = 8.27
EDGE = 0.45
GAP = 0.28  # between two charts
WASH = "#f3f6f8"
SOFT = "#555555"
WARNING = "#b34700"  # a darker ACCENT, for text
CHART = (WIDTH - 2 * EDGE - GAP) / 2  # width of a chart on page 1
CHARTS_END = 5.5  # lower end of the charts of page 1 and of their captions
CHART_TITLE = 0.24  # height of the title above a chart
CHART_CAPTION = 0.25  # height of a caption of two lines, which is the usual one
CHART_GAP = 0.03  # between a chart and its caption
CHART_WORDS = 7.5  # size of a caption in points
LINE_SPACING = 1.35  # distance between two lines of a text, in font sizes
POINTS = 72  # per inch
TOP_SIDE = 1.62  # side of a picture on page 1
TOP_FILM_SIDE = 1.52  # side of a whole image on page 1, with room for the key below it
SIDE = 1.18  # side of a picture on the following pages
COLUMNS = 3  # of pictures
PER_PAGE = 12  # pictures
CAPTION = 96  # letters per line of the caption of a chart
KEY = 4.6  # distance of the key of outlines from the left edge of page 1
MOST_CASES = 200  # in the table of scans
MOST_LETTERS = 60  # of a line of a cell
LINE = 0.14  # distance between two lines of a table
LEAST_ROOM = 1.2  # with less room below it, a row of a table is drawn on the next page
# colour and style of an outline by its class in style.css
LINE_STYLES = {
    "reference": (REFERENCE, "-"),
    "accepted": (ACCEPTED, "--"),
    "below": ("#777777", ":"),
}
FILM_STYLES = {**LINE_STYLES, "below": (BELOW, ":")}  # on a dark image
FILM_COLUMNS = 3  # of whole images on a page
FILM_ROWS = 2
FILM_CAPTION = 0.72  # height of the caption below a whole image
# order of drawing in a whole image: dark edges below the lines of all boxes, texts above them
EDGE_ORDER = 2
LINE_ORDER = 3
TEXT_ORDER = 5
LEAST_TEXT = 5.0  # least size of the text in a whole image, in points
LETTER = 0.062  # mean width of a letter of 8 points


def write_pdf(path: Path, content: ReportContent) -> None:
    """Write the report to a PDF atomically.

    Missed lesions have at most three pages and false positives one. They have none if the first
    page shows all of them.

    Raises:
        OutputError: if the file cannot be written.
    """
    made = {
        "Title": content.title,
        "Subject": content.identity_line,
        "Keywords": "research use only: not a medical device",
        "Creator": f"lesionseg {__version__}",
        # not the time of writing, so that equal runs give equal files
        "CreationDate": _parse_day(content.identity.date),
    }
    with (
        rc_context({**RC, "pdf.fonttype": 42}),
        atomic_path(path) as unfinished,
        PdfPages(unfinished, metadata=made) as pdf,
    ):
        pdf.savefig(_first_page(content))
        for page in _film_pages(content.pictures):
            pdf.savefig(page.figure)
        pictures = content.pictures
        missed = pictures.missed[: 3 * PER_PAGE]
        if pictures.films or len(missed) > len(pictures.top):
            title = "Missed lesions, largest first"
            for page in _card_pages(title, missed, content.n_missed, pictures):
                pdf.savefig(page.figure)
        false = pictures.false_positives[:PER_PAGE]
        if pictures.films or pictures.top or len(false) > COLUMNS:
            title = "False positives, highest rating first"
            for page in _card_pages(title, false, content.n_false_positive, pictures):
                pdf.savefig(page.figure)
        for page in [*_case_pages(content.case_rows), *_number_pages(content)]:
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

        A `width` of 0 does not wrap it. `size` is in points. `look` contains further settings of
        `Figure.text`, such as the colour.
        """
        lines = _wrap_lines(words, width)
        for k, line in enumerate(lines):
            baseline = y + (1 + LINE_SPACING * k) * size / POINTS
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

    def add_axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add invisible axes that fill a rectangle, and return them."""
        axes = self.figure.add_axes(
            (x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT)
        )
        axes.set_axis_off()
        return axes

    def image(self, x: float, y: float, width: float, height: float, pixels: Any) -> None:
        """Draw an image into the upper left corner of a rectangle, as large as it fits."""
        axes = self.add_axes(x, y, width, height)
        axes.imshow(pixels)
        axes.set_anchor("NW")


def _wrap_lines(words: str, width: int) -> list[str]:
    """Wrap a text after `width` letters, or return it as one line for 0.

    A number stays on one line with its per cent sign.
    """
    words = words.replace(" %", "\N{NO-BREAK SPACE}%")
    return wrap(words, width) if width else [words]


def _first_page(content: ReportContent) -> Figure:
    """Draw the first page: headline, tiles, charts, whole images or lesions, and limitations."""
    page = _Page()
    y = _draw_header(page, content)
    _draw_tiles(page, content.tiles, y)
    if content.basis is not None:
        colour = WARNING if content.basis.is_weak else SOFT
        page.text(EDGE, y + 0.83, content.basis.words, 8, color=colour)
        y += 0.2
    y = _draw_charts(page, content.charts, y + 0.88)
    pictures = content.pictures
    if pictures.films or pictures.top or pictures.false_positives:
        page.text(EDGE, y, content.top_title, 11, weight="bold")
    if pictures.films:
        step = (WIDTH - 2 * EDGE + GAP) / content.n_films_on_top
        for k, film in enumerate(pictures.films[: content.n_films_on_top]):
            x = EDGE + k * step
            _draw_film(page, film, x, y + 0.22, TOP_FILM_SIDE, TOP_FILM_SIDE)
            x += TOP_FILM_SIDE + 0.08
            page.text(x, y + 0.22, film.case, 8, weight="bold")
            page.text(x, y + 0.39, film.words, 7.5, 30)
        _draw_film_key(page, pictures, y + 0.27 + TOP_FILM_SIDE, in_one_row=True)
    else:
        _draw_outline_key(page, pictures.outlines, KEY, y + 0.03)
        _draw_missed(page, pictures, y + 0.22)
        if not pictures.top:
            _draw_cards(page, pictures.false_positives[:COLUMNS], y + 0.24)
    page.line(EDGE, 7.66, WIDTH - 2 * EDGE, color="black", linewidth=1)
    page.text(EDGE, 7.72, "Limitations. " + content.limitations, 9, 165)
    return page.figure


def _draw_header(page: _Page, content: ReportContent) -> float:
    """Draw identity, tags and headline. Return the position of the tiles below them."""
    y = 0.2
    page.text(WIDTH - EDGE, y, f"{content.role}research use only", 8, ha="right", color=SOFT)
    page.text(EDGE, y, content.identity_line, 8, color=SOFT)
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
    """Draw two charts next to each other, if there are any. Return the position below them.

    Title, chart and caption fill the page from `y` to `CHARTS_END`. A caption of more than two
    lines takes its room from the chart, so that the content below stays in its place.
    """
    if not charts:
        return y + 0.16
    n_lines = max(len(_wrap_lines(chart.caption, CAPTION)) for chart in charts)
    further_lines = max(0, n_lines - 2) * LINE_SPACING * CHART_WORDS / POINTS
    caption_y = CHARTS_END - CHART_CAPTION - further_lines
    chart_y = y + CHART_TITLE
    height = caption_y - CHART_GAP - chart_y
    for k, chart in enumerate(charts):
        x = EDGE + k * (CHART + GAP)
        page.text(x, y, chart.title, 11, weight="bold")
        page.image(x, chart_y, CHART, height, _render_pixels(chart.figure))
        page.text(x, caption_y, chart.caption, CHART_WORDS, CAPTION, color=SOFT)
    return CHARTS_END + 0.12


def _draw_missed(page: _Page, pictures: Pictures, y: float) -> None:
    """Draw the largest missed lesions, with their captions."""
    for k, card in enumerate(pictures.top):
        x = EDGE + 2.97 * k
        page.image(x, y, TOP_SIDE, TOP_SIDE, _decode_picture(card.uri))
        page.text(x + TOP_SIDE + 0.08, y, f"{card.size} · {card.case}", 8, weight="bold")
        page.text(x + TOP_SIDE + 0.08, y + 0.17, card.words, 8, 20)


def _draw_cards(page: _Page, cards: Sequence[Card], top: float) -> None:
    """Draw cards of up to three planes, with their captions below."""
    for k, card in enumerate(cards):
        row, column = divmod(k, COLUMNS)
        x = EDGE + column * (3 * SIDE + 0.12)
        y = top + row * (SIDE + 0.55)
        page.image(x, y, 3 * SIDE, SIDE, _decode_picture(card.uri))
        page.text(x, y + SIDE + 0.06, f"{card.size} · {card.case}: {card.words}", 7.5, 66)


def _card_pages(
    title: str, cards: Sequence[Card], n_in_all: int, pictures: Pictures
) -> Iterator[_Page]:
    """Yield pages of cards with the key of their outlines. The title states how many are shown."""
    if len(cards) < n_in_all:
        title += f" ({len(cards)} of {n_in_all})"
    for at in range(0, len(cards), PER_PAGE):
        page = _Page()
        page.text(EDGE, 0.4, title, 13, weight="bold")
        _draw_outline_key(page, pictures.outlines, EDGE, 0.68)
        _draw_cards(page, cards[at:][:PER_PAGE], 0.92)
        yield page


def _draw_outline_key(
    page: _Page, outlines: Sequence[tuple[str, str]], x: float, y: float
) -> float:
    """Draw the key of outlines in one row from `x` on. Return its right end."""
    for name, words in outlines:
        colour, style = LINE_STYLES[name]
        page.line(x, y + 0.08, 0.3, color=colour, linestyle=style, linewidth=2)
        page.text(x + 0.36, y, words, 8)
        x += 0.6 + LETTER * len(words)
    return x


def _film_pages(pictures: Pictures) -> list[_Page]:
    """Draw the whole images with their captions, and the key of boxes and labels above them."""
    pages = []
    per_page = FILM_COLUMNS * FILM_ROWS
    for start in range(0, len(pictures.films), per_page):
        page = _Page()
        page.text(EDGE, 0.4, "Whole images", 13, weight="bold")
        top = _draw_film_key(page, pictures, 0.72) + 0.08
        height = (HEIGHT - 0.25 - top) / FILM_ROWS
        width = (WIDTH - 2 * EDGE + GAP) / FILM_COLUMNS
        for k, film in enumerate(pictures.films[start : start + per_page]):
            row, column = divmod(k, FILM_COLUMNS)
            x = EDGE + column * width
            y = top + row * height
            low = _draw_film(page, film, x, y, width - GAP, height - FILM_CAPTION)
            page.text(x, low + 0.05, f"{film.case}: {film.words}", 7.5, 68)
        pages.append(page)
    return pages


def _draw_film(page: _Page, film: Film, x: float, y: float, width: float, height: float) -> float:
    """Draw a whole image with its boxes and their texts, as large as fits a rectangle.

    `x` and `y` are the upper left corner of both. Lengths are in inches. Return the position of the
    image's lower edge.
    """
    width = min(width, height * film.aspect)
    height = width / film.aspect
    axes = page.add_axes(x, y, width, height)
    axes.imshow(
        _decode_picture(film.uri),
        cmap="gray",
        extent=(0, film.width, film.height, 0),
        aspect="auto",
    )
    inches_per_pixel = width / film.width
    points = max(72 * film.text_size * inches_per_pixel, LEAST_TEXT)
    for box in film.boxes:
        _draw_film_box(axes, box)
    for tag in film.tags():
        _draw_film_text(axes, tag, points)
    axes.set_xlim(0, film.width)
    axes.set_ylim(film.height, 0)
    return y + height


def _draw_film_box(axes: Axes, box: FilmBox) -> None:
    """Draw a box in the style of its kind, thick if it is an error.

    A dark edge below the line keeps it visible in bright images.
    """
    colour, style = FILM_STYLES[box.kind]
    thickness = 1.6 if box.is_error else 0.8
    # colour, style, thickness and order of drawing of the edge and of the line
    looks = (("black", "-", thickness + 1.0, EDGE_ORDER), (colour, style, thickness, LINE_ORDER))
    for edgecolor, linestyle, linewidth, zorder in looks:
        axes.add_patch(
            Rectangle(
                (box.x, box.y),
                box.width,
                box.height,
                fill=False,
                edgecolor=edgecolor,
                linestyle=linestyle,
                linewidth=linewidth,
                zorder=zorder,
            )
        )


def _draw_film_text(axes: Axes, tag: FilmTag, points: float) -> None:
    """Write the text of a box at its place, or directly above the box if its place is above.

    `points` is the size of the text.
    """
    box = tag.box
    is_above = tag.top < box.y
    colour, _ = FILM_STYLES[box.kind]
    axes.text(
        tag.left,
        box.y if is_above else tag.top,
        box.text,
        fontsize=points,
        weight="bold",
        va="bottom" if is_above else "top",
        clip_on=True,
        zorder=TEXT_ORDER,
        bbox={
            "facecolor": box.label.colour if box.label else colour,
            "edgecolor": "none",
            "pad": 0.6,
        },
    )


def _draw_film_key(page: _Page, pictures: Pictures, y: float, *, in_one_row: bool = False) -> float:
    """Draw the styles of boxes and the letters of labels. Return the lower edge.

    If all must be in one row and the labels do not fit, a note that refers to the next page
    replaces them.
    """
    x = _draw_outline_key(page, pictures.film_outlines, EDGE, y)
    errors = "thick: missed lesion or false positive"
    page.text(x, y, errors, 8)
    widths = [0.44 + LETTER * len(label.name) for label in pictures.labels]
    x += 0.24 + LETTER * len(errors)
    if in_one_row and x + sum(widths) > WIDTH - EDGE:
        page.text(x, y, "letters: labels, see the next page", 8)
        return y + 0.2
    for label, width in zip(pictures.labels, widths, strict=True):
        if x + width > WIDTH - EDGE:
            x = EDGE
            y += 0.2
        page.box(x - 0.01, y - 0.02, 0.22, 0.18, SOFT)  # a border, as one of the colours is white
        page.box(x, y - 0.01, 0.2, 0.16, label.colour)
        page.text(x + 0.1, y, label.letter, 8, ha="center", weight="bold")
        page.text(x + 0.26, y, label.name, 8)
        x += width
    return y + 0.22


def _case_pages(rows: Sequence[Mapping[str, Any]]) -> list[_Page]:
    """Draw the table of the first `MOST_CASES` scans; no page without scans."""
    if not rows:
        return []
    title = "Patient by patient" if "patient" in rows[0] else "Scan by scan"
    if len(rows) > MOST_CASES:
        title += f" (the first {MOST_CASES} of {len(rows)})"
    cells = [[cell(value) for value in row.values()] for row in rows[:MOST_CASES]]
    return _table_pages(title, list(rows[0]), cells)


def _number_pages(content: ReportContent) -> list[_Page]:
    """Draw the tables of both programs, of the test and of all measures."""
    measures = [(one.name, one.value, one.interval, one.meaning) for one in content.measures]
    if content.measures_note:
        measures.append(("", "", content.measures_note, ""))
    header = ("measure", "value", "95 % interval, or why there is none", "meaning")
    compared = content.comparison or [()]
    return [
        *_table_pages("Comparison of two programs", compared[0], compared[1:]),
        *_table_pages("About this test", ("", ""), content.about, widest=120),
        *_table_pages("All measures", header, measures),
    ]


def _table_pages(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    widest: int = MOST_LETTERS,
) -> list[_Page]:
    """Draw a table on as many pages as needed; none without rows.

    Cells are wrapped after `widest` letters.
    """
    letters = [min(max(map(len, column)), widest) for column in zip(header, *rows, strict=True)]
    pages: list[_Page] = []
    y = HEIGHT
    for row in rows:
        if y > HEIGHT - LEAST_ROOM:
            page = _Page()
            page.text(EDGE, 0.4, title, 13, weight="bold")
            y = 0.72 + _draw_row(page, header, letters, 0.72, weight="bold")
            pages.append(page)
        y += _draw_row(pages[-1], row, letters, y)
    return pages


def _draw_row(
    page: _Page, cells: Sequence[str], letters: Sequence[int], y: float, weight: str = "normal"
) -> float:
    """Draw the cells of a row next to each other. Return the height of the row.

    `letters` is the width of each column.
    """
    x = EDGE
    n_lines = 1
    for text, width in zip(cells, letters, strict=True):
        n_lines = max(n_lines, page.text(x, y, text, 7.5, max(width, 1), weight=weight))
        x += LETTER * (width + 2)
    return LINE * n_lines + 0.04


def _decode_picture(uri: str) -> Any:
    """Return the pixels of a picture in a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def _render_pixels(figure: Figure) -> Any:
    """Render a figure. Return its pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=250, facecolor="white")
    return np.asarray(Image.open(buffer))
