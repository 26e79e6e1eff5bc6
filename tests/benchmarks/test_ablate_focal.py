"""The ablation's harness: tiny cells end with the promised line, and are not made twice."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.learning import ablation_table as ablate


def cell(found: list[bool]) -> dict[str, object]:
    """One lesion of 4 mm in each of six patients, and one of 12 mm in the first."""
    lesions = [
        {"group": f"P{i}", "diameter_mm": 4.0, "found": hit} for i, hit in enumerate(found[:6])
    ]
    return {"lesions": [*lesions, {"group": "P0", "diameter_mm": 12.0, "found": found[6]}]}


def test_seeds_are_averaged_and_add_no_lesions() -> None:
    once = ablate.pooled([cell([True] * 3 + [False] * 3 + [True])])
    assert once.n == 7
    assert once.number.value == pytest.approx(4 / 7)
    twice = ablate.pooled([cell([True] * 3 + [False] * 3 + [True])] * 2)
    assert twice == once  # the same answers again make no interval narrower


def test_sizes_are_counted_apart() -> None:
    cells = [cell([False] * 6 + [True])]
    assert ablate.pooled(cells, 3, 5).number.value == 0
    assert ablate.pooled(cells, 10, 20).number.value == 1
    assert ablate.pooled(cells, 5, 10).n == 0
    assert ablate.sizes({"ce": cells}) == [(3.0, 5.0), (10.0, 20.0)]


@pytest.mark.bench
def test_quick_cells_end_with_the_promised_line_and_are_kept(
    repository: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "benchmarks/learning/ablate_focal.py",
        "--quick",
        "--accelerator",
        "cpu",
    ]
    command += ["--output", str(tmp_path / "out"), "--table", str(tmp_path / "table.md")]

    def run() -> str:
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
        return done.stdout

    begin = time.monotonic()
    line = json.loads(run().splitlines()[-1])
    assert time.monotonic() - begin < 45
    assert set(line) == {"bench", "device", "versions", "rows"}
    assert line["bench"] == "ablate_focal"
    cells = sorted((tmp_path / "out" / "cells").glob("*.json"))
    assert len(cells) == 6
    assert "| focal |" in (tmp_path / "table.md").read_text()
    before = [path.stat().st_mtime_ns for path in cells]
    cells[0].unlink()
    run()
    after = [path.stat().st_mtime_ns for path in cells]
    assert after[0] > before[0]
    assert after[1:] == before[1:]
