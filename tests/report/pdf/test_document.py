from pathlib import Path

import pytest

from lesionseg.report.figures.chart_list import make_charts
from lesionseg.report.inputs.result_tables import read_tables
from lesionseg.report.pdf.document import Paragraph, SummaryPage, write_pdf
from lesionseg.report.sections.gallery import draw_gallery
from lesionseg.report.sections.gallery_choice import Limits, choose_items
from lesionseg.report.sections.table_cells import Listing
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Evaluation

SUMMARY = SummaryPage("Title", "test data", ["Simulated."], ["Found 1 of 2."], Listing((), ()))


def n_pages(path: Path) -> int:
    return path.read_bytes().count(b"/Type /Page\n") or path.read_bytes().count(b"/Type /Page ")


def test_summary_charts_and_pictures_have_pages(evaluation: Evaluation, tmp_path: Path) -> None:
    tables = read_tables(evaluation.write(tmp_path))
    charts = list(make_charts(tables, None).values())
    selections = choose_items(tables, Limits(1, 1, 0))
    gallery = draw_gallery(selections, tables, evaluation.scene)
    write_pdf(tmp_path / "report.pdf", SUMMARY, charts, gallery)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert n_pages(tmp_path / "report.pdf") == 1 + 2 + 2


def test_same_report_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        write_pdf(tmp_path / name, SUMMARY, [], [])
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_failure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        write_pdf(tmp_path / "report.pdf", SUMMARY, [None], [])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_lines_fit_the_page() -> None:
    lines = Paragraph("word " * 200, 10).lines()
    assert len(lines) > 5
    assert max(map(len, lines)) < 120
    assert Paragraph("").lines() == [""]


def test_pdf_lies_beside_the_page_only_when_asked_for(scores_dir: Path, tmp_path: Path) -> None:
    write_report(scores_dir, tmp_path / "a")
    write_report(scores_dir, tmp_path / "b", options=Options(pdf=True))
    assert not (tmp_path / "a" / "report.pdf").exists()
    assert (tmp_path / "b" / "report.pdf").is_file()
