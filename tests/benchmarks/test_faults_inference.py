"""What predict promises about faults, kills included, holds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_faults_stay_with_their_case_and_kills_leave_no_trace(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/faults_inference.py", "--quick"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 12
    assert all(row["held"] for row in rows)
