"""The rows of measurements that the repository keeps."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results"


def test_each_file_of_rows_is_named_on_a_page_and_each_named_file_exists():
    text = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    kept = {path.name for path in ROWS.glob("*.csv")}
    assert {name for name in kept if f"`{name}`" not in text and f"/{name}`" not in text} == set()
    pages = [ROOT / "docs" / name for name in ("results.md", "trials.md", "speed.md")]
    words = " ".join(page.read_text() for page in pages).split()
    named = {word.strip("`(),.;:") for word in words if ".csv`" in word}
    assert named - kept == set()
