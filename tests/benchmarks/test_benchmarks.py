"""The output of all benchmarks, the rehearsal of the GPU benchmark, and the claim of one."""

import json
import sys
import time
from unittest.mock import Mock

import pytest

from benchmarks import gpu
from benchmarks.common import table
from tests.commands import python


def test_report_ends_with_one_line_of_json(capsys):
    row = {"what": "focal_2x1x96", "ours": 5.0, "unit": "ms", "peer": "monai", "peer_value": 26.7}
    stated = {"device": "a box", "versions": {"torch": "9"}}
    table.print_report("focal", [table.Row(*row.values())], skipped={"other": "absent"}, **stated)
    lines = capsys.readouterr().out.splitlines()
    assert any("other (absent)" in line for line in lines[:-1])
    assert json.loads(lines[-1]) == {"bench": "focal", **stated, "rows": [{**row, "ratio": 5.34}]}
    versions = table.versions("numpy", "no-such-package")
    assert {"python", "torch", "numpy"} <= set(versions)
    assert "no-such-package" not in versions


@pytest.mark.filterwarnings("ignore")  # the program itself is not this strict
@pytest.mark.slow
def test_rehearsal_without_gpu_measures_every_group(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse"])
    gpu.main()
    printed = capsys.readouterr().out.splitlines()
    groups = [json.loads(line) for line in printed if line.startswith("{")]
    every = groups.pop()
    assert every["rows"] == [row for group in groups for row in group["rows"]]
    assert len(groups) == 9
    assert all(group["rows"] for group in groups)
    assert all(row["ours"] > 0 and row["peer_value"] > 0 for row in every["rows"])


@pytest.mark.slow  # only the start as a script is not covered by the rehearsal in this process
def test_rehearsal_runs_as_a_script(repository):
    command = ["benchmarks/gpu.py", "--rehearse", "--only", "nms"]
    done = python(*command, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows"]


def test_failing_group_is_named_and_remaining_groups_are_measured(capsys, monkeypatch):
    broken = Mock(side_effect=RuntimeError("no memory left\nfor the second line"))
    works = Mock(return_value=[table.Row("focal", 1.0, "ms", "monai", 2.0)])
    monkeypatch.setattr(gpu, "GROUPS", {"first": broken, "second": works})
    failed = gpu.measure(gpu.REHEARSAL, ["first", "second"])
    assert failed == {"first": "RuntimeError: no memory left"}
    said = capsys.readouterr().out.splitlines()
    assert "not measured: first (RuntimeError: no memory left)" in said
    assert [row["what"] for row in json.loads(said[-1])["rows"]] == ["focal"]


@pytest.mark.bench
def test_focal_loss_is_four_times_as_fast_as_monai(repository):
    command = ["benchmarks/bench_focal.py", "--quick", "--device", "cpu"]
    begin = time.monotonic()
    result = json.loads(python(*command, cwd=repository).stdout.splitlines()[-1])
    assert time.monotonic() - begin < 450  # an idle machine needs less than 45 s
    rows = {row["what"]: row for row in result["rows"] if row["peer"] == "monai"}
    memory = rows["focal_2x1x96_memory"]
    assert min(rows["focal_2x1x96"]["ratio"], memory["ratio"]) > 4
    assert memory["ours"] <= 8
