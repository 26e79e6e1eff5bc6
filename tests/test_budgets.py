"""The library stays small: the table of docs/architecture.md, with a tenth of room."""

import re
from pathlib import Path

from lesionseg.config import TrainConfig, keys

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| `(\w+)`.*\| ([\d ]+) \|$", (ROOT / "docs/architecture.md").read_text("utf-8"), re.M
)


def lines(*places: str) -> int:
    files = [f for place in places for f in sorted(ROOT.glob(place))]
    return sum(len(file.read_text("utf-8").splitlines()) for file in files)


def test_every_package_keeps_to_its_budget() -> None:
    over = {
        name: (n, budget)
        for name, budget in ((name, int(text.replace(" ", ""))) for name, text in ROWS)
        if (n := lines(f"lesionseg/{name}.py", f"lesionseg/{name}/**/*.py")) > 1.1 * budget
    }
    packages = {p.name for p in (ROOT / "lesionseg").iterdir() if (p / "__init__.py").is_file()}
    assert packages <= {name for name, _ in ROWS}
    assert not over
    assert lines("lesionseg/**/*.py") <= 28_000
    assert len(list((ROOT / "lesionseg").glob("**/*.py"))) <= 160
    assert len(list((ROOT / "conf").glob("**/*.yaml"))) <= 35
    assert len([key for key, _ in keys(TrainConfig) if not key.endswith("_target_")]) <= 65
