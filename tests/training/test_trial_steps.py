"""Sizes of tile and batch that fit a device with little memory."""

import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.losses import FocalLoss
from lesionseg.training.trial_steps import fit_to_memory, try_steps
from tests.training.conftest import make_config, make_module


def limited_steps(limit, error=torch.OutOfMemoryError):
    """Return a function whose steps run out of memory above so many voxels."""

    def run_steps(plan):
        if plan.batch_size * plan.tile_shape[0] * plan.tile_shape[1] > limit:
            raise error("out of memory")

    return run_steps


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
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
def test_largest_size_that_fits_is_chosen(make_plan, error, limit, batch, tile, reasons):
    plan = make_plan(batch_size=8).with_(reasons={"memory": "of the planned sizes"})
    found = fit_to_memory(plan, limited_steps(limit, error))
    assert (found.batch_size, found.tile_shape) == (batch, tile)
    assert set(found.reasons) == reasons


@pytest.mark.parametrize(
    ("batch", "side", "smallest"), [(8, 16, "12 × 14"), (2, 4, "4 × 4"), (1, 16, "12 × 14")]
)
def test_error_names_the_smallest_size_that_was_tried(make_plan, batch, side, smallest):
    """At most three smaller tiles are tried. An axis of two strides of two voxels stays."""
    plan = make_plan(batch_size=batch).with_(tile_shape=(side, side))
    with pytest.raises(ConfigError, match=rf"1 tile of {smallest} .*model\.tile_shape"):
        fit_to_memory(plan, limited_steps(10))


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
