"""A training that is killed outright, at whatever moment, and started again."""

import errno
import os
import random
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import torch

from lesionseg.errors import OutputError
from lesionseg.io.atomic import read_csv
from lesionseg.training.callbacks import focal_balance
from lesionseg.training.callbacks.focal_balance import FocalBalance
from lesionseg.training.callbacks.previews import Previews
from tests.training.killed import train

ROOT = Path(__file__).resolve().parents[2]


def kill_at_random(run_dir: Path) -> float:
    """Start the training as a program and kill it up to 0.15 s after its first checkpoint;
    returns how long after."""
    command = [sys.executable, "-m", "tests.training.killed", str(run_dir)]
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
    where = f"killed {delay:.3f} s after step 1, resumed at step {left['counters']['steps']}"
    killed, calm = train(tmp_path / "killed"), train(tmp_path / "calm")
    assert 0 < left["counters"]["steps"] < 40, where
    for name, tensor in calm.network.state_dict().items():
        assert torch.equal(killed.network.state_dict()[name], tensor), f"{where}: {name}"
    losses = [[row["loss"] for row in read_csv(result.history)] for result in (killed, calm)]
    assert losses[0] == losses[1], where


def tables(run_dir: Path) -> dict[str, list[dict[str, str]]]:
    rows = {path.name: read_csv(path) for path in run_dir.glob("*.csv")}
    return {name: [row | {"minutes": ""} for row in table] for name, table in rows.items()}


def picture(run_dir: Path) -> bytes:
    return (run_dir / "previews" / "step_000006.png").read_bytes()


def test_a_disk_full_at_any_write_changes_no_table(train, tmp_path, monkeypatch):
    def training(run_dir: Path) -> None:
        settings = {"max_steps": 6, "log_every": 3, "checkpoint_every_minutes": 0}
        watch = [FocalBalance(run_dir), Previews(run_dir, every_minutes=9.0, n_tiles=4)]
        train(run_dir=run_dir, validate=lambda _: {"dice": 0.5}, callbacks=watch, **settings)

    def flushed(descriptor: int) -> None:
        if next(numbers) >= full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    flush = os.fsync
    monkeypatch.setattr(focal_balance, "CURVES_FROM", 0.3)  # both rows have curves
    training(tmp_path / "calm")
    calm, full_at = tables(tmp_path / "calm"), 1
    assert set(calm) == {"metrics.csv", "focal_balance.csv", "loss_curves.csv"}
    while True:
        run, numbers = tmp_path / str(full_at), count(1)
        monkeypatch.setattr(os, "fsync", flushed)
        try:
            training(run)
            break
        except OutputError:
            monkeypatch.setattr(os, "fsync", flush)
            training(run)
            assert tables(run) == calm, f"full at write {full_at}"
            assert picture(run) == picture(tmp_path / "calm")
            full_at += 1
    assert full_at > 8
