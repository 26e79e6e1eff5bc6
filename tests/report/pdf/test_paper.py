"""No word outside its page and none over another, in whatever font there is.

The words are taken where matplotlib writes them into the PDF: tables, captions, footers, legends
and tick labels alike, with the widths of the font that is embedded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.report import write
from lesionseg.report.figures import chart_drawing as figures
from lesionseg.report.pdf.document import SummaryPage, write_pdf
from lesionseg.report.pdf.paper import break_lines, shorten, width_of
from lesionseg.report.pdf.paper_tables import make_grid
from lesionseg.report.sections.gallery_choice import Limits
from lesionseg.report.sections.table_cells import Listing, TableCell
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Evaluation
from tests.report.inputs.test_score_details import ALL, subgroup

FONTS = ["DejaVu Sans", "DejaVu Sans Mono"]
LONG = "unbroken_" * 30
WORDY = "a name of many words that nobody would give " * 5
WIDTH, HEIGHT = 8.27 * 72, 11.69 * 72
SLACK = 1.0  # points: letters may touch


@dataclass(frozen=True)
class Word:
    """A string as the PDF has it: its page, and its box in points from the lower left."""

    page: int
    words: str
    box: tuple[float, float, float, float]


Write = Callable[[], object]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[Write], list[Word]]:
    """Everything that a call writes into PDF files."""
    from matplotlib.backends.backend_pdf import RendererPdf

    found: list[Word] = []
    draw = RendererPdf.draw_text

    def record(
        self: Any,
        gc: Any,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        *args: Any,
        **kw: Any,
    ) -> None:
        width, height, descent = self.get_text_width_height_descent(s, prop, False)
        corners = np.array([(a, b - descent) for a in (0, width) for b in (0, height)])
        turn = np.deg2rad(angle)
        turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        low, high = turned.min(axis=0) + np.array((x, y)), turned.max(axis=0) + np.array((x, y))
        found.append(Word(len(self.file.pageList), s, (*low.tolist(), *high.tolist())))
        draw(self, gc, x, y, s, prop, angle, *args, **kw)

    monkeypatch.setattr(RendererPdf, "draw_text", record)

    def words(write: Write) -> list[Word]:
        write()
        return [word for word in found if word.words.strip()]

    return words


def outside(words: list[Word]) -> list[Word]:
    """Those that are not wholly on the page."""
    inside = (0, 0, WIDTH, HEIGHT)
    return [
        w
        for w in words
        if any(np.array(w.box[:2]) < inside[:2]) or any(np.array(w.box[2:]) > inside[2:])
    ]


def overlapping(words: list[Word]) -> list[tuple[str, str]]:
    """Pairs of strings that lie one over the other."""
    return [
        (one.words, other.words)
        for one, other in combinations(words, 2)
        if one.page == other.page
        and all(
            one.box[k] + SLACK < other.box[k + 2] and other.box[k] + SLACK < one.box[k + 2]
            for k in (0, 1)
        )
    ]


@pytest.fixture(params=FONTS)
def font(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only font there is."""
    monkeypatch.setitem(figures.RC, "font.sans-serif", [request.param])
    return str(request.param)


def report_of(evaluation: Evaluation, folder: Path, monkeypatch: Any, options: Options) -> Write:
    """Write the PDF with pictures of the blobs that the evaluation draws, and no page."""
    evaluation.changes = {**ALL, **evaluation.changes}
    scores = evaluation.write(folder / "scores")
    monkeypatch.setattr(write, "write_page", lambda *_: "")
    monkeypatch.setattr(write, "_loader", lambda *_: evaluation.scene)
    return lambda: write_report(scores, folder / "out", images=folder, options=options)


def test_no_word_of_a_report_is_outside_its_page(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: Any, written: Any, font: str
) -> None:
    options = Options(pdf=True, limits=Limits(2, 1, 1))
    words = written(report_of(evaluation, tmp_path, monkeypatch, options))
    assert len(words) > 500
    assert any(word.words.startswith("Found 2 of 3") for word in words)
    assert any(word.words.startswith("sagittal") for word in words), "pictures are there"
    assert outside(words) == []
    assert overlapping(words) == []


