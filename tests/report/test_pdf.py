"""The PDF: no word outside its sheet and none over another, tagged, and the same each time.

Boxes of words are those of the sheets set as SVG, where each run of letters is a group of glyphs.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lesionseg.errors import OutputError
from lesionseg.report import pdf, text, write
from lesionseg.report.pdf import BREAK, read_tree, set_pages, write_pdf
from lesionseg.report.sections.gallery import Limits
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Evaluation, three_scans
from tests.report.inputs.test_score_details import ALL, subgroup

LONG = "unbroken_" * 30
WORDY = "a name of many words that nobody would give " * 5
WIDTH, HEIGHT = 595.3, 841.9  # points of A4
SLACK = 1.0  # points: letters may touch
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
PAGE = "<title>T</title><body><h1>{}</h1><p>words</p></body>"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Run:
    """Letters in a row: their sheet, and their box in points from the upper left."""

    sheet: int
    box: Box


def runs(html: str) -> list[Run]:
    """Every run of letters on every sheet."""
    found = []
    for sheet, svg in enumerate(set_pages(html, "svg"), start=1):
        root = ElementTree.fromstring(svg)
        glyphs = {symbol.get("id"): glyph_box(symbol) for symbol in root.iter(f"{SVG}symbol")}
        found += [Run(sheet, box) for box in boxes(root, glyphs, 0.0, 0.0)]
    return found


def boxes(node: Any, glyphs: dict[Any, Box | None], x: float, y: float) -> Iterator[Box]:
    """Boxes of the groups that hold glyphs; groups are moved, and letters stand on their head."""
    moved = [float(n) for n in NUMBER.findall(node.get("transform", ""))]
    if moved and node.tag == f"{SVG}g":
        x, y = x + moved[-2], y + moved[-1]
    inked = []
    for use in node.findall(f"{SVG}use"):
        box = glyphs.get((use.get(LINK) or "").removeprefix("#"))
        if box is not None:
            at = x + float(use.get("x") or 0)
            inked.append((at + box[0], y - box[3], at + box[2], y - box[1]))
    if inked:
        left, top, right, bottom = zip(*inked, strict=True)
        yield min(left), min(top), max(right), max(bottom)
    for child in node.findall(f"{SVG}g"):
        yield from boxes(child, glyphs, x, y)


def glyph_box(symbol: Any) -> Box | None:
    """The corners that a glyph's outline goes through; None for a space."""
    xs, ys, x, y = [], [], 0.0, 0.0
    outline = symbol.find(f"{SVG}path")
    for command, rest in re.findall(
        r"([a-zA-Z])([^a-zA-Z]*)", outline.get("d") if outline is not None else ""
    ):
        steps = [float(n) for n in NUMBER.findall(rest)]
        if command in "mlqc" and steps:
            x, y = x + steps[-2], y + steps[-1]
        elif command == "h":
            x += steps[0]
        elif command == "v":
            y += steps[0]
        xs.append(x)
        ys.append(y)
    return (min(xs), min(ys), max(xs), max(ys)) if len(xs) > 2 else None


def outside(found: list[Run]) -> list[Run]:
    return [run for run in found if min(run.box) < 0 or run.box[2] > WIDTH or run.box[3] > HEIGHT]


def overlapping(found: list[Run]) -> list[tuple[Run, Run]]:
    return [
        (one, other)
        for one, other in combinations(found, 2)
        if one.sheet == other.sheet
        and all(
            one.box[k] + SLACK < other.box[k + 2] and other.box[k] + SLACK < one.box[k + 2]
            for k in (0, 1)
        )
    ]


def words(node: Any) -> str:
    """All words of a tree."""
    kids = node["kids"]
    said = " ".join(kid if isinstance(kid, str) else words(kid) for kid in kids)
    return " ".join(said.replace(BREAK, "").split())


def texts(node: Any) -> Iterator[str]:
    """The words of every heading, paragraph, cell and definition."""
    if node["tag"] in ("h1", "h2", "h3", "p", "th", "td", "dt", "dd", "li"):
        yield words(node)
    for kid in node["kids"]:
        if not isinstance(kid, str):
            yield from texts(kid)


def content(path: Path) -> bytes:
    """A PDF with its compressed streams laid open."""
    raw = path.read_bytes()
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", raw, re.DOTALL):
        try:
            raw += zlib.decompress(stream)
        except zlib.error:
            continue  # pictures are compressed in other ways
    return raw


