"""The page of a model in use: headline, gone scans, several models, and what it shows of a week."""

import re

import pytest

from lesionseg.evaluation.drift import N_FIRST
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow
from lesionseg.reporting.month import _summarise, write_month_page
from tests.evaluation.test_drift import make_rows, write_rows


def write_page(folder):
    """Write the page on a folder of results. Return its text."""
    write_month_page(folder / "month.html", PredictionFolder(folder))
    return (folder / "month.html").read_text()


def headline(page):
    return " ".join(re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)[1].split())


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ([0.1] * 40, "No alarm in the last 30 days."),
        ([0.1] * 30 + [0.9] * 9, "The last 30 days differ from the first 30 scans."),
        # an alarm that ended 31 days before the last scan
        ([0.9] * 9 + [0.1] * 31, "No alarm in the last 30 days."),
    ],
)
def test_headline_says_if_the_last_month_differs(tmp_path, later, expected):
    write_rows(tmp_path, make_rows([0.1] * N_FIRST + later))
    page = write_page(tmp_path)
    assert headline(page) == expected
    assert ("9 scans in a row, 2026" in page) == (0.9 in later)


def test_few_scans_are_compared_with_nothing(tmp_path):
    write_rows(tmp_path, make_rows([0.1] * 3))
    assert headline(write_page(tmp_path)) == "Nothing to compare with yet: 3 of 30 scans."


def test_page_needs_no_input_score(tmp_path):
    """The models of nnU-Net state no training scans to compare with."""
    write_rows(tmp_path, make_rows([None] * (N_FIRST + 1)))
    assert headline(write_page(tmp_path)).startswith("No alarm")


def test_page_says_that_a_first_scan_is_gone(tmp_path):
    write_rows(tmp_path, make_rows([0.1] * (N_FIRST + 5)))
    assert "gone" not in write_page(tmp_path)
    (tmp_path / "c003_candidates.json").unlink()
    assert "1 of the first 30 scans of program m1 is gone" in write_page(tmp_path)


def test_models_have_ranges_of_their_own(tmp_path):
    new = make_rows([0.9] * N_FIRST, "m2", begin=N_FIRST)
    write_rows(tmp_path, [*make_rows([0.1] * N_FIRST), *new])
    page = write_page(tmp_path)
    assert headline(page) == "No alarm in the last 30 days."
    assert page.count(">2026-01-01 to 2026-01-30<") == page.count(">2026-01-31 to 2026-03-01<") == 1


def test_line_of_a_week_counts_scans_by_status():
    rows = [
        CaseRow("a", status="done", n_accepted=1, input_score=0.2),
        CaseRow("b", status="warned", n_accepted=4, input_score=3.0, message="No DICOM results."),
        CaseRow("c", status="blank", n_accepted=0, message="No DICOM results."),
        CaseRow("d", status="kept", n_accepted=3, input_score=0.4),
        CaseRow("e", status="failed", message="cut short"),
    ]
    assert _summarise("2026-W01", rows) == {
        "": "2026-W01",
        "scans": 5,
        "failed": 1,
        "warned": 1,
        "blank": 1,
        "withheld": 2,
        "markings per scan": 2.0,
        "difference": 0.4,
    }


def test_weeks_are_those_of_iso_8601_latest_first(tmp_path):
    write_rows(tmp_path, make_rows([0.1] * 5))  # Thursday 2026-01-01 to Monday
    page = write_page(tmp_path)
    assert re.findall(r"<td>(2\d{3}-W\d\d)</td>", page) == ["2026-W02", "2026-W01"]
