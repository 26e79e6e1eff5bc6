"""The focal benchmark keeps its contract and its claim."""

import json
import subprocess
import sys
import time

import pytest


@pytest.mark.bench
def test_quick_run_ends_with_the_promised_line(repository):
    command, begin = ["benchmarks/bench_focal.py", "--quick", "--device", "cpu"], time.monotonic()
    text = subprocess.check_output([sys.executable, *command], cwd=repository, text=True)
    assert time.monotonic() - begin < 45
    result = json.loads(text.splitlines()[-1])
    assert set(result) == {"bench", "device", "versions", "rows"}
    assert result["bench"] == "focal"
    rows = {(row["what"], row["peer"]): row for row in result["rows"]}
    for what in ("focal_2x1x96", "focal_2x1x96_memory"):
        row = rows[what, "monai"]
        assert set(row) == {"what", "ours", "unit", "peer", "peer_value", "ratio"}
        assert row["ratio"] == pytest.approx(row["peer_value"] / row["ours"], rel=1e-2)
        assert row["ratio"] > 4
    assert rows["focal_2x1x96_memory", "monai"]["ours"] <= 8
