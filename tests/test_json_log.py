"""LESIONSEG_LOG=json: every line of standard error is an object, errors and progress too."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from lesionseg.cli.json_log import PROGRESS, JsonLines
from lesionseg.pipeline.run.outcome import bar


def test_an_error_is_a_line_of_json(tmp_path: Path) -> None:
    command = ["evaluate", "reference=nowhere", "prediction=nowhere", "output=scores"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "lesionseg", *command],
        cwd=tmp_path,
        env={"LESIONSEG_LOG": "json", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert lines[-1]["level"] == "error"
    assert "nowhere" in lines[-1]["message"]


def test_a_bar_tells_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, PROGRESS), bar("Predicting") as advance:
        for number in range(4):
            advance(f"case {number}", number + 1, 4)
    told = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [line["done"] for line in told] == [1, 4]  # the first, the last, and each second
    assert told[-1]["stage"] == "Predicting"
    assert told[-1]["eta_s"] == 0
    assert told[-1]["memory_mb"] >= 0


def test_nobody_hears_of_progress_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lesionseg"), bar("Predicting") as advance:
        advance("case", 1, 1)
    assert caplog.records == []


def test_without_it_a_line_is_the_sentence_alone() -> None:
    said = "import logging; from lesionseg.cli.json_log import start_logging; start_logging(); "
    said += "logging.getLogger('lesionseg.training').info('Epoch 1.')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", said],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "Epoch 1.\n"
