"""A plan, numbered tiles and a short training, all in 2-D and tiny."""

import pytest
import torch

from lesionseg.config import TrainConfig
from lesionseg.losses import FocalLoss
from lesionseg.models import build_network
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.training.fit import fit


class Squares:
    """Noise with a bright square, the lesion, in every second tile."""

    def __init__(self, side=16, bad=()):
        self.side, self.bad = side, set(bad)

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
        return {
            "image": image,
            "labels": labels,
            "instances": labels.int(),
            "valid": torch.ones_like(labels, dtype=torch.bool),
        }


def small_plan(batch_size=2, n_supervised=2):
    return Plan(
        dims=2,
        modality="mri",
        channel_names=("T2",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 1.0),
        normalisation=(Normalisation("zscore"),),
        tile_shape=(16, 16),
        batch_size=batch_size,
        architecture=Architecture(
            "unet", (4, 8), ((1, 1), (2, 2)), ((3, 3),) * 2, blocks=1, n_supervised=n_supervised
        ),
        lesion_fraction=0.02,
    )


@pytest.fixture
def squares():
    return Squares


@pytest.fixture
def make_plan():
    return small_plan


LIGHTNING = ("accumulate_grad_batches", "gradient_clip_val", "log_every_n_steps")


def config(optim=None, **trainer):
    """Settings of a quiet training in one process; keywords are those of `trainer`."""
    chosen = {"workers": 0, "accelerator": "cpu", "precision": "32-true", **trainer}
    lightning = {key: chosen.pop(key) for key in LIGHTNING if key in chosen}
    chosen["lightning"] = {"enable_progress_bar": False, **chosen.get("lightning", {}), **lightning}
    callbacks, logger = chosen.pop("callbacks", ()), chosen.pop("logger", ())
    return TrainConfig.of(
        trainer=chosen, optim=optim or {"lr": 1e-2}, callbacks=callbacks, logger=logger
    )


@pytest.fixture
def train(tmp_path):
    """Train by `config`; keywords that `fit` takes are handed on."""

    def run(*, run_dir=None, tiles=None, plan=None, network=None, **given):
        plan = plan or small_plan()
        parts = {key: given.pop(key) for key in ("loss", "validate") if key in given}
        parts = {"loss": FocalLoss(), "callbacks": given.pop("plugs", ()), **parts}
        network = network or build_network(plan)
        folder = run_dir or tmp_path / "run"
        return fit(network, plan, tiles or Squares(), config(**given), folder, **parts)

    return run
