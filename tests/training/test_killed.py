"""A training that is killed outright, at whatever moment, and started again.

`python -m tests.training.test_killed RUN_DIR` is the training to be killed.
"""

import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch

from lesionseg.losses import DiceFocalLoss
from lesionseg.models import build_network
from lesionseg.training import callbacks, fit
from tests.training.conftest import Squares, config, small_plan

ROOT = Path(__file__).resolve().parents[2]


def train(run_dir):
    """Forty steps on few and small tiles."""
    cfg = config(max_steps=40, log_every_n_steps=1, workers=1)
    network, loss = build_network(small_plan()), DiceFocalLoss()
    return fit.fit(network, small_plan(), Squares(), cfg, run_dir, loss=loss)


def kill_at_random(run_dir):
    """Kill the program up to 0.15 s after its first checkpoint; returns how long after."""
    command = [sys.executable, "-m", "tests.training.test_killed", str(run_dir)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while not (run_dir / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    delay = random.uniform(0, 0.15)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return delay


def test_killed_at_any_moment_it_ends_bit_for_bit_like_an_undisturbed_one(tmp_path):
    delay = kill_at_random(tmp_path / "killed")
    left = torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt", weights_only=True)
    where = f"killed {delay:.3f} s after step 1, resumed at step {left['global_step']}"
    killed, calm = train(tmp_path / "killed"), train(tmp_path / "calm")
    assert 0 < left["global_step"] < 40, where
    for name, tensor in calm.network.state_dict().items():
        assert torch.equal(killed.network.state_dict()[name], tensor), f"{where}: {name}"
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"] for name in ("killed", "calm")]
    assert losses[0].equals(losses[1]), where


if __name__ == "__main__":
    fit.CHECKPOINT_EVERY = timedelta(0)
    callbacks.PAUSE_SHARE = 0
    train(Path(sys.argv[1]))
