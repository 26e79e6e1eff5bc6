"""Sizes of tile and batch that fit a device with little memory."""

import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.losses import FocalLoss
from lesionseg.models.memory_formula import step_gb
from lesionseg.plan.plan import Architecture
from lesionseg.training.trial_steps import fit_to_memory, try_steps
from tests.training.conftest import make_config, make_module


def limited_steps(limit, error=torch.OutOfMemoryError):
    """Return a function whose steps run out of memory above so many voxels."""

    def take_steps(plan):
        if plan.batch_size * plan.tile_shape[0] * plan.tile_shape[1] > limit:
            raise error("out of memory")

    return take_steps


@pytest.mark.parametrize(
    ("limit", "batch", "tile", "reasons"),
    [
        (8 * 256, 8, (16, 16), {"memory"}),
        (5 * 256, 5, (16, 16), {"batch_size"}),
        (2 * 14 * 16, 2, (14, 16), {"batch_size", "tile_shape"}),
        (2 * 12 * 14, 2, (12, 14), {"batch_size", "tile_shape"}),
        (256, 1, (16, 16), {"batch_size"}),  # one tile of the planned size
        (200, 1, (14, 14), {"batch_size", "tile_shape"}),
    ],
)
def test_largest_size_that_fits_is_chosen(make_plan, limit, batch, tile, reasons):
    plan = make_plan(batch_size=8).with_(reasons={"memory": "of the planned sizes"})
    found = fit_to_memory(plan, limited_steps(limit))
    assert (found.batch_size, found.tile_shape) == (batch, tile)
    assert set(found.reasons) == reasons


def test_lack_of_host_memory_counts_as_well(make_plan):
    assert (
        fit_to_memory(make_plan(batch_size=8), limited_steps(5 * 256, MemoryError)).batch_size == 5
    )


@pytest.mark.parametrize(
    ("batch", "side", "smallest"), [(8, 16, "12 × 14"), (2, 4, "4 × 4"), (1, 16, "12 × 14")]
)
def test_error_names_the_smallest_size_that_was_tried(make_plan, batch, side, smallest):
    """At most three smaller tiles are tried. An axis of two strides of two voxels stays."""
    plan = make_plan(batch_size=batch).with_(tile_shape=(side, side))
    with pytest.raises(ConfigError, match=rf"1 tile of {smallest} .*model\.tile_shape"):
        fit_to_memory(plan, limited_steps(10))


def test_batch_is_reduced_by_one_tile_at_a_time(make_plan):
    tried = []

    def take_steps(plan):
        tried.append(plan.batch_size)
        limited_steps(3 * 256)(plan)

    fit_to_memory(make_plan(batch_size=6), take_steps)
    assert tried == [6, 5, 4, 3]


def test_one_tile_needs_less_memory_than_two(make_plan):
    """Use the U-Net counted by hand: 1053 bytes per voxel, 45.2 million weights."""
    features = (32, 64, 128, 256, 320, 320, 320)
    strides = ((1, 1, 1), *((2, 2, 2),) * 5, (1, 1, 1))
    table = Architecture("unet", features, strides, ((3, 3, 3),) * 7)
    plan = make_plan().with_(
        dims=3, spacing_mm=(1.0,) * 3, tile_shape=(224, 256, 224), architecture=table
    )
    assert step_gb(plan) == pytest.approx(31.9, rel=0.15)
    assert step_gb(plan.with_(batch_size=1)) < 0.65 * step_gb(plan)


def run_out_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def run_out_on_a_cpu():
    torch.empty(10**15)


@pytest.mark.parametrize("run_out", [run_out_on_a_gpu, run_out_on_a_cpu])
@pytest.mark.parametrize(
    ("batch", "remedy"), [(3, r"model\.batch_size=2"), (1, "model.tile_shape")]
)
def test_out_of_memory_error_names_the_settings_to_reduce(train, make_plan, batch, remedy, run_out):
    class Greedy(FocalLoss):
        def forward(self, *_, **__):
            run_out()

    with pytest.raises(ConfigError, match=remedy) as error:
        train(max_steps=2, loss=Greedy(), plan=make_plan(batch_size=batch))
    assert "step 1" in str(error.value)


def test_trial_steps_let_cudnn_choose_algorithms_like_training(make_plan):
    seen = []
    module = make_module(make_plan(batch_size=2), make_config())
    module.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    try_steps(module, "cpu")
    assert seen == [True, True]
    assert torch.backends.cudnn.benchmark is False
