"""SIGTERM or SIGUSR1 to a complete process group, as of a scheduler, ends a command like Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lesionseg.training.checkpoints import read_checkpoint

TRAINING = """
import sys
from datetime import timedelta
from pathlib import Path
import lesionseg.cli.command as c
from lesionseg.training import fit
from tests.training.conftest import Squares, make_config, make_module, small_plan
from lesionseg.losses import DiceFocalLoss

def train(*_):
    fit.CHECKPOINT_EVERY = timedelta(0)
    plan = small_plan()
    cfg = make_config(max_steps=100000, workers=2)
    fit.fit(make_module(plan, cfg, loss=DiceFocalLoss()), Squares(), Path(sys.argv[1]))

c.run_recipe = train
sys.exit(c.run("train", ["data.root=x", f"run_dir={sys.argv[1]}"]))
"""

# two processes; only the parent receives the signal
SPAWNING = TRAINING.replace("workers=2", "devices=2")

DECODING = """
import sys, threading, time
from pathlib import Path
import lesionseg.cli.command as c
from lesionseg.io.worker import run_in_worker

def decode(*_):
    run_in_worker(abs, -1)  # the worker has started
    thread = threading.Thread(target=run_in_worker, args=(time.sleep, 1))
    thread.start()
    Path(sys.argv[1], "checkpoints").mkdir(parents=True)
    Path(sys.argv[1], "checkpoints", "last.ckpt").touch()
    try:
        time.sleep(60)
    finally:
        thread.join()

c.run_recipe = decode
sys.exit(c.run("predict", ["bundle=x", "input=y", f"output={sys.argv[1]}"]))
"""


def start(repository, program, run_dir):
    """Start a program in a process group of its own, and wait for its first checkpoint."""
    command = [sys.executable, "-c", program, str(run_dir)]
    process = subprocess.Popen(
        command, cwd=repository, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (run_dir / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.2)
    return process


@pytest.mark.slow  # two processes that import torch
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_sigterm_to_the_parent_ends_the_processes_that_it_spawned(tmp_path, repository):
    process = start(repository, SPAWNING, tmp_path / "run")
    process.terminate()
    _, output = process.communicate(timeout=900)  # until no process can write to the pipe
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "Stopped. The same command continues."


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no process groups")
@pytest.mark.parametrize(
    ("program", "name"),
    [
        pytest.param(TRAINING, "SIGTERM", id="train-SIGTERM"),
        pytest.param(DECODING, "SIGUSR1", id="predict-SIGUSR1"),
        # as above, by the same handler
        pytest.param(TRAINING, "SIGUSR1", id="train-SIGUSR1", marks=pytest.mark.slow),
        pytest.param(DECODING, "SIGTERM", id="predict-SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_signal_to_the_whole_group_stops_without_a_traceback(tmp_path, repository, program, name):
    process = start(repository, program, tmp_path / "run")
    os.killpg(process.pid, getattr(signal, name))
    _, output = process.communicate(timeout=900)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "killed by signal" not in output
    if program == TRAINING:
        assert "Training stopped at step" in output
        assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] > 0
    assert output.splitlines()[-1] == "Stopped. The same command continues."
