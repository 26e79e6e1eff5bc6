"""The sensitivity report on paper: summary, charts and pictures as A4 pages."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lesionseg.io.atomic import atomic_path
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import INK, RC
from lesionseg.report.figures.chart_list import Chart
from lesionseg.report.figures.outlines import Loop
from lesionseg.report.figures.pictures import View
from lesionseg.report.pdf.paper import Frame, Sheets, break_lines, shorten
from lesionseg.report.pdf.paper_tables import Block, make_grid, set_rows, table_pages
from lesionseg.report.sections.gallery import GalleryCard, GallerySection
from lesionseg.report.sections.table_cells import Listing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase, SubFigure

A4 = (8.27, 11.69)  # inches
LEFT, TOP, BOTTOM = 0.09, 0.94, 0.06  # of the page
REFERENCE, ACCEPTED = "#56b4e9", "#ffb000"
CARDS_PER_PAGE = 6
CARD_SHARE = 0.96  # of half the width that a picture's words and views take
FRAME = Frame(
    LEFT * A4[0] * 72,
    (1 - 2 * LEFT) * A4[0] * 72,
    TOP * A4[1] * 72,
    BOTTOM * A4[1] * 72,
    (A4[0] * 72, A4[1] * 72),
)
ABOVE_CHART = 0.32  # inches, for its title
PAPER_SCALE = 0.85  # paper is narrower than the page


@dataclass(frozen=True)
class Paragraph:
    """Words to be set: their size in points, their weight, and the space above in lines."""

    words: str
    size: float = 10.0
    bold: bool = False
    above: float = 0.35

    @property
    def leading(self) -> float:
        """From one line to the next, in points."""
        return 1.35 * self.size

    def lines(self) -> list[str]:
        """The words broken into lines of the page's width."""
        return break_lines(self.words, FRAME.width, self.size, bold=self.bold)


@dataclass(frozen=True)
class SummaryPage:
    """What the first page says."""

    title: str
    role: str
    banners: Sequence[str]
    sentences: Sequence[str]
    sizes: Listing
    blocks: Sequence[Block] = ()


def write_pdf(
    path: Path, summary: SummaryPage, charts: Sequence[Chart], gallery: Sequence[GallerySection]
) -> None:
    """Write summary, charts, six pictures a page, and tables; whole or not at all."""
    import matplotlib as mpl
    from matplotlib.backends.backend_pdf import PdfPages

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every font it embeds
    with mpl.rc_context({**RC, "pdf.fonttype": 42}), atomic_path(path) as temporary:
        about = {"Title": summary.title, "CreationDate": None}
        with PdfPages(temporary, metadata=about) as pdf:
            pages = [*_first_pages(summary), *_chart_pages(charts), *_picture_pages(gallery)]
            pages += table_pages(summary.blocks, FRAME, _page, text.omitted)
            for number, page in enumerate(pages, start=1):
                foot = f"{text.LIMITS[-1]}    {number}/{len(pages)}"
                page.text(LEFT, BOTTOM / 2, foot, size=8, color=INK)
                pdf.savefig(page)


def _page(layout: Literal["constrained"] | None = None) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=A4, layout=layout)


def _first_pages(summary: SummaryPage) -> "list[Figure]":
    """The first screen: one page, unless there is more to say than it holds."""
    sheets = Sheets(FRAME, _page)
    paragraphs = [
        Paragraph(f"{text.SUBTITLE} · {summary.role}", above=0),
        Paragraph(summary.title, 17, bold=True),
        *(Paragraph(banner, bold=True, above=0.8) for banner in summary.banners),
        Paragraph(summary.sentences[0], 13, bold=True, above=1),
        *(Paragraph(sentence) for sentence in summary.sentences[1:]),
    ]
    _set(sheets, paragraphs)
    if summary.sizes.lines:
        _set_sizes(sheets, summary.sizes)
    sheets.need(70)  # the title stays with the first of them
    limits = [Paragraph(text.LIMITS_TITLE, 11, bold=True, above=1.5)]
    _set(sheets, limits + [Paragraph(f"•  {limit}") for limit in text.LIMITS])
    return sheets.pages


def _set(sheets: Sheets, paragraphs: Sequence[Paragraph]) -> None:
    for paragraph in paragraphs:
        sheets.y -= paragraph.above * paragraph.leading
        sheets.write(paragraph.lines(), paragraph.size, paragraph.leading, bold=paragraph.bold)


def _set_sizes(sheets: Sheets, sizes: Listing) -> None:
    """The table of sizes, its note below."""
    rows = Block("", sizes).rows()
    grid = make_grid(rows, FRAME.width, size=10)
    sheets.y -= 25
    sheets.need(2 * grid.height(grid.broken(rows[0], heading=True)))
    set_rows(sheets, rows, grid)
    if sizes.note:
        _set(sheets, [Paragraph(sizes.note, 9)])


def _chart_pages(charts: Sequence[Chart]) -> "Iterator[Figure]":
    """Charts one below the other under their titles, as many a page as fit."""
    for shown in _fill_pages(charts):
        page = _page(layout="constrained")
        inches = [_inches(chart) for chart in shown]
        rest = max((TOP - BOTTOM) * A4[1] - sum(inches), 0.01)
        for part, chart in zip(_divide(_body(page), [*inches, rest]), shown, strict=False):
            _chart(part, chart)
        yield page


def _inches(chart: Chart) -> float:
    """What a chart takes of a page: its title, itself a little smaller, and its caption."""
    return ABOVE_CHART + PAPER_SCALE * chart.height + _caption_inches(chart)


def _caption_inches(chart: Chart) -> float:
    return (len(Paragraph(chart.caption, 9).lines()) * 1.35 * 9 + 22) / 72


