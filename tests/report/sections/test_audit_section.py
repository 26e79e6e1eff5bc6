from pathlib import Path

import pytest

from lesionseg.errors import ContentError, ReadError
from lesionseg.report import write_report
from lesionseg.report.sections import audit_section as audit
from tests.report.conftest import Blob, Evaluation

NAMES = {"a": "a", "b": "b"}
HEADER = "rank,kind,case,group,label,lesion,centre_mm,diameter_mm,suspicion,p_at_50,p_at_100\n"


@pytest.fixture
def rows(tmp_path: Path) -> tuple[audit.SuspectRow, ...]:
    # centres x, y, z in millimetres of a grid of 3 × 1 × 1 mm
    (tmp_path / "label_audit.csv").write_text(
        HEADER
        + "1,lesion,a,a,lesion,1,50.00 60.00 60.00,12.00,0.9500,0.0800,0.0200\n"
        + "2,spot,b,b,lesion,,50.00 90.00 60.00,5.00,0.8000,0.7000,0.9000\n"
        + "3,lesion,a,a,lesion,2,40.00 40.00 45.00,6.00,0.5000,0.5000,0.5000\n"
    )
    return audit.read_suspects(tmp_path / "label_audit.csv")


def test_rows_are_read_in_order(rows: tuple[audit.SuspectRow, ...]) -> None:
    assert [(row.rank, row.kind, row.p) for row in rows] == [
        (1, "lesion", (0.08, 0.02)),
        (2, "spot", (0.7, 0.9)),
        (3, "lesion", (0.5, 0.5)),
    ]
    assert rows[1].centre_mm == (50.0, 90.0, 60.0)


def test_no_file_is_no_section(tmp_path: Path) -> None:
    assert audit.read_suspects(tmp_path / "label_audit.csv") == ()
    assert audit.make_audit_section((), None, "mm") is None


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "label_audit.csv").write_text("rank,kind\nfirst,lesion\n")
    with pytest.raises(ContentError, match=r"label_audit\.csv"):
        audit.read_suspects(tmp_path / "label_audit.csv")


def test_pictures_pass_through_the_place_and_show_the_reference(
    rows: tuple[audit.SuspectRow, ...],
) -> None:
    lesions = [Blob("a", 1, (20, 60, 50), 12.0), Blob("a", 2, (15, 40, 40), 6.0)]
    pictures = audit.draw_suspects(rows, Evaluation(lesions).scene, "mm", NAMES)
    assert [card.case for card in pictures.cards] == ["a", "b", "a"]
    seen, spot, _ = pictures.cards
    assert "lesion not seen, 12.0 mm; probability 0.08 → 0.02" in seen.caption
    assert all(view.reference for view in seen.views)
    assert not any(view.reference for view in spot.views)
    assert pictures.sentence == "Shown: all 3."


def test_a_case_that_cannot_be_read_leaves_a_note(rows: tuple[audit.SuspectRow, ...]) -> None:
    def load(case: str, accepted: frozenset[int]):  # type: ignore[no-untyped-def]
        raise ReadError("The image of a case is not there.", where=case)

    pictures = audit.draw_suspects(rows, load, "mm", NAMES)
    assert {card.note for card in pictures.cards} == {"The image of a case is not there."}
    assert not any(card.views for card in pictures.cards)


def test_without_identifiers_cases_are_numbered(rows: tuple[audit.SuspectRow, ...]) -> None:
    asked: list[str] = []

    def load(case: str, accepted: frozenset[int]):  # type: ignore[no-untyped-def]
        asked.append(case)
        return Evaluation().scene(case, accepted)

    section = audit.make_audit_section(rows, load, "mm")
    assert section is not None
    assert section.pictures is not None
    assert asked == ["a", "b"]
    numbers = ["training scan 1", "training scan 2", "training scan 1"]
    assert [card.case for card in section.pictures.cards] == numbers
    assert [line[1].shown for line in section.listing.lines] == numbers
    named = audit.make_audit_section(rows, None, "mm", identifiers=True)
    assert named is not None
    assert named.pictures is None
    assert [line[1].shown for line in named.listing.lines] == ["a", "b", "a"]


def test_the_table_holds_the_first_rows(rows: tuple[audit.SuspectRow, ...]) -> None:
    listing = audit.list_suspects([*rows] * 20, "mm", NAMES)
    assert len(listing.lines) == audit.ROWS
    assert listing.omitted == 60 - audit.ROWS
    shown = [cell.shown for cell in listing.lines[0]]
    assert shown == ["1", "a", "lesion not seen", "12.0 mm", "50, 60, 60", "0.95"]


def test_the_page_has_the_section_when_the_run_has_the_file(
    evaluation: Evaluation, tmp_path: Path, rows: tuple[audit.SuspectRow, ...]
) -> None:
    run = evaluation.write(tmp_path)  # beside the label_audit.csv of `rows`
    html = write_report(run, tmp_path / "out").read_text(encoding="utf-8")
    assert '<section id="audit">' in html
    assert '<a href="#audit">' in html
    assert "training scan 2" in html
