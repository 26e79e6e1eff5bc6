"""Sections of docstrings have one form: a capital letter, a full stop, and errors "If …"."""

import ast
import re
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "lesionseg"
BEGINNINGS = {"Args": r"[^a-z]", "Attributes": r"[^a-z]", "Raises": "If "}
NAMES = r"(?:nnU-Net|torch)"  # are not capitalised


def entries(docstring):
    """Yield the section and text of each entry."""
    blocks = re.findall(r"^(Args|Attributes|Raises):\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
    for section, block in blocks:
        for entry in re.split(r"^ {4}(?=\S)", block, flags=re.MULTILINE)[1:]:
            yield section, entry.partition(": ")[2].strip()


def test_entries_begin_with_a_capital_letter_and_end_with_a_full_stop():
    wrong = []
    for file in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for section, text in entries(ast.get_docstring(node) or ""):
                    begins = re.match(rf"{BEGINNINGS[section]}|{NAMES}", text)
                    if not begins or text[-1] not in ".)…":
                        wrong.append(f"{file}:{node.lineno} {node.name}: {text}")
    assert not wrong, "\n".join(wrong)