def _fill_pages(charts: Sequence[Chart]) -> "Iterator[list[Chart]]":
    page: list[Chart] = []
    for chart in charts:
        if page and sum(map(_inches, [*page, chart])) > (TOP - BOTTOM) * A4[1]:
            yield page
            page = []
        page.append(chart)
    if page:
        yield page


def _chart(part: "SubFigure", chart: Chart) -> None:
    heights = ABOVE_CHART, PAPER_SCALE * chart.height, _caption_inches(chart)
    above, drawn, below = _divide(part, heights)
    title = shorten(chart.title, FRAME.width, 11, bold=True)
    above.text(0, 0.3, title, size=11, weight="bold", va="bottom", color=INK)
    chart.draw(drawn)
    caption = "\n".join(Paragraph(chart.caption, 9).lines())
    below.text(0, 0.98, caption, size=9, va="top", color=INK, linespacing=1.35)


def _picture_pages(gallery: Sequence[GallerySection]) -> "Iterator[Figure]":
    for section in gallery:
        for first in range(0, len(section.cards), CARDS_PER_PAGE):
            sheets = Sheets(replace(FRAME, top=FRAME.top + 17), _page)
            heading = [Paragraph(section.title, 13, bold=True), Paragraph(section.sentence)]
            key = f"{text.KEY_REFERENCE}; {text.KEY_PREDICTION}"
            _set(sheets, [*heading, Paragraph(key, 9)])
            top = (sheets.y - 8) / FRAME.page[1]
            places = _divide(_body(sheets.page, top), (1, 1, 1), (1, 1))
            cards = section.cards[first : first + CARDS_PER_PAGE]
            for place, card in zip(places, cards, strict=False):
                _card(place, card)
            yield sheets.page


def _body(page: "Figure", top: float = TOP) -> "SubFigure":
    """The part of a page inside its margins, below `top`."""
    heights, widths = (1 - top, top - BOTTOM, BOTTOM), (LEFT, 1 - 2 * LEFT, LEFT)
    return _divide(page, heights, widths)[4]


def _divide(
    onto: "FigureBase", heights: Sequence[float], widths: Sequence[float] = (1.0,)
) -> "list[SubFigure]":
    """Parts of the given shares, row by row."""
    shape = len(heights), len(widths)
    parts = onto.subfigures(*shape, height_ratios=heights, width_ratios=widths, squeeze=False)
    return list(np.ravel(np.asarray(parts)))


def _card_lines(words: str) -> list[str]:
    return break_lines(words, CARD_SHARE * FRAME.width / 2, 8, most=4)


def _card(part: "SubFigure", card: GalleryCard) -> None:
    case = shorten(card.case, 0.8 * CARD_SHARE * FRAME.width / 2, 8)
    words = _card_lines(f"{case}, {card.name} · {card.caption}")
    part.text(0, 0.99, "\n".join(words), size=8, va="top", color=INK)
    if not card.views:
        note = "\n".join(_card_lines(text.no_picture(card.note)))
        part.text(0, 0.75, note, size=8, va="top", color=INK)
        return
    wide = len(card.views) == 2
    ratios = (1, 1) if wide else (2, 1)
    rooms = [0.95 * CARD_SHARE * FRAME.width / 2 * ratio / sum(ratios) for ratio in ratios]
    titles = [_view_title(v, room) for v, room in zip(card.views, (*rooms, rooms[1]), strict=False)]
    top = 0.985 - 0.045 * len(words) - 0.035 * max(map(len, titles[:2]))
    grid = part.add_gridspec(
        *(2, 2), width_ratios=ratios, left=0, right=CARD_SHARE, top=top, bottom=0.04, wspace=0.05
    )
    places = (grid[:, 0], grid[:, 1]) if wide else (grid[:, 0], grid[0, 1], grid[1, 1])
    for view, title, place in zip(card.views, titles, places, strict=True):
        axes = part.add_subplot(place)
        axes.set_title("\n".join(title), size=7, color=INK, loc="left")
        _view(axes, view)


def _view_title(view: View, width: float) -> list[str]:
    """The plane and what lies where in it, in lines of so many points."""
    said = f"{view.plane} ({view.left} left, {view.top} up)" if view.left else view.plane
    return break_lines(said, width, 7)


def _view(axes: "Axes", view: View) -> None:
    extent = (0.0, view.width_mm, view.height_mm, 0.0)
    axes.imshow(view.image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bilinear")
    axes.set_anchor("NW")
    axes.set_axis_off()
    _outline(axes, view, view.reference, REFERENCE, "-")
    _outline(axes, view, view.accepted, ACCEPTED, "--")
    if view.frame is not None:
        x, y, width, height = view.frame
        corners = (x, x + width, x + width, x, x), (y, y, y + height, y + height, y)
        axes.plot(*corners, color="white", linewidth=1)
    if view.centre is not None:
        _tick_marks(axes, view, view.centre)


def _outline(axes: "Axes", view: View, loops: Sequence[Loop], colour: str, style: str) -> None:
    height, width = view.pixel_mm
    for loop in loops:
        closed = [*loop, loop[0]]
        x, y = [p[0] * width for p in closed], [p[1] * height for p in closed]
        axes.plot(x, y, color=colour, linestyle=style, linewidth=0.9)


def _tick_marks(axes: "Axes", view: View, centre: tuple[float, float]) -> None:
    (x, y), length = centre, 0.06 * view.height_mm
    axes.plot((x, x), (view.height_mm - length, view.height_mm), color="white", linewidth=1.2)
    axes.plot((view.width_mm - length, view.width_mm), (y, y), color="white", linewidth=1.2)
    axes.set(xlim=(0, view.width_mm), ylim=(view.height_mm, 0))
