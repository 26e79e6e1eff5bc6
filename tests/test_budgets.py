"""The library stays small (docs/architecture.md's table, with a tenth of room) and starts fast."""

import re
from pathlib import Path

import pytest

from lesionseg.config import TrainConfig, keys
from tests.commands import python

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
    assert lines("tests/**/*.py") <= 16_000
    assert lines("benchmarks/**/*.py") <= 4_500
    assert len(list((ROOT / "lesionseg").glob("**/*.py"))) <= 160
    assert len(list((ROOT / "conf").glob("**/*.yaml"))) <= 35
    assert len([key for key, _ in keys(TrainConfig) if not key.endswith("_target_")]) <= 65


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import lesionseg", {"torch", "monai", "numpy", "SimpleITK", "hydra"}),
        (
            "from lesionseg.cli import run; run('train', ['--help'])",
            {"torch", "monai", "SimpleITK", "hydra", "pytorch_lightning", "numba"},
        ),
        (
            "import lesionseg.io",
            {"SimpleITK", "nibabel", "PIL", "tifffile", "pycocotools", "torch"},
        ),
        ("from lesionseg.data import TileGrid", {"torch", "monai"}),
        ("import lesionseg.ops.components", {"torch"}),
        ("import lesionseg.losses", {"numba", "pytorch_lightning", "monai"}),
        ("import lesionseg.inference.predictor", {"SimpleITK", "pytorch_lightning", "hydra"}),
        ("import lesionseg.evaluation", {"monai", "pytorch_lightning", "SimpleITK"}),
    ],
)
def test_import_stays_light(statement: str, heavy: set[str]) -> None:
    done = python("-c", f"import sys; {statement}; print(*sys.modules)")
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "sys" in loaded
    assert not loaded & heavy
