"""A training is killed at a random time and started again."""

import multiprocessing
import random
import time
from datetime import timedelta

import pandas as pd
import pytorch_lightning as pl
import torch

from lesionseg.losses import DiceFocalLoss
from lesionseg.training import callbacks, fit
from lesionseg.training.tile_stream import START_METHOD
from tests.training.conftest import Squares, make_config, make_module, small_plan

STEPS = 12


class WaitsForItsEnd(pl.Callback):
    """A callback that waits before the last step, so that a slow machine never kills too late."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == STEPS - 1:
            time.sleep(3600)


def train(run_dir, callbacks=()):
    """Train a few steps on a few small tiles."""
    cfg = make_config(max_steps=STEPS, log_every_n_steps=1, workers=1)
    module = make_module(small_plan(), cfg, loss=DiceFocalLoss())
    return fit.fit(module, Squares(), run_dir, callbacks=callbacks)


def train_until_killed(run_dir):
    """Train with a checkpoint after every step, in a process that only this function uses."""
    fit.CHECKPOINT_EVERY = timedelta(0)
    callbacks.PAUSE_SHARE = 0
    train(run_dir, [WaitsForItsEnd()])


def kill_at_random(run_dir):
    """Kill a training up to 0.15 s after its first checkpoint. Return the delay."""
    context = multiprocessing.get_context(START_METHOD)
    process = context.Process(target=train_until_killed, args=(run_dir,))
    process.start()
    while not (run_dir / "checkpoints" / "last.ckpt").is_file():
        assert process.is_alive()
        time.sleep(0.005)
    delay = random.uniform(0, 0.15)
    time.sleep(delay)
    process.kill()
    process.join()
    return delay


def test_training_killed_at_any_time_ends_with_identical_weights(tmp_path):
    delay = kill_at_random(tmp_path / "killed")
    left = torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt", weights_only=True)
    where = f"killed {delay:.3f} s after step 1, resumed at step {left['global_step']}"
    killed = train(tmp_path / "killed")
    calm = train(tmp_path / "calm")
    assert 0 < left["global_step"] < STEPS, where
    for name, tensor in calm.network.state_dict().items():
        assert torch.equal(killed.network.state_dict()[name], tensor), f"{where}: {name}"
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"] for name in ("killed", "calm")]
    assert losses[0].equals(losses[1]), where
