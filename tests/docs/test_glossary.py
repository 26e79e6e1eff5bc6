"""One idea, one word: the glossary has one term per row."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_glossary_has_one_term_per_row():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    part = page.split("## Glossary")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    terms = [term for term, _, _ in rows[1:]]
    assert len(set(terms)) == len(terms) > 20
    assert not [term for term in terms if "," in term or "(" in term]
