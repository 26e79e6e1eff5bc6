"""A plan, numbered tiles and a short training, all in 2-D and tiny."""

from dataclasses import replace

import pytest
import torch

from lesionseg.losses import DetectionLoss, DiceCrossEntropyLoss, FocalLoss
from lesionseg.models import build_network
from lesionseg.plan.plan import AnchorPlan, Architecture, Normalisation, Plan
from lesionseg.training.device.memory_probe import some_batch
from lesionseg.training.fit import fit_tiles
from lesionseg.training.learning_settings import Learning
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.detection_objective import make_objective


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
        callbacks_of_config=None,
        network=None,
        **settings,
    ):
        plan = plan or small_plan()
        chosen = {"workers": 0, "accelerator": "cpu", "precision": "32-true", "progress": False}
        learning = Learning(
            loss or FocalLoss(),
            TrainerSettings(**{**chosen, **settings}, callbacks=callbacks_of_config),
            optimiser=optimiser or OptimiserSettings(lr=1e-2),
        )
        return fit_tiles(
            network or build_network(plan),
            plan,
            tiles or Squares(),
            learning,
            run_dir or tmp_path / "run",
            validate=validate,
            callbacks=callbacks,
        )

    return run


@pytest.fixture
def make_module():
    """A module of the plan with another architecture, and a batch of it."""

    def make(name, loss=None, n_tiles=2, architecture=None, **settings):
        plan = small_plan()
        plan = plan.with_(architecture=replace(plan.architecture, name=name))
        if architecture is not None:
            dims = len(architecture.strides[0])
            plan = plan.with_(
                dims=dims,
                spacing_mm=(1.0,) * dims,
                tile_shape=(64,) * dims,
                architecture=architecture,
            )
        if name != "unet":
            sizes = (((4.0, 4.0), (6.0, 6.0)),)
            plan = plan.with_(anchors=AnchorPlan(stages=(1,), sizes=sizes, width=8, depth=1))
        objective = make_objective(loss or DiceCrossEntropyLoss(), DetectionLoss(), plan)
        trainer = TrainerSettings(max_steps=9, **settings)
        module = LesionModule(build_network(plan), objective, plan, trainer, OptimiserSettings())
        return module, some_batch(plan, n_tiles, torch.device("cpu"))

    return make
