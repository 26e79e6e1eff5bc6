"""The files of measurements in the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results"


def test_pages_name_every_file_of_measurements_and_no_other():
    text = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    kept = {path.name for path in ROWS.glob("*.csv")}
    assert {name for name in kept if f"`{name}`" not in text and f"/{name}`" not in text} == set()
    pages = [ROOT / "docs" / name for name in ("results.md", "trials.md", "speed.md")]
    words = " ".join(page.read_text() for page in pages).split()
    named = {word.strip("`(),.;:") for word in words if ".csv`" in word}
    assert named - kept == set()
