"""One idea, one word: the report uses the words that the glossary has for its page."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORTING = ROOT / "lesionseg" / "reporting"
MODULES = ("words.py", "charts.py", "content.py", "pdf.py")
TEMPLATES = ("report.html.j2", "macros.html.j2", "sentences.txt.j2")
# names, and the comment of a DICOM report, which numbers candidates as the rest of that report
OTHER_MEANINGS = re.compile(r"scores\.json|RSNA score|too thin to be sure: candidate")


def read_glossary():
    """Return each term with the words of the report page, from the table of the reference page."""
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    part = page.split("## Glossary")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return [(term, words) for term, _, words in rows[1:]]


def sentences_of_code(name):
    """Yield the texts of a module that have several words, without its docstrings."""
    tree = ast.parse((REPORTING / name).read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, documented)
    }
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and " " in value.strip() and value not in docstrings:
            yield value


def words_of_template(path):
    """Return the text of a template without its code, styles and tags."""
    text = path.read_text(encoding="utf-8")
    for code in (r"\{%.*?%\}", r"\{\{.*?\}\}", r"\{#.*?#\}", r"<script.*?</script>", r"<[^>]*>"):
        text = re.sub(code, " ", text, flags=re.DOTALL)
    return text


def words_of_report():
    """Return everything that the report says."""
    code = [s for name in MODULES for s in sentences_of_code(name)]
    templates = [t for t in (REPORTING / "templates").glob("*.j2") if t.name in TEMPLATES]
    return "\n".join([*code, *map(words_of_template, templates)])


GLOSSARY = read_glossary()
RENAMED = [(t, w) for t, w in GLOSSARY if w not in ("–", t)]


def test_glossary_has_one_term_per_row():
    terms = [term for term, _ in GLOSSARY]
    assert len(set(terms)) == len(terms) > 20
    assert not [term for term in terms if "," in term or "(" in term]


@pytest.mark.parametrize(("term", "word"), RENAMED)
def test_report_uses_its_own_word_for_a_term(term, word):
    text = OTHER_MEANINGS.sub("", words_of_report())
    assert re.search(rf"\b{word}", text, re.IGNORECASE)
    used = [line for line in text.splitlines() if re.search(rf"\b{term}s?\b", line, re.IGNORECASE)]
    assert used == []
