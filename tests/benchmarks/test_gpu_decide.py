"""The rehearsal of the measurements that decide the defaults on a GPU, and their rules."""

import argparse
import json
import sys
import time

import pytest

from benchmarks import gpu_decide
from benchmarks.gpu import REHEARSAL
from benchmarks.gpu_decide import Block, decide_on_compiling


def rehearse(monkeypatch, out, *typed):
    """Run the program in this process, and return the lines of its file."""
    monkeypatch.setattr(sys, "argv", ["gpu_decide.py", "--out", str(out), "--rehearse", *typed])
    gpu_decide.main()
    return [json.loads(line) for line in (out / "decide.jsonl").read_text().splitlines()]


def make_block(seconds=60.0):
    return Block(REHEARSAL, argparse.Namespace(), time.monotonic() + seconds)


@pytest.mark.filterwarnings("ignore")  # torch.compile is not this strict
@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rehearsal_of_the_first_part_measures_blocks_a_to_c(monkeypatch, tmp_path, compiles):
    if not compiles:
        monkeypatch.setattr("torch.nn.Module.compile", lambda *_, **__: None)
    lines = rehearse(monkeypatch, tmp_path)
    assert [line["bench"][-1] for line in lines] == ["A", "B", "C"]
    assert all(line["rows"] and line["decisions"] for line in lines)
    measured = {row["peer"] for row in lines[0]["rows"] if row["what"] == "step"}
    assert {"eager", "compiled", "compiled_channels_last", "compiled_network"} <= measured
    missing = lines[0]["skipped"].get("nnunet_compiled", "")
    assert "nnunet_compiled" in measured or "peer not installed" in missing


@pytest.mark.slow
def test_rehearsal_of_the_second_part_trains_and_scores(monkeypatch, tmp_path):
    (trained,) = rehearse(monkeypatch, tmp_path, "--part", "2")
    assert not trained["skipped"]
    assert "--score" in trained["decisions"][-1]
    scored = rehearse(monkeypatch, tmp_path, "--score")[-1]
    assert {row["peer"] for row in scored["rows"]} >= {"plan", "small"}
    assert any("small tiles" in text for text in scored["decisions"])


@pytest.mark.parametrize(
    ("compiled_ms", "compile_s", "becomes"),
    [
        (40.0, 30.0, "becomes the default"),  # 570 s at 1.45 times the speed
        (47.0, 30.0, "does not become the default"),  # 570 s at 1.23 times the speed
        (48.0, 0.0, "becomes the default"),
    ],
)
def test_compiling_becomes_the_default_from_a_fifth_more_steps_in_ten_minutes(
    compiled_ms, compile_s, becomes
):
    block = make_block()
    ms = {"eager": 58.0, "compiled": compiled_ms}
    decide_on_compiling(block, ms, {"eager": 1.0, "compiled": 1.0 + compile_s})
    assert block.decisions[0].endswith(becomes)


def test_losing_path_leaves_and_the_goal_against_nnunet_is_stated():
    block = make_block()
    ms = {
        "eager": 58.0,
        "compiled": 40.0,
        "compiled_channels_last": 41.0,
        "compiled_network": 42.0,
        "nnunet_compiled": 50.0,
    }
    decide_on_compiling(block, ms, dict.fromkeys(ms, 1.0))
    _, layout, loss, goal = block.decisions
    assert layout.endswith("channels-last leaves")
    assert loss.endswith("the compiled loss stays")
    assert goal.endswith("1.25 times as long as ours (goal 1.2): reached")


def test_failing_run_is_named_and_nothing_is_made_after_the_deadline(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("no memory left\nfor the second line")

    block = make_block()
    assert block.make("first", broken) == (None, 0.0)
    block.ends = time.monotonic() - 1
    assert block.make("second", lambda: print) == (None, 0.0)
    assert block.skipped == {"first": "RuntimeError: no memory left", "second": "no time left"}
    # the next block of a failing one runs
    blocks = {"A": (broken, 1.0), "B": (lambda block: block.decisions.append("done"), 1.0)}
    monkeypatch.setattr(gpu_decide, "BLOCKS", gpu_decide.BLOCKS | blocks)
    monkeypatch.setattr(gpu_decide, "PARTS", {1: "AB"})
    first, second = rehearse(monkeypatch, tmp_path)
    assert first["skipped"] == {"A": "RuntimeError: no memory left"}
    assert second["decisions"] == ["done"]
