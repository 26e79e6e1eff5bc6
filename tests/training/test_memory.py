"""A device of a few tensors' memory, and the sizes that fit it."""

import pytest
import torch

from lesionseg.errors import TrainingError
from lesionseg.models.memory import step_gb
from lesionseg.plan.plan import Architecture
from lesionseg.training.memory import fit_to_memory


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
        (4 * 256, 4, (16, 16), {"batch_size"}),
        (2 * 14 * 16, 2, (14, 16), {"batch_size", "tile_shape"}),
    ],
)
def test_the_largest_size_that_fits_is_taken(make_plan, limit, batch, tile, reasons):
    fitted = fit_to_memory(make_plan(batch_size=8), cramped(limit))
    assert (fitted.batch_size, fitted.tile_shape) == (batch, tile)
    assert set(fitted.reasons) == reasons


@pytest.mark.parametrize(("batch", "side"), [(8, 16), (2, 4)])
def test_after_three_smaller_sizes_or_at_one_small_tile_it_gives_up(make_plan, batch, side):
    plan = make_plan(batch_size=batch).with_(tile_shape=(side, side))
    with pytest.raises(TrainingError, match=r"model\.tile_shape"):
        fit_to_memory(plan, cramped(10))


def test_the_formula_is_near_the_bytes_that_autograd_keeps(make_plan):
    """Counted on fake tensors: 1053 bytes a voxel of this U-Net, 45.2 million weights."""
    features = (32, 64, 128, 256, 320, 320, 320)
    strides = ((1, 1, 1), *((2, 2, 2),) * 5, (1, 1, 1))
    table = Architecture("unet", features, strides, ((3, 3, 3),) * 7)
    grid = {"dims": 3, "spacing_mm": (1.0,) * 3, "tile_shape": (224, 256, 224)}
    plan = make_plan().with_(**grid, architecture=table)
    assert step_gb(plan) == pytest.approx(31.9, rel=0.15)
    assert step_gb(plan.with_(batch_size=1)) < 0.65 * step_gb(plan)