def make_paper(evaluation: Evaluation, folder: Path, options: Options) -> str:
    """The HTML that goes to paper, with pictures of the blobs that the evaluation draws."""
    found: list[str] = []
    evaluation.changes = {**ALL, **evaluation.changes}
    scores = evaluation.write(folder / "scores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "write_pdf", lambda _, html: found.append(html))
        patch.setattr(write, "_loader", lambda *_: evaluation.scene)
        write_report(scores, folder / "out", images=folder, options=options)
    return found[0]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An ordinary report: the HTML that goes to paper, and the page."""
    folder = tmp_path_factory.mktemp("report")
    html = make_paper(three_scans(), folder, Options(pdf=True, limits=Limits(2, 1, 1)))
    return html, (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_no_word_of_a_report_is_outside_its_sheet(report: tuple[str, str]) -> None:
    found = runs(report[0])
    assert len(found) > 300
    assert "sagittal" in words(read_tree(report[0])), "pictures are there"
    assert outside(found) == []
    assert overlapping(found) == []


def test_four_sheets_come_before_the_annex(report: tuple[str, str]) -> None:
    html, _, annex = report[0].partition('<div class="sheet long">')
    assert text.ANNEX in annex
    assert len(set_pages(html, "svg")) == 4


def test_long_names_and_titles_stay_on_the_sheet(evaluation: Evaluation, tmp_path: Path) -> None:
    for blob in (*evaluation.lesions, *evaluation.false_positives):
        blob.case += LONG
    evaluation.cases = tuple(case + LONG for case in evaluation.cases)
    evaluation.changes = {
        "subgroups": [subgroup(by, value) for by in (LONG, WORDY) for value in (LONG, WORDY)],
        "provenance": {LONG: WORDY, "model": LONG, "simulated": True},
        "evaluated_on": "unknown",
        "split_is_group_safe": False,
    }
    options = Options(
        title=WORDY + LONG, pdf=True, identifiers=True, limits=Limits(1, 1, 1), names=(LONG, WORDY)
    )
    found = runs(make_paper(evaluation, tmp_path, options))
    assert outside(found) == []
    assert overlapping(found) == []


def test_paper_says_what_the_page_says(report: tuple[str, str]) -> None:
    paper, page = ({*texts(read_tree(html))} for html in report)
    assert len(paper) > 150
    assert paper <= page | {text.SECTIONS["rest"]}


def test_pdf_is_tagged_and_brings_its_fonts(tmp_path: Path) -> None:
    write_pdf(tmp_path / "report.pdf", PAGE.format("A title"))
    found = content(tmp_path / "report.pdf")
    for part in (b"/StructTreeRoot", b"/Marked true", b"pdfuaid", b"/FontFile", b"/Lang"):
        assert part in found
    assert b"/CreationDate" not in found


def test_same_page_gives_the_same_file_and_a_date_only_when_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a.pdf", "b.pdf", "c.pdf")]
    for path in paths[:2]:
        write_pdf(path, PAGE.format("T"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    write_pdf(paths[2], PAGE.format("T"))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"D:20231114" in content(paths[2])


def test_names_are_words_and_no_markup() -> None:
    odd = '#panic() $x$ *b* `#eval("1")` <script> @a \\ [x] //'
    tree = read_tree(PAGE.format(odd.replace("<", "&lt;").replace(">", "&gt;")))
    assert words(tree["kids"][-2]) == odd
    assert len(set_pages(PAGE.format(odd.replace("<", "&lt;")), "svg")) == 1


def test_what_is_folded_or_needs_a_mouse_stays_on_the_page() -> None:
    html = (
        "<nav>links</nav><p class='more'>what</p><script>1</script><p>in <b>short</b></p>"
        "<details><summary>2 lines</summary><p>one two</p></details>"
        "<details open><summary>3</summary><p>three</p></details>"
    )
    assert words(read_tree(html)) == "in short 2 lines 3 three"


def test_long_words_may_break_and_what_is_copied_stays_whole() -> None:
    option = "report.study=study.yaml"
    (kid,) = read_tree(f"{option} {LONG}")["kids"]
    assert kid.startswith(f"{option} ")
    assert kid.replace(BREAK, "") == f"{option} {LONG}"
    assert max(map(len, kid.partition(" ")[2].split(BREAK))) <= 11
    (cell,) = read_tree(f"<td>{option}</td>")["kids"]
    assert BREAK in cell["kids"][0]


def test_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "TEMPLATE", tmp_path / "none.typ")
    (tmp_path / "none.typ").write_text('#panic("no")')
    with pytest.raises(OutputError, match="cannot be set"):
        write_pdf(tmp_path / "report.pdf", PAGE.format("T"))
    assert [path.name for path in tmp_path.iterdir()] == ["none.typ"]


def test_pdf_lies_beside_the_page_only_when_asked_for(scores_dir: Path, tmp_path: Path) -> None:
    write_report(scores_dir, tmp_path)
    assert not (tmp_path / "report.pdf").exists()
    write_report(scores_dir, tmp_path, options=Options(pdf=True))
    assert (tmp_path / "report.pdf").is_file()
