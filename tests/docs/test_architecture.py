"""docs/architecture.md against the code: each hop exists, and an earlier one names it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_HOPS = 15


def hops(command: str) -> list[tuple[str, str]]:
    section = PAGE.split(f"## Through `{command}`")[1].split("\n## ")[0]
    return re.findall(r"^\| `(lesionseg/[\w/]+\.py):(\w+)` \|", section, flags=re.MULTILINE)


@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_walk_is_short_and_each_hop_exists(command: str) -> None:
    chain = hops(command)
    assert 8 <= len(chain) <= MOST_HOPS
    for path, name in chain:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{path} has no {name}"


@pytest.mark.parametrize("command", ["train", "predict"])
def test_each_hop_is_named_by_a_file_that_the_case_has_passed(command: str) -> None:
    chain = hops(command)
    package = ROOT / "lesionseg" / "pipeline" / command
    # a case enters a package by whichever of its files is called
    passed = [package, ROOT / chain[0][0], ROOT / "lesionseg" / "inference" / "predictor.py"]
    for path, name in chain[2:]:  # the first is typed, the second named in conf
        files = [
            f for place in passed for f in (place.rglob("*.py") if place.is_dir() else [place])
        ]
        texts = [f.read_text(encoding="utf-8") for f in files if f != ROOT / path]
        own = (ROOT / path).read_text(encoding="utf-8")
        called = len(re.findall(rf"\b{name}\(", own)) > 1  # by another function of its own file
        assert called or any(re.search(rf"\b{name}\b", text) for text in texts), name
        passed.append((ROOT / path).parent)
