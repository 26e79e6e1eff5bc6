"""The rows of measurements that the repository keeps."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results"


def test_each_file_of_rows_is_named_on_a_page_and_each_named_file_exists():
    text = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    kept = {path.name for path in ROWS.glob("*.csv")}
    assert {name for name in kept if f"`{name}`" not in text and f"/{name}`" not in text} == set()
    _, _, after_heading = (ROOT / "docs" / "results.md").read_text().partition("# Results")
    named = {word.strip("`(),.;") for word in after_heading.split() if ".csv`" in word}
    assert named - kept == set()
