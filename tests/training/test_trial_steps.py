"""A device of a few tensors' memory, and the sizes that fit it."""

import pytest
import torch

from lesionseg.errors import ConfigError, TrainingError
from lesionseg.losses import FocalLoss
from lesionseg.models.build import build_network
from lesionseg.models.memory_formula import step_gb
from lesionseg.plan.plan import Architecture
from lesionseg.training import trial_steps
from lesionseg.training.trial_steps import fit_to_memory
from tests.training.conftest import config


def cramped(limit):
    """Steps that run out of memory above so many voxels."""

    def take_steps(plan):
        if plan.batch_size * plan.tile_shape[0] * plan.tile_shape[1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return take_steps


@pytest.mark.parametrize(
    ("limit", "batch", "tile", "reasons"),
    [
        (8 * 256, 8, (16, 16), set()),
        (5 * 256, 5, (16, 16), {"batch_size"}),
        (2 * 14 * 16, 2, (14, 16), {"batch_size", "tile_shape"}),
    ],
)
def test_the_largest_size_that_fits_is_taken(make_plan, limit, batch, tile, reasons):
    fitted = fit_to_memory(make_plan(batch_size=8), cramped(limit))
    assert (fitted.batch_size, fitted.tile_shape) == (batch, tile)
    assert set(fitted.reasons) == reasons


@pytest.mark.parametrize(("batch", "side"), [(8, 16), (2, 4)])
def test_after_three_smaller_tiles_or_at_one_small_tile_it_gives_up(make_plan, batch, side):
    plan = make_plan(batch_size=batch).with_(tile_shape=(side, side))
    with pytest.raises(TrainingError, match=r"model\.tile_shape"):
        fit_to_memory(plan, cramped(10))


def test_less_is_tried_one_tile_at_a_time(make_plan):
    tried = []

    def take_steps(plan):
        tried.append(plan.batch_size)
        cramped(3 * 256)(plan)

    fit_to_memory(make_plan(batch_size=6), take_steps)
    assert tried == [6, 5, 4, 3]


def test_a_single_tile_takes_less_than_two(make_plan):
    """The U-Net that was counted by hand: 1053 bytes a voxel, 45.2 million weights."""
    features = (32, 64, 128, 256, 320, 320, 320)
    strides = ((1, 1, 1), *((2, 2, 2),) * 5, (1, 1, 1))
    table = Architecture("unet", features, strides, ((3, 3, 3),) * 7)
    grid = {"dims": 3, "spacing_mm": (1.0,) * 3, "tile_shape": (224, 256, 224)}
    plan = make_plan().with_(**grid, architecture=table)
    assert step_gb(plan) == pytest.approx(31.9, rel=0.15)
    assert step_gb(plan.with_(batch_size=1)) < 0.65 * step_gb(plan)


@pytest.mark.parametrize(
    ("batch", "remedy"), [(3, r"model\.batch_size=2"), (1, "model.tile_shape")]
)
def test_memory_that_ends_in_a_training_names_what_to_set(train, make_plan, batch, remedy):
    class Greedy(FocalLoss):
        def forward(self, *_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with pytest.raises(ConfigError, match=remedy) as error:
        train(max_steps=2, loss=Greedy(), plan=make_plan(batch_size=batch))
    assert "step 1" in str(error.value)


def test_trial_steps_let_cudnn_choose_its_fastest_algorithms_as_training_does(
    make_plan, monkeypatch
):
    seen = []

    def build_watched(plan, **options):
        network = build_network(plan, **options)
        network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
        return network

    monkeypatch.setattr(trial_steps, "build_network", build_watched)
    trial_steps.try_steps(make_plan(batch_size=2), config(), "cpu")
    assert seen == [True, True]
    assert torch.backends.cudnn.benchmark is False
