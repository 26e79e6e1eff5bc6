"""The report on paper, A4 across: the first screen, then missed lesions, then the numbers."""

import base64
import io
from collections.abc import Mapping, Sequence
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

from lesionseg.io.files import atomic_path
from lesionseg.report.charts import ACCENT, FOUND, RC
from lesionseg.report.pictures import ACCEPTED, REFERENCE, Card

WIDTH, HEIGHT, EDGE = 11.69, 8.27, 0.45  # inches
GAP, WASH, SOFT = 0.28, "#f3f6f8", "#555555"
CHART = ((WIDTH - 2 * EDGE - GAP) / 2, 2.74)  # width and height of a chart on page 1
TOP_SIDE, SIDE, COLUMNS, PER_PAGE = 1.62, 1.18, 3, 12  # of a picture on page 1 and on the others
LINE = 0.152  # of a table


def write_pdf(path: Path, values: Mapping[str, Any]) -> None:
    """Write the report's values, as its template gets them, to a PDF. Raises `OutputError`."""
    made = {"Title": values["title"], "CreationDate": None}
    with (
        rc_context({**RC, "pdf.fonttype": 42}),
        atomic_path(path) as unfinished,
        PdfPages(unfinished, metadata=made) as pdf,
    ):
        pdf.savefig(_first_page(values))
        missed = values["pictures"].get("missed", [])[: 3 * PER_PAGE]
        if len(missed) <= len(values["pictures"]["top"]):  # on page 1 already
            missed = []
        for at in range(0, len(missed), PER_PAGE):
            page = _Page()
            page.text(EDGE, 0.5, "Missed lesions, largest first", 13, weight="bold")
            _draw_cards(page, missed[at:][:PER_PAGE], 0.85)
            pdf.savefig(page.figure)
        for page in _number_pages(values):
            pdf.savefig(page.figure)


