"""The PDF of a page: its content, the fonts and files that it reads, and how to do without it."""

import logging
import os
import re
import sys
from base64 import b64encode

import pytest

from lesionseg.config import ReportSection
from lesionseg.io.results.case import write_prediction
from lesionseg.reporting.pdf import write_pdf
from lesionseg.reporting.write import write_report
from tests.commands import evaluate, follow, python
from tests.pdf_pages import check_pages, find_pictures, keep_documents, needs_pango, read_objects
from tests.reporting.study import predict, write_cases

CASE = "hospital-north_department-of-radiology_patient-{}_session-1_flair-registered-to-t1"
PROGRAMS = [f"{name}_trained_on_all_scans_of_four_hospitals_2026" for name in ("one", "two")]
NO_FONT = '<?xml version="1.0"?><fontconfig><cachedir>{}</cachedir></fontconfig>'


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Write four scans with long names, and the results of two programs with long names."""
    root = tmp_path_factory.mktemp("study")
    cases = [CASE.format(k) for k in range(4)]
    write_cases(root, cases, n_ill=4)
    for k, case in enumerate(cases):
        for k_program, program in enumerate(PROGRAMS):
            names = ("lesion", "false") if k > k_program else ("lesion",)
            write_prediction(root / program, predict(case, *names))
    one, other = (root / program for program in PROGRAMS)
    evaluate(root / "masks", one, root / "scores", evaluated_on="test", compare=other)
    return root


@pytest.fixture
def documents(monkeypatch):
    """Return a list that will contain each document that WeasyPrint lays out."""
    return keep_documents(monkeypatch)


def draw_report(study, output, **settings):
    options = ReportSection.of(identifiers=True, **settings)
    return write_report(study / "scores", output, images=study / "scans", options=options)


@needs_pango
def test_pdf_shows_every_section_within_its_margins(study, tmp_path, documents, caplog, capfd):
    page = draw_report(study, tmp_path).read_text(encoding="utf-8")
    (document,) = documents
    text = check_pages(document)
    sections = re.findall("<summary>([^<]*)", page)
    assert len(sections) > 8
    for section in sections:
        assert (section in text) != (section == "What another limit would find")
    n_pictures = sum(len(find_pictures(one)) for one in document.pages)
    assert n_pictures == page.count("data:image/jpeg") + page.count("<svg")
    assert CASE.format(3) in text.replace(" ", "")
    assert len(document.pages) <= 5
    assert not [one for one in caplog.records if one.levelno > logging.INFO]
    assert capfd.readouterr().err == ""


@needs_pango
def test_long_table_of_scans_is_cut_in_the_pdf_alone(study, tmp_path, documents, monkeypatch):
    monkeypatch.setattr("lesionseg.reporting.write.MAX_PRINTED", 3)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    page = draw_report(study, tmp_path).read_text(encoding="utf-8")
    assert "Scan by scan (the first 3 of 4)" in check_pages(documents[0])
    table = page.partition("Scan by scan</summary>")[2].partition("</table>")[0]
    assert [CASE.format(k) in table for k in range(4)] == [True] * 4
    assert os.environ["SOURCE_DATE_EPOCH"] == "5"  # not changed for the rest of the program


@needs_pango
def test_every_machine_writes_the_same_pdf(study, tmp_path):
    """Without an installed font, and in a process whose sets have another order."""
    page = draw_report(study, tmp_path, pdf=False)
    (tmp_path / "fonts.conf").write_text(NO_FONT.format(tmp_path / "cache"))
    program = (
        "import sys; from pathlib import Path; from lesionseg.reporting.pdf import write_pdf\n"
        "write_pdf(Path(sys.argv[2]), Path(sys.argv[1]).read_text(encoding='utf-8'))"
    )
    other = {"FONTCONFIG_FILE": str(tmp_path / "fonts.conf"), "PYTHONHASHSEED": "1"}
    done = python("-c", program, page, tmp_path / "1.pdf", env={**os.environ, **other})
    assert (done.returncode, done.stderr) == (0, "")
    write_pdf(tmp_path / "2.pdf", page.read_text(encoding="utf-8"))
    assert (tmp_path / "1.pdf").read_bytes() == (tmp_path / "2.pdf").read_bytes()
    fonts = re.findall(rb"/BaseFont /\w+\+([\w-]+)", read_objects(tmp_path / "1.pdf"))
    assert {*fonts} == {b"embedded", b"embedded-Bold"}


@needs_pango
def test_pdf_contains_no_file_of_the_machine(tmp_path):
    from PIL import Image

    picture = tmp_path / "secret.png"
    Image.new("RGB", (3, 3), "red").save(picture)
    data = f"data:image/png;base64,{b64encode(picture.read_bytes()).decode()}"
    for address, is_shown in ((picture.as_uri(), False), ("secret.png", False), (data, True)):
        html = f'<img src="{address}"><link rel="stylesheet" href="{address}">'
        write_pdf(tmp_path / "a.pdf", html)
        assert (b"/Image" in (tmp_path / "a.pdf").read_bytes()) == is_shown


@pytest.mark.parametrize(
    ("error", "reason"),
    [("ImportError", "WeasyPrint is missing (pip install"), ("OSError", "does not find Pango")],
)
def test_without_weasyprint_an_old_pdf_is_removed(
    study, tmp_path, monkeypatch, caplog, error, reason
):
    (tmp_path / "weasyprint.py").write_text(f"raise {error}('cannot load library')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "weasyprint", raising=False)
    caplog.set_level(logging.INFO)
    (tmp_path / "report.pdf").write_text("of an earlier page")
    draw_report(study, tmp_path)
    assert not (tmp_path / "report.pdf").exists()
    (message,) = [text for text in caplog.messages if "report.pdf" in text]
    assert reason in message
    assert message.endswith(": print the page in a browser.")
    assert (tmp_path / "report.html").is_file()


@needs_pango
def test_follow_up_page_is_printed_completely(study, tmp_path, documents):
    visits = [study / program for program in PROGRAMS]
    page = follow(*visits, tmp_path / "out", identifiers=True).output / "follow.html"
    write_pdf(tmp_path / "page.pdf", page.read_text(encoding="utf-8"))
    text = check_pages(documents[0])
    assert "All changes" in text
    assert "detectable" in text  # the last column
