from pathlib import Path
from typing import Any

from lesionseg.report.result_tables import read_scores
from lesionseg.report.sections.optional_sections import make_extras
from lesionseg.report.sections.table_cells import Listing
from lesionseg.report.write import write_report
from tests.report.conftest import Evaluation


def extras(folder: Path, **raw: Any) -> dict[str, Any]:
    return make_extras(read_scores(Evaluation(changes=raw).write(folder) / "scores.json"))


def words(listing: Listing) -> list[list[str]]:
    return [[cell.shown for cell in line] for line in listing.lines]


def test_absent_numbers_have_no_section(tmp_path: Path) -> None:
    assert extras(tmp_path, official=None, adjudication={}) == {}


def test_nested_lists_become_tables(tmp_path: Path) -> None:
    official = {
        "site": [
            {"value": "A", "n_lesions": 12, "lesion_recall": {"value": 0.5, "ci95": [0.3, 0.7]}},
            {"value": "B", "n_lesions": 2, "lesion_recall": {"value": None, "ci95": None}},
        ]
    }
    found = extras(tmp_path, official=official)["official"]
    ((title, listing),) = found.tables
    assert title == "official: site"
    assert listing.headings == ("value", "lesions", "sensitivity")
    assert words(listing)[0] == ["A", "12", "0.50 (95 % CI 0.30 to 0.70)"]
    assert words(listing)[1][2].startswith("not defined")


def test_plain_numbers_stand_before_nested_ones(tmp_path: Path) -> None:
    adjudication = {
        "method": "platt",
        "brier": 0.1,
        "slope": None,
        "ci95": {"brier": [0.05, 0.2]},
        "curve": [{"predicted": 0.1, "observed": 0.2, "n": 30}],
    }
    found = extras(tmp_path, adjudication=adjudication)["adjudication"]
    (_, plain), (curve_title, curve) = found.tables
    assert words(plain)[0] == ["method", "platt"]
    assert words(plain)[1] == ["Brier score", "0.10 (95 % CI 0.05 to 0.20)"]
    assert curve_title == "adjudication: curve"
    assert words(curve) == [["0.10", "0.20", "30"]]


def test_official_numbers_have_a_section_on_the_page(tmp_path: Path) -> None:
    official = {"scorer": "picai_eval", "values": {"AUROC": 0.8}}
    folder = Evaluation(changes={"official": official}).write(tmp_path / "s")
    page = write_report(folder, tmp_path / "out").read_text()
    assert '<section id="official">' in page
    assert "picai_eval" in page
