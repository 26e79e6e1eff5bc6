"""The report on paper: the first screen on page 1, then missed lesions and the numbers."""

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
from matplotlib.patches import Rectangle
from PIL import Image

from lesionseg.io.files import atomic_path
from lesionseg.report.charts import ACCENT, FOUND, RC
from lesionseg.report.pictures import Card

A4 = (8.27, 11.69)
PER_PAGE = 15


def write_pdf(path: Path, values: Mapping[str, Any]) -> None:
    """Write the report's values, as its template gets them, to a PDF. Raises `OutputError`."""
    made = {"Title": values["title"], "CreationDate": None}
    with (
        rc_context({**RC, "pdf.fonttype": 42}),
        atomic_path(path) as unfinished,
        PdfPages(unfinished, metadata=made) as pdf,
    ):
        pdf.savefig(_first_page(values))
        missed = values["pictures"].get("missed", [])[: 2 * PER_PAGE]
        if len(missed) <= len(values["pictures"]["top"]):  # on page 1 already
            missed = []
        for at in range(0, len(missed), PER_PAGE):
            pdf.savefig(_picture_page("Missed lesions, largest first", missed[at:][:PER_PAGE]))
        pdf.savefig(_numbers_page(values))


def _page() -> Figure:
    return Figure(figsize=A4)


def _first_page(values: Mapping[str, Any]) -> Figure:
    page = _page()
    y = 0.985
    for name, words in values["tags"]:
        page.text(0.06, y, f"{name.upper()}: {words}", fontsize=8, fontweight="bold", va="top")
        y -= 0.013
    page.text(0.94, y, f"{values['role']}research use only", fontsize=8, ha="right", va="top")
    page.text(
        0.06,
        min(0.945, y - 0.018),
        "\n".join(wrap(values["headline"], 62)),
        fontsize=16,
        fontweight="bold",
        va="top",
    )
    for k, tile in enumerate(values["tiles"]):
        left = 0.06 + 0.225 * k
        colour = ACCENT if tile.weak else FOUND
        page.add_artist(Rectangle((left, 0.815), 0.004, 0.06, color=colour))
        page.text(left + 0.012, 0.86, tile.value, fontsize=14, fontweight="bold")
        words = "\n".join(wrap(tile.words, 27)[:3])
        page.text(left + 0.012, 0.852, words, fontsize=7.5, va="top")
    for k, chart in enumerate(values["charts"]):
        bottom = 0.535 - 0.265 * k
        page.text(0.06, bottom + 0.242, chart.title, fontsize=11, fontweight="bold", va="top")
        axes = page.add_axes((0.06, bottom + 0.014, 0.88, 0.208))
        axes.imshow(_pixels(chart.figure), aspect="equal")
        axes.set_axis_off()
        page.text(0.06, bottom + 0.008, "\n".join(wrap(chart.caption, 115)), fontsize=7.5, va="top")
    top = values["pictures"].get("top", [])
    if top:
        words = (
            "The largest lesions it missed" if values["n_missed"] > 1 else "The lesion it missed"
        )
        page.text(0.06, 0.225, words, fontsize=11, fontweight="bold")
        looks = {"": "blue", "a": "orange", "b": "white, dotted"}
        lines = [f"{looks[name]}: {words}" for name, words in values["lines"]]
        page.text(0.06, 0.213, "; ".join(lines), fontsize=7.5)
        _draw_cards(page, top, top=0.206, columns=3, height=0.115)
    page.text(
        0.06, 0.045, "\n".join(wrap("Limits. " + values["limits"], 115)), fontsize=8, va="top"
    )
    return page


def _picture_page(title: str, cards: Sequence[Card]) -> Figure:
    page = _page()
    page.text(0.06, 0.95, title, fontsize=13, fontweight="bold")
    _draw_cards(page, cards, top=0.925, columns=3, height=0.1)
    return page


def _draw_cards(
    page: Figure, cards: Sequence[Card], *, top: float, columns: int, height: float
) -> None:
    for k, card in enumerate(cards):
        row, column = divmod(k, columns)
        left, bottom = 0.06 + column * 0.295, top - (row + 1) * (height + 0.055) + 0.055
        axes = page.add_axes((left, bottom, 0.28, height))
        image = Image.open(io.BytesIO(base64.b64decode(card.uri.partition(",")[2])))
        axes.imshow(np.asarray(image))
        axes.set_anchor("NW")
        axes.set_axis_off()
        words = "\n".join(wrap(f"{card.size} · {card.case}: {card.words}", 44)[:3])
        page.text(left, bottom - 0.006, words, fontsize=7.5, va="top")


def _numbers_page(values: Mapping[str, Any]) -> Figure:
    page = _page()
    page.text(0.06, 0.95, "About this test", fontsize=13, fontweight="bold")
    y = 0.925
    for name, words in values["about"]:
        lines = wrap(words, 80) or [""]
        page.text(0.06, y, name, fontsize=8, va="top", fontweight="bold")
        page.text(0.28, y, "\n".join(lines), fontsize=8, va="top")
        y -= 0.016 * len(lines) + 0.004
    page.text(0.06, y - 0.02, "All measures", fontsize=13, fontweight="bold")
    y -= 0.04
    for name, value, more in values["measures"]:
        if y < 0.04:
            break
        page.text(0.06, y, name, fontsize=7.5, va="top")
        page.text(0.42, y, value, fontsize=7.5, va="top", ha="right")
        page.text(0.45, y, more[:75], fontsize=7.5, va="top")
        y -= 0.0145
    return page


def _pixels(figure: Figure) -> Any:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return np.asarray(Image.open(buffer))
