from pathlib import Path

from lesionseg.evaluation.edge_cases import EDGE_CASES
from lesionseg.evaluation.rows import CANDIDATE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS

DOCS = Path(__file__).parents[2] / "docs"
METRICS = DOCS / "metrics.md"


def test_the_table_stands_in_the_documentation_word_for_word():
    rows = [
        f"| {e.numbers} | {e.situation} | {'null' if e.value is None else f'{e.value:g}'} "
        f"| {e.reason} |"
        for e in EDGE_CASES
    ]
    table = "\n".join(["| number | when | is | because |", "|---|---|---|---|", *rows])
    assert table in METRICS.read_text(encoding="utf-8")


def test_every_column_is_documented():
    text = (DOCS / "tables.md").read_text(encoding="utf-8")
    for column in {*CASE_COLUMNS, *LESION_COLUMNS, *CANDIDATE_COLUMNS}:
        assert f"`{column}`" in text, column


def test_every_row_says_why():
    assert all(row.reason and row.situation and row.numbers for row in EDGE_CASES)
