"""A tiny 2-D plan, numbered tiles and a short training."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch

from lesionseg.config import TrainConfig
from lesionseg.losses import FocalLoss
from lesionseg.models import build_network
from lesionseg.training import LesionModule, make_objective
from lesionseg.training.fit import fit
from tests.models.plans import plan_of


class Squares:
    """Tiles of noise. Every second tile has a bright square as a lesion."""

    def __init__(self, side=16, bad=()):
        self.side = side
        self.bad = set(bad)

    def __getitem__(self, number):
        noise = torch.Generator().manual_seed(number)
        image = torch.randn(1, self.side, self.side, generator=noise)
        labels = torch.zeros(self.side, self.side, dtype=torch.uint8)
        if number % 2 == 0:
            y, x = torch.randint(0, self.side - 4, (2,), generator=noise).tolist()
            labels[y : y + 4, x : x + 3] = 1
            image[0] += 3 * labels
        if number in self.bad:
            image[:] = torch.nan
        valid = torch.ones_like(labels, dtype=torch.bool)
        return {"image": image, "labels": labels, "instances": labels.int(), "valid": valid}


def small_plan(batch_size=2, n_supervised=2):
    table = {"blocks": 1, "n_supervised": n_supervised}
    return plan_of(
        strides=((1, 1), (2, 2)),
        table=table,
        batch_size=batch_size,
        lesion_fraction=0.02,
    )


@pytest.fixture
def squares():
    return Squares


@pytest.fixture
def make_plan():
    return small_plan


LIGHTNING = ("accumulate_grad_batches", "gradient_clip_val", "log_every_n_steps")


def make_config(optim=None, **trainer):
    """Return the settings of a quiet training in one process. Keywords are those of `trainer`."""
    chosen = {"workers": 0, "accelerator": "cpu", "precision": "32-true", **trainer}
    lightning = {key: chosen.pop(key) for key in LIGHTNING if key in chosen}
    chosen["lightning"] = {"enable_progress_bar": False, **chosen.get("lightning", {}), **lightning}
    return TrainConfig.of(trainer=chosen, optim=optim or {"lr": 1e-2})


def make_module(plan, cfg, network=None, loss=None):
    """Return the module of a training. By default, network and loss are those of the settings."""
    network = network or build_network(plan)
    objective = make_objective(plan, loss or cfg.loss, cfg.detection)
    return LesionModule(network, objective, cfg.trainer, cfg.optim)


@pytest.fixture
def train(tmp_path):
    """Return a function that trains with `make_config`. Keywords of `fit` are passed to it."""

    def run(*, run_dir=None, tiles=None, plan=None, network=None, **given):
        plan = plan or small_plan()
        callbacks = given.pop("plugs", ())
        validate = given.pop("validate", None)
        loss = given.pop("loss", FocalLoss())
        module = make_module(plan, make_config(**given), network, loss)
        folder = run_dir or tmp_path / "run"
        return fit(module, tiles or Squares(), folder, validate=validate, callbacks=callbacks)

    return run


class Clock:
    """A replacement for the module `time`. A test decides how many seconds pass."""

    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return self.seconds

    def advance(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock of a training, so that it does not depend on the speed of the machine."""
    found = Clock()
    for module in ("module", "callbacks"):
        monkeypatch.setattr(f"lesionseg.training.{module}.time", found)
    return found


class StepsOfSeconds(pl.Callback):
    """A callback that advances the test's clock by some seconds per step."""

    def __init__(self, clock, seconds):
        self.clock = clock
        self.seconds = seconds

    def on_train_batch_end(self, *_):
        self.clock.advance(self.seconds)


@pytest.fixture
def checkpoint_every_step(monkeypatch):
    """Write a checkpoint after every step."""
    monkeypatch.setattr("lesionseg.training.fit.CHECKPOINT_EVERY", timedelta(0))
    monkeypatch.setattr("lesionseg.training.callbacks.PAUSE_SHARE", 0)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])
