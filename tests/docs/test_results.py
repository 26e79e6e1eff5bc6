"""The files of measurements in the repository, and the notes that use them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def test_notes_name_every_file_of_measurements_and_no_other():
    text = "\n".join(note.read_text() for note in (BENCHMARKS / "notes").glob("*.md"))
    named = {name.rpartition("/")[2] for name in re.findall(r"`([\w./]+\.csv)`", text)}
    assert named == {path.name for path in (BENCHMARKS / "results").glob("*.csv")}