class _Page:
    """An empty page; places are inches from its upper left corner."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH, HEIGHT))

    def text(self, x: float, y: float, words: str, size: float, width: int = 0, **look: Any) -> int:
        """Write under `y`, wrapped at `width` letters; returns the number of lines."""
        lines = _lines(words, width)
        for k, line in enumerate(lines):  # by the baseline, which is equal for all letters
            below = y + (1 + 1.35 * k) * size / 72
            self.figure.text(x / WIDTH, 1 - below / HEIGHT, line, fontsize=size, **look)
        return len(lines)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        corner = (x / WIDTH, 1 - (y + height) / HEIGHT)
        self.figure.add_artist(
            Rectangle(corner, width / WIDTH, height / HEIGHT, color=colour, lw=0, zorder=0)
        )

    def line(self, x: float, y: float, width: float, **look: Any) -> None:
        ends = (x / WIDTH, (x + width) / WIDTH), (1 - y / HEIGHT,) * 2
        self.figure.add_artist(Line2D(*ends, **look))

    def image(self, x: float, y: float, width: float, height: float, pixels: Any) -> None:
        axes = self.figure.add_axes(
            (x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT)
        )
        axes.imshow(pixels)
        axes.set_anchor("NW")
        axes.set_axis_off()


def _lines(words: str, width: int) -> list[str]:
    words = words.replace(" %", "\N{NO-BREAK SPACE}%")
    return wrap(words, width) if width else [words]


def _first_page(values: Mapping[str, Any]) -> Figure:
    page, y = _Page(), 0.22
    page.text(WIDTH - EDGE, y, f"{values['role']}research use only", 8, ha="right", color=SOFT)
    for name, words in values["tags"]:
        page.text(EDGE, y, f"{name.upper()}: {words}", 7, weight="bold", backgroundcolor="#ffdf6b")
        y += 0.2
    page.text(EDGE, max(y, 0.48), values["headline"], 17, 78, weight="bold")
    y, width = 1.26, (WIDTH - 2 * EDGE - 0.45) / 4
    for k, tile in enumerate(values["tiles"]):
        x = EDGE + k * (width + 0.15)
        page.box(x, y, width, 0.78, WASH)
        page.box(x, y, 0.045, 0.78, ACCENT if tile.weak else FOUND)
        page.text(x + 0.14, y + 0.08, tile.value, 15, weight="bold")
        page.text(x + 0.14, y + 0.39, tile.words, 8, 44, color="#444444")
    for k, chart in enumerate(values["charts"]):
        x, y = EDGE + k * (CHART[0] + GAP), 2.14
        page.text(x, y, chart.title, 11, weight="bold")
        page.image(x, y + 0.24, *CHART, _pixels(chart.figure))
        page.text(x, y + 0.28 + CHART[1], chart.caption, 7.5, 96, color=SOFT)
    y = 5.6 if values["charts"] else 2.3
    if top := values["pictures"]["top"]:
        words = "Large lesions it missed" if values["n_missed"] > 1 else "The lesion it missed"
        page.text(EDGE, y, words, 11, weight="bold")
        for k, card in enumerate(top):
            x = EDGE + 2.97 * k
            page.image(x, y + 0.22, TOP_SIDE, TOP_SIDE, _picture(card))
            page.text(x + TOP_SIDE + 0.08, y + 0.22, f"{card.size} · {card.case}", 8, weight="bold")
            page.text(x + TOP_SIDE + 0.08, y + 0.39, card.words, 8, 20)
        looks = {"": (REFERENCE, "-"), "a": (ACCEPTED, "--"), "b": ("#777777", ":")}
        for k, (name, words) in enumerate(values["lines"]):
            colour, style = looks[name]
            page.line(9.4, y + 0.3 + 0.2 * k, 0.3, color=colour, linestyle=style, linewidth=2)
            page.text(9.78, y + 0.23 + 0.2 * k, words, 8)
    elif false := values["pictures"]["false"]:
        title = "The highest rated false alarms" if values["n_false"] > 1 else "The false alarm"
        page.text(EDGE, y, title, 11, weight="bold")
        _draw_cards(page, false[:COLUMNS], y + 0.24)
    page.line(EDGE, 7.66, WIDTH - 2 * EDGE, color="black", linewidth=1)
    page.text(EDGE, 7.72, "Limits. " + values["limits"], 9, 165)
    return page.figure


def _draw_cards(page: _Page, cards: Sequence[Card], top: float) -> None:
    """Cards of up to three planes, with their words below."""
    for k, card in enumerate(cards):
        row, column = divmod(k, COLUMNS)
        x, y = EDGE + column * (3 * SIDE + 0.12), top + row * (SIDE + 0.55)
        page.image(x, y, 3 * SIDE, SIDE, _picture(card))
        page.text(x, y + SIDE + 0.06, f"{card.size} · {card.case}: {card.words}", 8, 62)


def _number_pages(values: Mapping[str, Any]) -> list[_Page]:
    """What was tested on the left, all measures on the right, on as many pages as they need."""
    page, middle, y = _Page(), WIDTH / 2, 0.85
    pages = [page]
    page.text(EDGE, 0.5, "About this test", 13, weight="bold")
    for name, words in values["about"]:
        for k, line in enumerate(_lines(words, 64)):
            if y > HEIGHT - 0.7:
                page, y = _Page(), 0.85
                pages.append(page)
            if k == 0:
                page.text(EDGE, y, name, 8, weight="bold")
            page.text(EDGE + 1.25, y, line, 8)
            y += LINE
        y += 0.05
    page.text(middle, 0.5, "All measures", 13, weight="bold")
    x, y = middle, 0.85
    for name, value, more in values["measures"]:
        if y > HEIGHT - 0.7:
            if x == middle:
                page = _Page()
                pages.append(page)
            x, y = EDGE if x == middle else middle, 0.85
        page.text(x, y, name, 7.5)
        page.text(x + 2.5, y, value, 7.5, ha="right")
        y += LINE * max(1, page.text(x + 2.65, y, more, 7.5, 50, color=SOFT))
    return pages


def _picture(card: Card) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(card.uri.partition(",")[2]))))


def _pixels(figure: Figure) -> Any:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=250, facecolor="white")
    return np.asarray(Image.open(buffer))
