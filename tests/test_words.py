"""The field's words: those that the project has retired stay retired (docs/conventions.md)."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RETIRED = {
    "trunk": "backbone",
    "false (?:mark|alarm)s?": "false positive",
    "false_(?:mark|alarm)s?": "false_positive",
    "sightings?": "observation",
    "share found": "sensitivity",
    "in false marks": "by false positives per scan",
    "what a score is worth": "calibration",
    "folded stems?": "space-to-depth stem",
    "learnt by heart": "overfitted",
    "spoilt": "corrupted",
    "to mend it": "How to fix",
    "wishes": "settings",
    "(?:this|each|every|the only|no other) room": "package",
    "verbs?": "command",
    "divisors?": "normaliser",
}
# keys of an earlier release that still work, and the vessels of a simulated chest
EXEMPT = {"lesionseg/cli/aliases.py", "lesionseg/phantoms/fields.py"}
PLACES = ("lesionseg", "conf", "docs", "scripts", "README.md")


def texts() -> list[Path]:
    files = (ROOT / place for place in PLACES)
    every = (f for place in files for f in ([place] if place.is_file() else place.rglob("*")))
    kinds = {".py", ".md", ".yaml", ".j2", ".html"}
    return sorted(f for f in every if f.suffix in kinds and str(f.relative_to(ROOT)) not in EXEMPT)


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_not_used(word: str) -> None:
    pattern = re.compile(rf"(?<![A-Za-z]){word}(?![A-Za-z])", re.IGNORECASE)
    uses = [
        f"{path.relative_to(ROOT)}:{n}: {line.strip()[:80]}"
        for path in texts()
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert uses == [], f"say {RETIRED[word]}"
