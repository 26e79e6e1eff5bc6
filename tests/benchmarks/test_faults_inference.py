"""What commands promise about faults, kills included, holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _rows(repository: Path, *command: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, *command], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return rows


@pytest.mark.slow
def test_faults_stay_with_their_case(repository: Path) -> None:
    rows = _rows(repository, "benchmarks/robustness/faults_inference.py")
    assert len(rows) == 11
    assert all(row["held"] for row in rows)


@pytest.mark.slow
def test_kills_leave_no_trace(repository: Path) -> None:
    rows = _rows(repository, "benchmarks/robustness/kills.py", "--kills", "3", "--full", "20")
    assert [row["same"] for row in rows] == [3] * 7
    assert all(all(row["full"]) and row["full"] for row in rows)