def test_long_names_and_titles_stay_on_the_page(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: Any, written: Any
) -> None:
    monkeypatch.setitem(figures.RC, "font.sans-serif", FONTS[:1])
    for blob in (*evaluation.lesions, *evaluation.false_positives):
        blob.case += LONG
    evaluation.cases = tuple(case + LONG for case in evaluation.cases)
    groups = [subgroup(by, value) for by in (LONG, WORDY) for value in (LONG, WORDY)]
    evaluation.changes = {
        "subgroups": groups,
        "provenance": {LONG: WORDY, "model": LONG, "simulated": True},
        "evaluated_on": "unknown",
        "split_is_group_safe": False,
    }
    options = Options(
        title=WORDY + LONG, pdf=True, identifiers=True, limits=Limits(1, 1, 1), names=(LONG, WORDY)
    )
    words = written(report_of(evaluation, tmp_path, monkeypatch, options))
    assert any("…" in word.words for word in words)
    assert any("· found with score" in word.words for word in words), "an id hides no caption"
    assert outside(words) == []
    assert overlapping(words) == []


def test_a_first_page_with_much_to_say_goes_on(tmp_path: Path, written: Any, font: str) -> None:
    lines = tuple(tuple(TableCell(f"{WORDY} {n}") for _ in range(4)) for n in range(9))
    sizes = Listing(("Size (mm at the detector)", "Found", "Share", "95 % interval"), lines)
    summary = SummaryPage(WORDY, "role not stated", [WORDY] * 4, [WORDY] * 30, sizes)
    words = written(lambda: write_pdf(tmp_path / "report.pdf", summary, [], []))
    assert max(word.page for word in words) > 1
    assert outside(words) == []
    assert overlapping(words) == []


def test_lines_are_as_wide_as_the_font_says() -> None:
    lines = break_lines(WORDY + LONG, 200, 10)
    assert "".join(lines).replace(" ", "") == (WORDY + LONG).replace(" ", "")
    assert all(width_of(line, 10) <= 200 for line in lines)
    # greedy: the next word would not have fitted
    for line, following in pairwise(lines[:6]):
        assert width_of(f"{line} {following.split()[0]}", 10) > 200
    assert width_of("word", 10, bold=True) > width_of("word", 10)
    assert width_of("word", 20) == pytest.approx(2 * width_of("word", 10))
    assert break_lines("a\xa0b", width_of("a", 10), 10) == ["a", "\xa0", "b"]
    assert break_lines(" \n", 100, 10) == [""]


def test_what_is_too_long_ends_in_an_ellipsis() -> None:
    assert shorten("short", 100, 10) == "short"
    cut = shorten(LONG, 100, 10)
    assert cut.endswith("…")
    assert 85 < width_of(cut, 10) <= 100
    lines = break_lines(WORDY, 100, 10, most=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert break_lines("two words", 1000, 10, most=1) == ["two words"]


def test_columns_take_their_longest_words_and_share_the_rest() -> None:
    grid = make_grid([("a", "b"), ("word", "word")], 200, (0.25, 0.75))
    word = width_of("word", 8)
    rest = 200 - 2 * (word + 6)
    assert grid.widths == pytest.approx((word + 6 + rest / 4, word + 6 + 3 * rest / 4))
    assert grid.size == 8
    narrow = make_grid([("a",) * 6, ("word",) * 6], 6 * (0.9 * word + 6))
    assert narrow.size == pytest.approx(7.2)
    assert sum(narrow.widths) == pytest.approx(6 * (0.9 * word + 6))
    crowded = make_grid([("word",) * 9], 100)
    assert crowded.size == 6
    assert sum(crowded.widths) == pytest.approx(100)
