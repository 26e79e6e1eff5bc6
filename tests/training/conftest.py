"""A plan, numbered tiles and a short training, all in 2-D and tiny."""

import pytest
import torch

from lesionseg.losses import FocalLoss
from lesionseg.models import build_network
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.training import Learning, OptimiserSettings, TrainerSettings
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


@pytest.fixture
def train(tmp_path):
    """Train with quiet, single-process settings; keywords change them."""

    def run(
        *,
        run_dir=None,
        tiles=None,
        loss=None,
        plan=None,
        optimiser=None,
        validate=None,
        callbacks=(),
        loggers=(),
        network=None,
        **settings,
    ):
        plan = plan or small_plan()
        chosen = {"workers": 0, "accelerator": "cpu", "precision": "32-true", "progress": False}
        learning = Learning(
            loss or FocalLoss(),
            TrainerSettings(**{**chosen, **settings}),
            optimiser=optimiser or OptimiserSettings(lr=1e-2),
            callbacks=callbacks,
            loggers=loggers,
        )
        network = network or build_network(plan)
        folder = run_dir or tmp_path / "run"
        return fit(network, plan, tiles or Squares(), learning, folder, validate=validate)

    return run
